"""Files by their hash: durable before they are named, whole or not there, checked while read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lmserver.media import files
from lmserver.media.files import DiskFull, FileDamaged, MediaFiles

BIG = os.urandom(files.BLOCK * 2 + 17)


async def store(store: MediaFiles, data: bytes, piece: int = 10_000) -> bytes:
    async with store.writing() as file:
        for start in range(0, len(data), piece):
            await file.write(data[start : start + piece])
        assert file.size == len(data)
        return await file.keep(itself)


async def itself(sha256: bytes) -> bytes:
    return sha256


async def always(_: bytes) -> bool:
    return True


async def never(_: bytes) -> bool:
    return False


async def read(store: MediaFiles, sha256: bytes, size: int) -> list[bytes]:
    return [block async for block in store.read(sha256, size)]


def place(folder: Path, sha256: bytes) -> Path:
    name = sha256.hex()
    return folder / name[:2] / name[2:4] / name


@pytest.mark.parametrize("data", [b"", b"x", BIG, BIG[: files.BLOCK]])
async def test_what_is_written_is_read(tmp_path: Path, data: bytes) -> None:
    media = MediaFiles(tmp_path / "media")
    sha256 = await store(media, data)
    assert sha256 == hashlib.sha256(data).digest()
    assert await store(media, data) == sha256
    assert b"".join(await read(media, sha256, len(data))) == data
    assert place(tmp_path / "media", sha256).stat().st_mode & 0o777 == 0o600
    assert not list((tmp_path / "media/incoming").iterdir())
    assert await media.has(sha256, len(data))
    assert not await media.delete(sha256, never)
    assert await media.has(sha256, len(data))
    assert await media.delete(sha256, always)
    assert await media.delete(sha256, always)
    assert not await media.has(sha256, len(data))


async def test_what_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    media = MediaFiles(tmp_path)
    async with media.writing() as file:
        await file.write(BIG)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_d8_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = MediaFiles(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "KEEP_FREE", 1 << 60)
        with pytest.raises(DiskFull):
            await store(media, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(DiskFull):
            await store(media, b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    await store(media, b"x")


async def test_a_rotten_file_is_never_read_to_its_end(tmp_path: Path) -> None:
    media = MediaFiles(tmp_path)
    sha256 = await store(media, BIG)
    path = place(tmp_path, sha256)
    for rotten in (BIG[:-1] + bytes([BIG[-1] ^ 1]), bytes([BIG[0] ^ 1]) + BIG[1:]):
        path.write_bytes(rotten)
        blocks = media.read(sha256, len(BIG))
        assert len(await anext(blocks)) + len(await anext(blocks)) < len(BIG)
        with pytest.raises(FileDamaged):
            await anext(blocks)
    path.write_bytes(BIG[:-1])
    assert not await media.has(sha256, len(BIG))
    with pytest.raises(FileDamaged):
        await read(media, sha256, len(BIG))


async def test_what_dead_writers_left_is_removed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = MediaFiles(tmp_path)
    await media.tidy()
    async with media.writing() as file:
        await file.write(BIG)
        await media.tidy()
        [left] = (tmp_path / "incoming").iterdir()
        monkeypatch.setattr(files, "STALE_SECONDS", -60.0)
        await media.tidy()
        assert not left.exists()
