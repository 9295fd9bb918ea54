"""Files by SHA-256: written to a temporary name, synced, renamed; read with the hash checked.

What is derived from a file (its thumbnails) stands beside it under its name and a suffix, goes with
it, and can be lost: it is not synced, and checked by a hash of its own.

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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from lmserver.web.slots import Busy, Slots

T = TypeVar("T")

BLOCK = 256 * 1024
KEEP_FREE = 256 * 1024 * 1024
"""Bytes of the disk that media leave to the database and everybody else."""

STALE_SECONDS = 24 * 3600.0
LOOKED_UP_AT_ONCE = 1000
WRITERS = 1000
WRITER_SECONDS = 60.0
"""Of one file at a time: so many wait, for so long."""


class DiskFull(Exception):
    """There is no room for another file."""


class FileDamaged(Exception):
    """The file is missing, or is not what its name says."""


class NewFile:
    """A file being written at `path`, and its hash so far."""

    def __init__(self, folder: Path, file: BinaryIO, path: Path, turns: Slots) -> None:
        self._folder = folder
        self._file = file
        self.path = path
        self._turns = turns
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Append, a block at a time however small the pieces are; raises DiskFull."""
        self.size += len(data)
        self._waiting += data
        if len(self._waiting) >= BLOCK:
            await asyncio.to_thread(self._write, self._take())

    async def flush(self) -> None:
        """Let another process read all of it at `path`; raises DiskFull."""
        await asyncio.to_thread(self._write, self._take())

    async def keep(self, record: Callable[[bytes], Awaitable[T]]) -> T:
        """Make it durable under its hash (32 bytes), which `record` writes where it will be looked for.
        Until that is done nobody deletes the file. Raises DiskFull and what `record` raises."""
        await self.flush()
        digest = self._hash.digest()
        async with _alone(self._turns, digest):
            await asyncio.to_thread(self._keep, digest)
            return await record(digest)

    def _take(self) -> bytearray:
        waiting, self._waiting = self._waiting, bytearray()
        return waiting

    def _write(self, data: bytearray) -> None:
        self._hash.update(data)
        with _disk():
            self._file.write(data)

    def _keep(self, digest: bytes) -> None:
        place = _place(self._folder, digest)
        with _disk():
            os.fsync(self._file.fileno())
            for folder in (place.parent.parent, place.parent):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)
                    _sync_folder(folder.parent)
            self.path.rename(place)
            _sync_folder(place.parent)


class MediaFiles:
    """The files under one folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._turns = Slots()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[NewFile]:
        """A new file; unless it is kept inside the block, nothing stays. Raises DiskFull."""
        path = self._folder / "incoming" / secrets.token_hex(16)
        file = await asyncio.to_thread(self._open, path)
        try:
            yield NewFile(self._folder, file, path, self._turns)
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

    async def read_part(self, sha256: bytes, size: int, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to `end`, not with it. Their hash is not known, so it is not checked;
        raises FileDamaged as `read` does, and when the file ends early."""
        file = await asyncio.to_thread(self._reading, sha256, size)
        try:
            await asyncio.to_thread(file.seek, start)
            while start < end:
                block = await asyncio.to_thread(file.read, min(BLOCK, end - start))
                if not block:
                    raise FileDamaged
                start += len(block)
                yield block
        finally:
            file.close()

    async def has(self, sha256: bytes, size: int) -> bool:
        """Whether the file is there with this size."""
        try:
            (await asyncio.to_thread(self._reading, sha256, size)).close()
        except FileDamaged:
            return False
        return True

    async def delete(self, sha256: bytes, unused: Callable[[bytes], Awaitable[bool]]) -> bool:
        """Delete a file and what was derived from it if it is `unused`: nobody can begin to use it
        between the question and the deed."""
        async with _alone(self._turns, sha256):
            if not await unused(sha256):
                return False
            await asyncio.to_thread(self._delete, sha256)
            return True

    def path_of(self, sha256: bytes) -> Path:
        """Where the file stands, or would."""
        return _place(self._folder, sha256)

    async def derived(self, sha256: bytes, suffix: str) -> bytes | None:
        """What was derived from the file under this suffix (letters, digits, `-`), if it is there whole."""
        return await asyncio.to_thread(_whole, _beside(self.path_of(sha256), suffix))

    async def keep_derived(self, sha256: bytes, suffix: str, data: bytes) -> None:
        """Raises DiskFull."""
        async with self.writing() as file:
            await file.write(hashlib.sha256(data).digest() + data)
            await file.flush()
            async with _alone(self._turns, sha256):
                if self.path_of(sha256).exists():
                    await asyncio.to_thread(file.path.rename, _beside(self.path_of(sha256), suffix))

    async def sweep(self, unused: Callable[[list[bytes]], Awaitable[list[bytes]]]) -> None:
        """Delete files that stand for a day and are `unused`: those no row names, after a crash."""
        old = await asyncio.to_thread(self._old, time.time() - STALE_SECONDS)

        async def still_unused(sha256: bytes) -> bool:
            return bool(await unused([sha256]))

        for start in range(0, len(old), LOOKED_UP_AT_ONCE):
            for sha256 in await unused(old[start : start + LOOKED_UP_AT_ONCE]):
                await self.delete(sha256, still_unused)

    async def tidy(self) -> None:
        """Remove what writers that died have left behind, and what was derived from files that are gone."""
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

    def _delete(self, sha256: bytes) -> None:
        place = _place(self._folder, sha256)
        for path in (*place.parent.glob(place.name + ".*"), place):
            path.unlink(missing_ok=True)

    def _tidy(self, before: float) -> None:
        for path in self._folder.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*.*"):
            if not path.with_suffix("").exists():
                path.unlink(missing_ok=True)
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


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(f"{place.name}.{suffix}")


def _whole(path: Path) -> bytes | None:
    """What follows the hash at the beginning, if it is its hash."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


@asynccontextmanager
async def _alone(turns: Slots, sha256: bytes) -> AsyncIterator[None]:
    """Nobody else keeps or deletes this file meanwhile. Raises DiskFull in the end: nothing is written."""
    try:
        async with turns.hold(sha256, 1, WRITERS, WRITER_SECONDS):
            yield
    except Busy as error:
        raise DiskFull from error


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
