"""Media between two servers in their own processes: what one user uploads another one downloads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tests.kit.processes import ServerProcess, configure, running
from tests.kit.users import User, register

MB = 1_000_000
LARGE = 100 * MB
Servers = tuple[ServerProcess, ServerProcess]


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    media = {"max_upload_size": LARGE, "max_remote_size": LARGE, "remote_cache_size": 3 * LARGE}
    made = configure(tmp_path, "one", media=media), configure(tmp_path, "two", media=media)
    async with running(*made):
        yield made


async def upload(user: User, body: bytes | AsyncIterator[bytes], query: str = "") -> str:
    url = URL(f"{user.server.client_url}/_matrix/media/v3/upload{query}", encoded=True)
    headers = {"Authorization": f"Bearer {user.token}", "Content-Type": "image/png"}
    async with user.http.post(url, data=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["content_uri"]).removeprefix("mxc://")


async def download(user: User, uri: str) -> tuple[int, str, int, dict[str, str]]:
    """Status, SHA-256 and size of the body, headers."""
    url = f"{user.server.client_url}/_matrix/client/v1/media/download/{uri}"
    digest, size = hashlib.sha256(), 0
    async with user.http.get(url, headers={"Authorization": f"Bearer {user.token}"}) as response:
        async for chunk in response.content.iter_any():
            digest.update(chunk)
            size += len(chunk)
        return response.status, digest.hexdigest(), size, dict(response.headers)


def memory(server: ServerProcess, what: str) -> int:
    """VmRSS (now) or VmHWM (the most since `forget_peak`) of the process, in bytes."""
    assert server.process is not None
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {what}")


def forget_peak(server: ServerProcess) -> None:
    assert server.process is not None
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def files(server: ServerProcess, kind: str) -> list[Path]:
    folder = server.config.with_suffix("") / "media" / kind
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_file_of_one_server_is_downloaded_on_the_other(
    servers: Servers, http: aiohttp.ClientSession
) -> None:
    one, two = servers
    alice, bob = await register(http, one, "alice"), await register(http, two, "bob")
    data = os.urandom(3 * MB)
    uri = await upload(alice, data, "?filename=caf%C3%A9.png")
    assert uri.startswith(one.name + "/")
    expected = hashlib.sha256(data).hexdigest()
    answers = await asyncio.gather(*(download(bob, uri) for _ in range(5)))
    assert [(status, sha256) for status, sha256, _, _ in answers] == [(200, expected)] * 5
    headers = answers[0][3]
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Disposition"] == "inline; filename*=utf-8''caf%C3%A9.png"
    assert [path.name for path in files(two, "remote")] == [expected]
    # The copy is served while its server is away, by a server that has died in between.
    one.stop()
    two.kill()
    await two.start()
    assert (await download(bob, uri))[:2] == (200, expected)
    assert (await download(bob, f"{one.name}/neverseen"))[0] == 502


async def test_what_was_acknowledged_is_there_after_a_crash(
    servers: Servers, http: aiohttp.ClientSession
) -> None:
    """Uploads run while the server is killed: the answered ones are whole, the others leave nothing."""
    one, two = servers
    alice, bob = await register(http, one, "alice"), await register(http, two, "bob")
    kept: dict[str, str] = {}

    async def keep_uploading() -> None:
        while True:
            data = os.urandom(MB)
            kept[await upload(alice, data)] = hashlib.sha256(data).hexdigest()

    uploads = [asyncio.create_task(keep_uploading()) for _ in range(3)]
    while len(kept) < 6:
        await asyncio.sleep(0.01)
    one.kill()
    failed = await asyncio.gather(*uploads, return_exceptions=True)
    assert all(isinstance(error, aiohttp.ClientError) for error in failed)
    await one.start()
    for uri, sha256 in kept.items():
        assert (await download(bob, uri))[:2] == (200, sha256)


async def test_m4_memory_does_not_grow_with_the_file(servers: Servers, http: aiohttp.ClientSession) -> None:
    """100 MB up, over and down: neither server's memory grows by a tenth of it."""
    one, two = servers
    alice, bob = await register(http, one, "alice"), await register(http, two, "bob")
    await download(bob, await upload(alice, os.urandom(MB)))
    before = [memory(server, "VmRSS") for server in servers]
    for server in servers:
        forget_peak(server)
    digest = hashlib.sha256()

    async def large() -> AsyncIterator[bytes]:
        source = random.Random(7)
        for _ in range(LARGE // MB):
            block = source.randbytes(MB)
            digest.update(block)
            yield block

    uri = await upload(alice, large())
    assert (await download(bob, uri))[:3] == (200, digest.hexdigest(), LARGE)
    grown = [memory(server, "VmHWM") - then for server, then in zip(servers, before, strict=True)]
    assert max(grown) < LARGE / 10, grown
