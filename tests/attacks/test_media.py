"""A peer's media: fetched whole or not at all, bounded, from nowhere we must not connect to (M2, M4, F1)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lmserver.federation_client import streaming
from lmserver.federation_client.connector import Target
from lmserver.federation_client.dns_lookup import AddressAnswer
from lmserver.media import files, outcomes, remote
from lmserver.media.multipart import Reader, Writer, boundary_of
from lmserver.media.thumbnails import Size
from lmserver.storage import media
from tests.evilpeer.arena import Arena
from tests.evilpeer.peer import STABLE, Received
from tests.kit.images import encoded, shape
from tests.kit.rooms import ALICE, EVIL, HUB

MAX = 200_000
CACHE = 400_000
HEAD = "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n"
MULTIPART = {"Content-Type": "multipart/mixed; boundary=b"}


@pytest.fixture
def config() -> dict[str, Any]:
    return {"media": {"max_remote_size": MAX, "remote_cache_size": CACHE}}


async def framed(data: bytes, content_type: str, disposition: str = "inline") -> web.Response:
    async def blocks() -> AsyncGenerator[bytes, None]:
        yield data

    writer = Writer(content_type, disposition)
    body = b"".join([block async for block in writer.body(blocks())])
    return web.Response(body=body, headers={"Content-Type": writer.content_type})


def answers(response: Callable[[], Awaitable[web.StreamResponse]]) -> Callable[[Received], Any]:
    async def answer(_: Received) -> web.StreamResponse:
        return await response()

    return answer


async def fetch(arena: Arena, media_id: str = "abc", server: str = EVIL) -> bytes:
    medium = await arena.victim.server.media.library.open(server, media_id, 0.0)
    return b"".join([block async for block in medium.body])


def stored(arena: Arena) -> list[Path]:
    folder = arena.victim.server.config.data_dir / "media"
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_peers_media_is_fetched_once_and_kept(arena: Arena) -> None:
    data = os.urandom(MAX)
    arena.evil.answers["media"] = answers(
        lambda: framed(data, "text/html", 'attachment; filename="a\u202e.html"')
    )
    assert await asyncio.gather(*(fetch(arena) for _ in range(20))) == [data] * 20
    assert await fetch(arena) == data
    [request] = arena.evil.requests("media")
    assert request.path == f"{STABLE}/v1/media/download/abc?timeout_ms=0"
    assert request.headers["Authorization"].startswith("X-Matrix ")
    found = await arena.victim.server.media.remote.find(EVIL, "abc", 0.0)
    assert (found.content_type, found.filename) == ("text/html", "a.html")


async def test_a_file_that_is_lost_is_fetched_again(arena: Arena) -> None:
    arena.evil.answers["media"] = answers(lambda: framed(b"content", "text/plain"))
    assert await fetch(arena) == b"content"
    [path] = stored(arena)
    path.unlink()
    assert await fetch(arena) == b"content"
    assert len(arena.evil.requests("media")) == 2


async def broken(text: str, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=text.encode(), headers=headers or MULTIPART, status=status)


async def test_m4_what_is_not_whole_is_never_kept(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short, too large, compressed, of another shape: an error, no file and no row."""
    monkeypatch.setattr(remote, "FAILURE_SECONDS", 0.0)
    wrong: dict[str, Callable[[], Awaitable[web.StreamResponse]]] = {
        "no end": lambda: broken(HEAD + "Content-Type: a/b\r\n\r\nhalf"),
        "no second part": lambda: broken("--b\r\n\r\n{}\r\n--b--"),
        "three parts": lambda: broken(HEAD + "\r\nx\r\n--b\r\n\r\ny\r\n--b--"),
        "not multipart": lambda: broken("x", {"Content-Type": "text/html"}),
        "no boundary": lambda: broken(HEAD, {"Content-Type": "multipart/mixed"}),
        "too large": lambda: framed(b"x" * (MAX + 1), "a/b"),
        "compressed": lambda: broken(HEAD + "\r\nx\r\n--b--", {**MULTIPART, "Content-Encoding": "gzip"}),
        "header bomb": lambda: broken(HEAD + "A: b\r\n" * 5000 + "\r\nx\r\n--b--"),
        "redirect": lambda: broken("", {"Location": "https://127.0.0.1/"}, 302),
        "error": lambda: broken("x" * 100_000, status=500),
        "error of no JSON": lambda: broken("[]", status=404),
        "lying error": lambda: broken('{"errcode":5,"error":{},"retry_after_ms":"x"}', status=400),
    }
    for name, answer in wrong.items():
        arena.evil.answers["media"] = answers(answer)
        with pytest.raises(outcomes.MediaError):
            await fetch(arena)
        assert stored(arena) == [], name
    assert await arena.db.fetchval("SELECT count(*) FROM remote_media") == 0
    arena.evil.answers["media"] = answers(lambda: framed(b"right", "a/b"))
    assert await fetch(arena) == b"right"


async def test_m4_a_body_that_ends_with_its_connection_is_not_whole(arena: Arena) -> None:
    whole = (HEAD + "\r\n").encode() + b"x" * 50_000 + b"\r\n--b--"

    async def cut(request: Received) -> web.StreamResponse:
        response = web.Response(body=whole[:30_000], headers=MULTIPART)
        response.content_length = 30_000
        response.force_close()
        return response

    arena.evil.answers["media"] = cut
    with pytest.raises(outcomes.Unavailable):
        await fetch(arena)
    assert stored(arena) == []


async def test_m4_a_peer_that_stops_in_the_middle_is_left(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow peer holds a fetch for so long, and its other fetches only by their number."""
    monkeypatch.setattr(streaming, "STALL_SECONDS", 0.3)
    release = asyncio.Event()

    async def stall() -> AsyncIterator[bytes]:
        yield (HEAD + "\r\n").encode()
        yield b"x" * 1000
        await release.wait()

    arena.evil.answers["media"] = answers(lambda: _body(stall()))
    results = await asyncio.gather(*(fetch(arena, f"m{n}") for n in range(8)), return_exceptions=True)
    release.set()
    assert [type(result) for result in results] == [outcomes.Unavailable] * 8
    assert stored(arena) == []


async def _body(blocks: AsyncIterator[bytes]) -> web.Response:
    return web.Response(body=blocks, headers=MULTIPART)


async def test_m4_only_so_many_fetches_wait_for_one_server(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAITING_FOR_EACH_SERVER", 2)
    release, now, most = asyncio.Event(), 0, 0

    async def slow(_: Received) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await release.wait()
        now -= 1
        return await framed(b"x", "a/b")

    arena.evil.answers["media"] = slow
    fetches = [asyncio.create_task(fetch(arena, f"m{n}")) for n in range(7)]
    refused, waiting = await asyncio.wait(fetches, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in refused] == [outcomes.Unavailable]
    while now < remote.FETCHES_FOR_EACH_SERVER:
        await asyncio.sleep(0.01)
    release.set()
    assert await asyncio.gather(*waiting) == [b"x"] * 6
    assert most == remote.FETCHES_FOR_EACH_SERVER


async def test_m4_a_failure_is_not_asked_for_again_at_once(arena: Arena) -> None:
    for _ in range(5):
        with pytest.raises(outcomes.MediaError):
            await fetch(arena)
    assert len(arena.evil.requests("media")) <= 2  # the new endpoint, then the old one


async def test_a_peer_of_the_old_days_is_asked_at_the_old_endpoint(arena: Arena) -> None:
    async def old(request: Received) -> web.StreamResponse:
        if "/_matrix/media/v3/" not in request.path:
            return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "?"}, status=404)
        return web.Response(body=b"old", headers={"Content-Type": "image/png"})

    arena.evil.answers["media"] = old
    assert await fetch(arena) == b"old"
    assert arena.evil.received[-1].path.startswith(f"/_matrix/media/v3/download/{EVIL}/abc?")


async def test_m4_the_cache_has_an_end(arena: Arena) -> None:
    """What was used longest ago goes, file and row."""
    for number in range(8):
        arena.evil.answers["media"] = answers(lambda n=number: framed(bytes([n]) * (MAX // 2), "a/b"))
        await fetch(arena, f"m{number}")
        assert sum(path.stat().st_size for path in stored(arena)) <= CACHE
    rows = await arena.db.fetch("SELECT media_id FROM remote_media ORDER BY media_id")
    assert [row["media_id"] for row in rows] == ["m4", "m5", "m6", "m7"]


async def test_m4_a_file_two_media_share_stays_for_the_other(arena: Arena) -> None:
    arena.evil.answers["media"] = answers(lambda: framed(b"s" * MAX, "a/b"))
    await fetch(arena, "first")
    await fetch(arena, "second")
    arena.evil.answers["media"] = answers(lambda: framed(b"t" * MAX, "a/b"))
    await fetch(arena, "third")
    arena.evil.answers.clear()
    assert await fetch(arena, "second") == b"s" * MAX


PLACES = {"metadata.test": "169.254.169.254", "private.test": "10.0.0.1", "mapped.test": "::ffff:10.0.0.1",
          "nat64.test": "64:ff9b::a00:1", "shared.test": "100.64.0.1", "any.test": "0.0.0.0"}  # fmt: skip
LOCATIONS = [
    "http://evil.test:PORT/x", "https://127.0.0.1/x", "https://169.254.169.254/latest", "https://[::1]/x",
    "https://2130706433/", "https://0x7f.1/", "file:///etc/passwd", "ftp://evil.test/x", "//evil.test/x", "/x", "",
    "https://user:pw@evil.test/x", "https://evil.test:22/", "https://evil.test:99999/", "https://evil.test/\u00e4",
    "https://" + "x" * 5000, "javascript:alert(1)", *(f"https://{name}/x" for name in PLACES),
]  # fmt: skip


async def test_f1_a_location_leads_only_where_servers_are(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private addresses, other schemes and ports are not connected to, whatever the peer says."""
    client = arena.victim.server.client
    known = arena.network.addresses

    async def addresses(host: str) -> AddressAnswer:
        return AddressAnswer((PLACES[host],), 60) if host in PLACES else await known(host)

    opened: list[Target] = []
    request = client._http.request

    def watched(method: str, target: Target, uri: str, **more: Any) -> Any:
        opened.append(target)
        return request(method, target, uri, **more)

    monkeypatch.setattr(arena.network, "addresses", addresses)
    monkeypatch.setattr(client._http, "request", watched)
    # The peer is reached over plain HTTP here; where it points to shall not be.
    monkeypatch.setattr(client, "is_plain", lambda server: False)
    for number, location in enumerate(LOCATIONS):
        place = location.replace("PORT", str(arena.network.ports[EVIL]))
        arena.evil.answers["media"] = answers(lambda place=place: _at(place))
        with pytest.raises(outcomes.Unavailable):
            await fetch(arena, f"m{number}")
        assert len(opened) == number + 1, location
    assert stored(arena) == []


async def _at(location: str) -> web.Response:
    return web.Response(body=f"{HEAD}Location: {location}\r\n\r\n\r\n--b--".encode(), headers=MULTIPART)


async def test_a_location_is_followed_without_our_signature(arena: Arena) -> None:
    port = arena.network.ports[EVIL]

    async def answer(request: Received) -> web.StreamResponse:
        if request.path == "/cdn/file?sig=1":
            return web.Response(body=b"from elsewhere", headers={"Content-Type": "image/png"})
        return await _at(f"http://{EVIL}:{port}/cdn/file?sig=1")

    arena.evil.answers |= {"media": answer, "cdn": answer}
    assert await fetch(arena) == b"from elsewhere"
    assert "Authorization" not in arena.evil.received[-1].headers


async def test_m4_files_a_crash_left_without_a_row_go(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    arena.evil.answers["media"] = answers(lambda: framed(b"kept", "a/b"))
    await fetch(arena, "kept")
    arena.evil.answers["media"] = answers(lambda: framed(b"lost", "a/b"))
    await fetch(arena, "lost")
    await arena.db.execute("DELETE FROM remote_media WHERE media_id = 'lost'")
    await arena.victim.server.media.remote.tidy()
    assert len(stored(arena)) == 2  # it may be one that is being fetched just now
    monkeypatch.setattr(files, "STALE_SECONDS", -60.0)
    await arena.victim.server.media.remote.tidy()
    assert [path.read_bytes() for path in stored(arena)] == [b"kept"]


async def test_copies_that_nobody_asks_for_go(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one that an operator hides, which would come back to be seen."""
    store, now = arena.victim.server.media.remote, arena.victim.server.media.remote._clock()
    for number, media_id in enumerate(("old", "hidden", "used")):
        arena.evil.answers["media"] = answers(lambda n=number: framed(bytes([n]), "a/b"))
        await fetch(arena, media_id)
    assert await media.quarantine_cached(arena.db, EVIL, "hidden", hidden=True)
    monkeypatch.setattr(store, "_clock", lambda: now + 11 * 86_400_000)
    assert await fetch(arena, "used") == b"\2"
    monkeypatch.setattr(store, "_keep_ms", 10 * 86_400_000)
    await store.tidy()
    rows = [copy.media_id for copy, _ in await media.list_cached(arena.db, EVIL, 10)]
    assert rows == ["hidden", "used"]
    assert [copy.media_id for copy, _ in await media.list_cached(arena.db, EVIL, 10, "hidden")] == ["used"]
    assert len(stored(arena)) == 2
    library = arena.victim.server.media.library
    assert await library.delete(EVIL, "used")
    assert not await library.delete(EVIL, "used")
    assert len(stored(arena)) == 1


# -- what peers may ask of us -----------------------------------------------------------------------


async def upload(arena: Arena, data: bytes, content_type: str = "image/png", name: str | None = None) -> str:
    async def body() -> AsyncIterator[bytes]:
        yield data

    return await arena.victim.server.media.local.upload(ALICE, body(), content_type, name)


async def ask(arena: Arena, path: str) -> tuple[int, dict[str, str], bytes]:
    http = arena.evil._http
    assert http is not None
    headers = {"Authorization": arena.evil.authorization("GET", path, HUB, None)}
    async with http.get(f"http://127.0.0.1:{arena.victim.port}{path}", headers=headers) as response:
        return response.status, dict(response.headers), await response.read()


async def test_our_media_is_served_to_servers_as_multipart(arena: Arena) -> None:
    data = encoded(900, 600)
    media_id = await upload(arena, data, "image/png", "ä.png")
    expected = {
        f"download/{media_id}": ("image/png", "inline; filename*=utf-8''%C3%A4.png"),
        f"thumbnail/{media_id}?width=32&height=32&method=crop": ("image/jpeg", "inline"),
    }
    for path, (kind, disposition) in expected.items():
        status, headers, body = await ask(arena, f"{STABLE}/v1/media/{path}")
        assert status == 200
        assert int(headers["Content-Length"]) == len(body)

        async def pieces(body: bytes = body) -> AsyncIterator[bytes]:
            yield body

        reader = Reader(boundary_of(headers["Content-Type"]), pieces())
        assert await reader.second_part() == {"content-type": kind, "content-disposition": disposition}
        got = b"".join([chunk async for chunk in reader.content()])
        if kind == "image/png":
            assert got == data
        else:
            assert shape(got) == ("JPEG", (32, 32))


async def test_m4_peers_get_only_what_was_uploaded_here(arena: Arena) -> None:
    arena.evil.answers["media"] = answers(lambda: framed(b"a copy", "a/b"))
    await fetch(arena, "copy")
    for media_id in ("copy", "nope", "..%2Fx", "%00", "a.b", "x" * 300):
        status, answer = await arena.ask("GET", f"{STABLE}/v1/media/download/{media_id}?timeout_ms=0")
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), media_id
    media_id = await upload(arena, b"x", "text/html")
    assert (await arena.ask("GET", f"{STABLE}/v1/media/download/{media_id}?timeout_ms=-1"))[0] == 400
    for query, errcode in [
        ("width=1&height=1", "M_UNKNOWN"), ("width=0&height=1", "M_INVALID_PARAM"),
        ("width=1&height=1&method=melt", "M_INVALID_PARAM"), ("width=1&height=1&animated=x", "M_INVALID_PARAM"),
    ]:  # fmt: skip
        status, answer = await arena.ask("GET", f"{STABLE}/v1/media/thumbnail/{media_id}?{query}")
        assert (status, answer["errcode"]) == (400, errcode)


async def test_thumbnails_of_a_peers_image_are_made_here_and_go_with_it(arena: Arena) -> None:
    """One fetch, one decoding; what thumbnails take counts for the cache, and a hidden copy is not fetched."""
    image = encoded(900, 600)
    arena.evil.answers["media"] = answers(lambda: framed(image, "image/png"))
    library, db = arena.victim.server.media.library, arena.victim.server.db
    sizes = [Size(96, 96, crop=True), Size(320, 240, crop=False)]
    found = await asyncio.gather(
        *(library.thumbnail(EVIL, "abc", 0.0, size, animated=False) for size in sizes * 5)
    )
    bodies = [b"".join([block async for block in medium.body]) for medium in found]
    assert [shape(body)[1] for body in bodies[:2]] == [(96, 96), (320, 213)]
    assert len(set(bodies)) == 2
    assert len(arena.evil.requests("media")) == 1
    assert await media.cached_bytes(db) == len(image) + len(bodies[0]) + len(bodies[1])
    assert len(stored(arena)) == 3
    assert await media.quarantine_cached(db, EVIL, "abc", hidden=True)
    with pytest.raises(outcomes.NotFound):
        await library.thumbnail(EVIL, "abc", 0.0, sizes[0], animated=False)
    assert await media.quarantine_cached(db, EVIL, "abc", hidden=False)
    for number in range(8):
        arena.evil.answers["media"] = answers(lambda n=number: framed(bytes([n]) * (MAX // 2), "a/b"))
        await fetch(arena, f"m{number}")
    assert not [path for path in stored(arena) if "." in path.name]
