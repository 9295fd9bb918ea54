"""Uploads and downloads over the assembled client API (CS API §Content repository)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientPayloadError, ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.composition import Server, assemble
from lmserver.config import parse_config
from lmserver.media import files
from lmserver.media.local import MAX_PENDING
from lmserver.storage import media
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.kit.images import encoded
from tests.kit.rooms import key_of

NAME = "hub.test"
UPLOAD = "/_matrix/media/v3/upload"
V1 = "/_matrix/client/v1/media"
LIMIT = 3_000_000
QUOTA = 4_000_000


class Api:
    """One server and what its users say to it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.http = TestClient(TestServer(server.client_app))
        self.tokens: dict[str, str] = {}

    async def register(self, name: str) -> None:
        body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
        async with self.http.post("/_matrix/client/v3/register", json=body) as response:
            self.tokens[name] = (await response.json())["access_token"]

    async def ask(
        self, method: str, path: str, body: Any = None, user: str = "alice", **headers: str
    ) -> tuple[ClientResponse, bytes]:
        headers = {"Authorization": f"Bearer {self.tokens.get(user, '')}", **headers}
        url = URL(path, encoded=True)
        async with self.http.request(method, url, data=body, headers=headers) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            return response, await response.read()

    async def json(
        self, method: str, path: str, body: Any = None, user: str = "alice", **headers: str
    ) -> tuple[int, Any]:
        response, _ = await self.ask(method, path, body, user, **headers)
        return response.status, await response.json()

    async def upload(self, data: bytes, type_: str = "image/png", query: str = "") -> str:
        status, answer = await self.json("POST", UPLOAD + query, data, **{"Content-Type": type_})
        assert status == 200, answer
        return str(answer["content_uri"]).removeprefix("mxc://")


@pytest.fixture
async def api(db: Database, tmp_path: Path) -> AsyncIterator[Api]:
    config = parse_config(
        {
            "server_name": NAME,
            "registration": {"mode": "open"},
            "media": {"max_upload_size": LIMIT, "user_quota": QUOTA},
            "limits": {"media_upload": {"burst": 1000}},
        },
        tmp_path,
    )
    made = Api(assemble(config, db, key_of(NAME), dns=Network()), tmp_path)
    await made.http.start_server()
    await made.register("alice")
    await made.register("bob")
    yield made
    await made.http.close()
    await made.server.close()


def stored(api: Api) -> list[Path]:
    return [path for path in (api.folder / "lmserver-data/media").rglob("*") if path.is_file()]


async def test_upload_and_download(api: Api) -> None:
    data = os.urandom(1_000_003)
    uri = await api.upload(data, "image/png", "?filename=a%20b.png")
    assert uri.startswith(NAME + "/")
    for user in ("alice", "bob"):
        response, body = await api.ask("GET", f"{V1}/download/{uri}", user=user)
        assert (response.status, body) == (200, data)
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Disposition"] == "inline; filename*=utf-8''a%20b.png"
    assert "sandbox" in response.headers["Content-Security-Policy"]
    response, body = await api.ask("GET", f"{V1}/download/{uri}/other.gif")
    assert (body, response.headers["Content-Disposition"]) == (data, "inline; filename=other.gif")
    response, body = await api.ask("HEAD", f"{V1}/download/{uri}")
    assert (response.status, response.headers["Content-Length"], body) == (200, str(len(data)), b"")
    assert (await api.json("GET", f"{V1}/config"))[1] == {"m.upload.size": LIMIT}


RANGES = [
    ("bytes=0-0", 206, slice(0, 1)),
    ("bytes=10-19", 206, slice(10, 20)),
    ("bytes=999990-", 206, slice(999_990, None)),
    ("bytes=-5", 206, slice(-5, None)),
    ("bytes=5-99999999", 206, slice(5, None)),
    ("bytes=-99999999", 206, slice(0, None)),
    ("bytes=0-1,5-6", 200, slice(0, None)),
    ("bytes=9-3", 200, slice(0, None)),
    ("bytes=-", 200, slice(0, None)),
    ("bytes=\u0663-5", 200, slice(0, None)),
    ("lines=0-1", 200, slice(0, None)),
    ("bytes=" + "9" * 5000 + "-", 200, slice(0, None)),
    ("bytes=1000000-", 416, None),
    ("bytes=-0", 416, None),
]


async def test_a_part_of_a_file(api: Api) -> None:
    data = os.urandom(1_000_000)
    path = f"{V1}/download/" + await api.upload(data)
    for asked, status, part in RANGES:
        response, body = await api.ask("GET", path, Range=asked)
        assert response.status == status, asked
        if part is None:
            assert response.headers["Content-Range"] == "bytes */1000000"
            continue
        assert body == data[part], asked
        if status == 206:
            start = part.indices(len(data))[0]
            expected = f"bytes {start}-{start + len(body) - 1}/1000000"
            assert response.headers["Content-Range"] == expected
    tag = response.headers.get("ETag") or (await api.ask("HEAD", path))[0].headers["ETag"]
    assert (await api.ask("GET", path, Range="bytes=0-1", **{"If-Range": tag}))[1] == data[:2]
    for other in ('"else"', "W/" + tag, "Wed, 21 Oct 2015 07:28:00 GMT"):
        response, body = await api.ask("GET", path, Range="bytes=0-1", **{"If-Range": other})
        assert (response.status, body) == (200, data)
    response, body = await api.ask("HEAD", path, Range="bytes=0-1")
    assert (response.status, response.headers["Content-Length"]) == (200, "1000000")
    assert response.headers["Accept-Ranges"] == "bytes"


async def test_a_file_the_asker_has_is_not_sent_again(api: Api) -> None:
    path = f"{V1}/download/" + await api.upload(b"content")
    tag = (await api.ask("GET", path))[0].headers["ETag"]
    for has in (tag, "W/" + tag, f'"x", {tag}', "*"):
        response, body = await api.ask("GET", path, **{"If-None-Match": has})
        assert (response.status, body) == (304, b""), has
        assert (response.headers["ETag"], "immutable" in response.headers["Cache-Control"]) == (tag, True)
    for other in ('"x"', "nonsense", tag[:-2] + '"', '"' * 5000):
        assert (await api.ask("GET", path, **{"If-None-Match": other}))[0].status == 200, other


async def test_what_an_operator_hides_is_given_to_nobody(api: Api) -> None:
    uri = await api.upload(b"content")
    media_id = uri.split("/")[1]
    assert await media.quarantine_local(api.server.db, media_id, hidden=True)
    assert not await media.quarantine_local(api.server.db, "other", hidden=True)
    for path in (f"download/{uri}", f"download/{uri}/x", f"thumbnail/{uri}?width=9&height=9"):
        assert (await api.json("GET", f"{V1}/{path}"))[1]["errcode"] == "M_NOT_FOUND"
    status, answer = await api.json("PUT", f"{UPLOAD}/{uri}", b"other")
    assert (status, answer["errcode"]) == (409, "M_CANNOT_OVERWRITE_MEDIA")
    assert await media.quarantine_local(api.server.db, media_id, hidden=False)
    assert (await api.ask("GET", f"{V1}/download/{uri}"))[1] == b"content"


async def test_media_are_deleted_with_their_files(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    library, db = api.server.media.library, api.server.db
    image = encoded(500, 500)
    first, second = await api.upload(image), await api.upload(image)
    await api.ask("GET", f"{V1}/thumbnail/{first}?width=9&height=9")
    assert len(stored(api)) == 2
    mine = await media.list_local(db, f"@alice:{NAME}", 10)
    assert [m.media_id for m in mine] == [first.split("/")[1], second.split("/")[1]]
    last = (mine[0].created_ts, mine[0].media_id)
    assert await media.list_local(db, None, 10, last) == mine[1:]
    assert await library.delete(NAME, first.split("/")[1])
    assert (await api.json("GET", f"{V1}/download/{first}"))[0] == 404
    assert (await api.ask("GET", f"{V1}/download/{second}"))[1] == image
    assert await library.delete(NAME, second.split("/")[1])
    assert not await library.delete(NAME, second.split("/")[1])
    assert stored(api) == []
    # Nobody has asked for one, and a crash came between a row and its file.
    await api.upload(b"unused")
    lost = await api.upload(b"lost")
    local = api.server.media.local
    assert await local.purge_unused(0) == 0
    await media.delete_local(db, lost.split("/")[1])
    await local.tidy()
    assert len(stored(api)) == 2
    monkeypatch.setattr(files, "STALE_SECONDS", -60.0)
    await local.tidy()
    assert len(stored(api)) == 1
    assert await local.purge_unused(1 << 60) == 1
    assert stored(api) == []


async def test_a_file_is_not_deleted_under_who_uploads_it_again(api: Api) -> None:
    """Uploads and deletions of the same bytes at once: what is acknowledged is there."""
    library = api.server.media.library

    async def round_() -> None:
        uri = await api.upload(b"the same")
        assert (await api.ask("GET", f"{V1}/download/{uri}"))[1] == b"the same"
        assert await library.delete(NAME, uri.split("/")[1])

    await asyncio.gather(*(round_() for _ in range(40)))
    assert stored(api) == []


async def test_an_empty_upload_is_a_file_too(api: Api) -> None:
    uri = await api.upload(b"")
    response, body = await api.ask("GET", f"{V1}/download/{uri}")
    assert (response.status, body) == (200, b"")


async def test_who_has_no_token_gets_nothing(api: Api) -> None:
    uri = await api.upload(b"x")
    for method, path in [
        ("POST", UPLOAD), ("PUT", f"{UPLOAD}/{uri}"), ("POST", "/_matrix/media/v1/create"),
        ("GET", f"{V1}/config"), ("GET", f"{V1}/download/{uri}"), ("GET", f"{V1}/download/{uri}/x"),
        ("GET", f"{V1}/thumbnail/{uri}?width=1&height=1"),
    ]:  # fmt: skip
        assert await api.json(method, path, user="nobody") == (
            401, {"errcode": "M_MISSING_TOKEN", "error": "Missing access token"},
        )  # fmt: skip
    for old in ("v3", "r0", "v1"):
        for path in (f"download/{uri}", f"thumbnail/{uri}?width=1&height=1", "preview_url?url=http://x.test"):
            status, answer = await api.json("GET", f"/_matrix/media/{old}/{path}")
            assert (status, answer["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_m2_active_content_is_an_attachment_in_a_sandbox(api: Api) -> None:
    for kind in ("text/html", "image/svg+xml", "application/pdf", "text/javascript", "x"):
        uri = await api.upload(b"<script>alert(1)</script>", kind, "?filename=x%0d%0aSet-Cookie:%20a.html")
        for path in (f"{V1}/download/{uri}", f"{V1}/download/{uri}/x%0d%0aSet-Cookie:%20a.html"):
            response, _ = await api.ask("GET", path)
            name = "filename*=utf-8''xSet-Cookie%3A%20a.html"
            assert response.headers["Content-Disposition"] == f"attachment; {name}"
            assert response.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
            assert "Set-Cookie" not in response.headers
            assert response.headers["Content-Type"] == (kind if "/" in kind else "application/octet-stream")


HEADERS = [
    ("a\r\nSet-Cookie: x=1", "inline; filename*=utf-8''aSet-Cookie%3A%20x%3D1"),
    ('a"; filename=b', "inline; filename*=utf-8''a%22%3B%20filename%3Db"),
    ("\u202egnp.exe", "inline; filename=gnp.exe"),
    ("\0\x85a\u2028b", "inline; filename*=utf-8''a%E2%80%A8b"),
    ("%0d%0a", "inline; filename*=utf-8''%250d%250a"),
]


async def test_q3_no_header_comes_from_a_name_or_a_type(api: Api) -> None:
    for name, disposition in HEADERS:
        uri = await api.upload(b"x", "image/png", "?filename=" + quote(name, safe=""))
        for path in (f"{V1}/download/{uri}", f"{V1}/download/{uri}/{quote(name, safe='')}"):
            response, _ = await api.ask("GET", path)
            assert response.headers["Content-Disposition"] == disposition, name
            assert "Set-Cookie" not in response.headers
    for kind in ('image/png; a="b', "image/png\tx", "image /png", "image/png;" + "x" * 300, "a/b/c"):
        response, _ = await api.ask("GET", f"{V1}/download/" + await api.upload(b"x", kind))
        assert response.headers["Content-Type"] == "application/octet-stream", kind
        assert response.headers["Content-Disposition"] == "attachment"


async def test_m4_uploads_over_the_limit_leave_nothing(api: Api) -> None:
    assert (await api.json("POST", UPLOAD, b"x" * (LIMIT + 1)))[1]["errcode"] == "M_TOO_LARGE"

    async def without_length() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 100_000 + 1):
            yield b"x" * 100_000

    status, answer = await api.json("POST", UPLOAD, without_length())
    assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
    status, answer = await api.json("POST", UPLOAD, b"x", **{"Content-Encoding": "gzip"})
    assert status == 415
    assert stored(api) == []
    await api.upload(b"x" * LIMIT)


async def test_m4_a_user_has_a_quota(api: Api) -> None:
    await api.upload(b"x" * LIMIT)
    status, answer = await api.json("POST", UPLOAD, b"y" * (QUOTA - LIMIT + 1))
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    assert len(stored(api)) == 1
    await api.upload(b"y" * (QUOTA - LIMIT))
    assert (await api.json("POST", UPLOAD, b"z"))[0] == 403
    assert (await api.json("POST", UPLOAD, b"z", "bob"))[0] == 200


async def test_m4_an_upload_that_is_broken_off_leaves_nothing(api: Api) -> None:
    writer_port = api.http.server.port
    assert writer_port is not None
    _, writer = await asyncio.open_connection("127.0.0.1", writer_port)
    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.tokens['alice']}\r\n"
    writer.write(head.encode() + b"Content-Length: 1000\r\n\r\n" + b"x" * 500)
    await writer.drain()
    incoming = api.folder / "lmserver-data/media/local/incoming"
    while not incoming.exists() or not list(incoming.iterdir()):
        await asyncio.sleep(0.01)
    writer.transport.abort()
    while list(incoming.iterdir()):
        await asyncio.sleep(0.01)
    assert stored(api) == []


async def test_announced_media_wait_for_their_upload(api: Api) -> None:
    status, made = await api.json("POST", "/_matrix/media/v1/create", b"{}")
    assert status == 200
    uri = made["content_uri"].removeprefix("mxc://")
    status, answer = await api.json("GET", f"{V1}/download/{uri}?timeout_ms=0")
    assert (status, answer["errcode"]) == (504, "M_NOT_YET_UPLOADED")
    waiting = asyncio.create_task(api.ask("GET", f"{V1}/download/{uri}", user="bob"))
    while not api.server.media.local._waiting:
        await asyncio.sleep(0.01)
    assert (await api.json("PUT", f"{UPLOAD}/{uri}", b"x", "bob"))[1]["errcode"] == "M_FORBIDDEN"
    assert (await api.json("PUT", f"{UPLOAD}/elsewhere.test/abc", b"x"))[1]["errcode"] == "M_FORBIDDEN"
    assert (await api.json("PUT", f"{UPLOAD}/{NAME}/abc", b"x"))[1]["errcode"] == "M_NOT_FOUND"
    assert (await api.json("PUT", f"{UPLOAD}/{uri}", b"content"))[0] == 200
    assert (await waiting)[1] == b"content"
    status, answer = await api.json("PUT", f"{UPLOAD}/{uri}", b"other")
    assert (status, answer["errcode"]) == (409, "M_CANNOT_OVERWRITE_MEDIA")
    assert (await api.ask("GET", f"{V1}/download/{uri}"))[1] == b"content"
    assert not api.server.media.local._waiting


async def test_m4_only_so_many_media_are_announced(api: Api) -> None:
    for _ in range(MAX_PENDING):
        assert (await api.json("POST", "/_matrix/media/v1/create"))[0] == 200
    status, answer = await api.json("POST", "/_matrix/media/v1/create")
    assert (status, answer["errcode"], answer["retry_after_ms"]) == (429, "M_LIMIT_EXCEEDED", 60_000)


async def test_m4_no_path_comes_from_a_media_id(api: Api) -> None:
    (api.folder / "lmserver-data").mkdir(exist_ok=True)
    (api.folder / "lmserver-data/signing.key").write_text("secret")
    for server in (NAME, "127.0.0.1", "..%2F..", "nowhere.test"):
        for name in ("a%2F..%2F..%2Fsigning.key", "..", "%00", "a.b", "x" * 300, "%E2%80%AE", "nope"):
            response, body = await api.ask("GET", f"{V1}/download/{server}/{name}?timeout_ms=0")
            assert response.status in (404, 502), (server, name)
            assert b"secret" not in body


async def test_a_damaged_file_is_not_served_as_whole(api: Api) -> None:
    data = os.urandom(600_000)
    uri = await api.upload(data)
    [path] = stored(api)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ClientPayloadError):
        await api.ask("GET", f"{V1}/download/{uri}")
    path.unlink()
    assert (await api.json("GET", f"{V1}/download/{uri}"))[0] == 404
