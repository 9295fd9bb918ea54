"""Files by SHA-256: written to a temporary name, synced, renamed; read with the hash checked.

No part of a path comes from outside. Disk work is done in threads, a block at a time: memory does
not depend on the size of a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

BLOCK = 256 * 1024
KEEP_FREE = 256 * 1024 * 1024
"""Bytes of the disk that media leave to the database and everybody else."""

STALE_SECONDS = 24 * 3600.0


class DiskFull(Exception):
    """There is no room for another file."""


class FileDamaged(Exception):
    """The file is missing, or is not what its name says."""


class NewFile:
    """A file being written, and its hash so far."""

    def __init__(self, folder: Path, file: BinaryIO, path: Path) -> None:
        self._folder = folder
        self._file = file
        self._path = path
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Append, a block at a time however small the pieces are; raises DiskFull."""
        self.size += len(data)
        self._waiting += data
        if len(self._waiting) >= BLOCK:
            await asyncio.to_thread(self._write, self._take())

    async def keep(self) -> bytes:
        """Make it durable under its hash, which is returned (32 bytes); raises DiskFull."""
        return await asyncio.to_thread(self._keep)

    def _take(self) -> bytearray:
        waiting, self._waiting = self._waiting, bytearray()
        return waiting

    def _write(self, data: bytearray) -> None:
        self._hash.update(data)
        with _disk():
            self._file.write(data)

    def _keep(self) -> bytes:
        self._write(self._take())
        digest = self._hash.digest()
        place = _place(self._folder, digest)
        with _disk():
            os.fsync(self._file.fileno())
            for folder in (place.parent.parent, place.parent):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)
                    _sync_folder(folder.parent)
            self._path.rename(place)
            _sync_folder(place.parent)
        return digest


class MediaFiles:
    """The files under one folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[NewFile]:
        """A new file; unless it is kept inside the block, nothing stays. Raises DiskFull."""
        path = self._folder / "incoming" / secrets.token_hex(16)
        file = await asyncio.to_thread(self._open, path)
        try:
            yield NewFile(self._folder, file, path)
        finally:
            await asyncio.shield(asyncio.to_thread(_discard, file, path))

    async def read(self, sha256: bytes, size: int) -> AsyncGenerator[bytes, None]:
        """The file in blocks. The last one is held back until the hash has proved right: raises
        FileDamaged before it, and before the first one for a file that is missing or of another size."""
        file = await asyncio.to_thread(self._reading, sha256, size)
        try:
            digest = hashlib.sha256()
            held = b""
            while block := await asyncio.to_thread(_read, file, digest):
                if held:
                    yield held
                held = block
            if digest.digest() != sha256:
                raise FileDamaged
            if held:
                yield held
        finally:
            file.close()

    async def has(self, sha256: bytes, size: int) -> bool:
        """Whether the file is there with this size."""
        try:
            (await asyncio.to_thread(self._reading, sha256, size)).close()
        except FileDamaged:
            return False
        return True

    async def delete(self, sha256: bytes) -> None:
        await asyncio.to_thread(_place(self._folder, sha256).unlink, missing_ok=True)

    async def old(self) -> list[bytes]:
        """The hashes of the files that stand for a day at least."""
        return await asyncio.to_thread(self._old, time.time() - STALE_SECONDS)

    async def tidy(self) -> None:
        """Remove what writers that died have left behind."""
        await asyncio.to_thread(self._tidy, time.time() - STALE_SECONDS)

    def _open(self, path: Path) -> BinaryIO:
        with _disk():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if shutil.disk_usage(self._folder).free < KEEP_FREE:
                raise DiskFull
            return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    def _reading(self, sha256: bytes, size: int) -> BinaryIO:
        try:
            file = _place(self._folder, sha256).open("rb", buffering=0)
        except OSError as error:
            raise FileDamaged from error
        if os.fstat(file.fileno()).st_size != size:
            file.close()
            raise FileDamaged
        return file

    def _old(self, before: float) -> list[bytes]:
        found = []
        for path in self._folder.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError, ValueError):
                if path.stat().st_mtime < before:
                    found.append(bytes.fromhex(path.name))
        return found

    def _tidy(self, before: float) -> None:
        for path in (self._folder / "incoming").glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()


def _place(folder: Path, sha256: bytes) -> Path:
    """Where a file stands: two levels of 256 folders, so that none gets long."""
    name = sha256.hex()
    if len(name) != 64:
        raise ValueError("not a SHA-256")
    return folder / name[:2] / name[2:4] / name


def _read(file: BinaryIO, digest: hashlib._Hash) -> bytes:
    block = file.read(BLOCK)
    digest.update(block)
    return block


def _discard(file: BinaryIO, path: Path) -> None:
    with contextlib.suppress(OSError):
        file.close()
    path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """What the disk refuses (full, quota, read-only, gone) is one failure to everybody above."""
    try:
        yield
    except OSError as error:
        raise DiskFull from error
