"""Previews of web pages: what is told, and where the server lets itself be led (attacks M5, F1, F3, F5, F10, F12)."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.composition import Server, assemble
from lmserver.config import parse_config
from lmserver.federation_client import web_pages
from lmserver.federation_client.dns_lookup import AddressAnswer, SrvAnswer
from lmserver.federation_client.errors import NameNotFound, Unreachable
from lmserver.media import url_previews
from lmserver.storage.database import Database
from tests.kit.images import encoded, png_claiming, shape
from tests.kit.rooms import key_of

NAME = "hub.test"
PREVIEW = "/_matrix/client/v1/media/preview_url"
IMAGE = encoded(400, 300)
MAX_IMAGE = 100_000
PLACES = {
    "page.test": ["127.0.0.1"],
    "private.test": ["10.0.0.1"], "inside.test": ["127.0.0.2"], "metadata.test": ["169.254.169.254"],
    "mapped.test": ["::ffff:127.0.0.2"], "nat64.test": ["64:ff9b::a00:1"], "denied.test": ["127.0.0.1", "127.0.0.3"],
}  # fmt: skip


class Web:
    """Names and the one site behind them; what each path answers."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[web.Request] = []
        self.looked_up: list[str] = []
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.site = TestServer(app, host="127.0.0.1")

    @property
    def root(self) -> str:
        return f"http://page.test:{self.site.port}"

    def page(self, html: str, path: str = "/", **headers: str) -> str:
        """The page's URL."""
        kind = {"Content-Type": "text/html; charset=utf-8", **headers}
        self.answers[path] = lambda: web.Response(body=html.encode(), headers=kind)
        return self.root + path

    def image(self, data: bytes, path: str) -> str:
        self.answers[path] = lambda: web.Response(body=data, headers={"Content-Type": "image/png"})
        return self.root + path

    def redirect(self, place: str, path: str) -> str:
        self.answers[path] = lambda: web.Response(status=302, headers={"Location": place})
        return self.root + path

    async def addresses(self, host: str) -> AddressAnswer:
        self.looked_up.append(host)
        if host not in PLACES:
            raise NameNotFound("no such name")
        return AddressAnswer(tuple(PLACES[host]), 60)

    async def srv(self, name: str) -> SrvAnswer:
        raise NameNotFound("no such name")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        answer = self.answers.get(request.path)
        if answer is None:
            return web.Response(status=404)
        made = answer()
        return made if isinstance(made, web.StreamResponse) else await made


class Api:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = TestClient(TestServer(server.client_app))
        self.token = ""

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", **headers}
        async with self.http.get(URL(path, encoded=True), headers=headers) as response:
            return response.status, await response.read()

    async def preview(self, url: str, **headers: str) -> tuple[int, Any]:
        status, body = await self.get(f"{PREVIEW}?url={quote(url, safe='')}", **headers)
        return status, json.loads(body)

    async def refused(self, url: str) -> None:
        """Whatever is wrong, the answer is the same."""
        assert await self.preview(url) == (
            502, {"errcode": "M_UNKNOWN", "error": "There is no preview of this URL"},
        ), url  # fmt: skip


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Web]:
    made = Web()
    await made.site.start_server()
    assert made.site.port is not None
    monkeypatch.setattr(web_pages, "PORTS", frozenset((80, 443, made.site.port)))
    yield made
    await made.site.close()


@pytest.fixture
async def api(db: Database, tmp_path: Path, world: Web) -> AsyncIterator[Api]:
    config = parse_config(
        {
            "server_name": NAME,
            "registration": {"mode": "open"},
            "url_previews": {
                "enabled": True, "max_image_size": MAX_IMAGE, "timeout": 2, "cache_size": 4 * len(IMAGE),
                "allowed_networks": ["127.0.0.1/32"], "denied_networks": ["127.0.0.3/32"],
            },
            "limits": {"url_preview": {"per_second": 0.001, "burst": 200}},
        },
        tmp_path,
    )  # fmt: skip
    made = Api(assemble(config, db, key_of(NAME), dns=world))
    await made.http.start_server()
    body = {"username": "alice", "password": "a long password", "auth": {"type": "m.login.dummy"}}
    async with made.http.post("/_matrix/client/v3/register", json=body) as response:
        made.token = (await response.json())["access_token"]
    yield made
    await made.http.close()
    await made.server.close()


async def media_rows(db: Database) -> int:
    return int(await db.fetchval("SELECT count(*) FROM local_media"))


async def test_a_page_says_what_it_is_and_its_image_is_a_medium(api: Api, world: Web) -> None:
    url = world.page(
        "<head><meta property=og:title content=' A\u202e\n title '><title>no</title>"
        "<meta name=description content='Some &amp; <b>'><meta property=og:image content='/i.png'></head>"
    )
    world.image(IMAGE, "/i.png")
    answers = await asyncio.gather(*(api.preview(url) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    told = answers[0][1]
    mxc = told.pop("og:image")
    assert told == {
        "og:title": "A title", "og:description": "Some & <b>", "og:image:type": "image/png",
        "og:image:width": 400, "og:image:height": 300, "matrix:image:size": len(IMAGE),
    }  # fmt: skip
    assert [request.path for request in world.asked] == ["/", "/i.png"]
    assert "Authorization" not in world.asked[0].headers
    assert "Accept-Language" not in world.asked[0].headers
    place = mxc.removeprefix("mxc://")
    assert (await api.get(f"/_matrix/client/v1/media/download/{place}"))[1] == IMAGE
    status, small = await api.get(
        f"/_matrix/client/v1/media/thumbnail/{place}?width=32&height=32&method=crop"
    )
    assert (status, shape(small)[1]) == (200, (32, 32))
    await api.preview(url, **{"Accept-Language": "de, en;q=0.5"})
    assert world.asked[2].headers["Accept-Language"] == "de, en;q=0.5"
    await api.preview(url, **{"Accept-Language": "<script>"})
    assert len(world.asked) == 4


async def test_pages_that_say_little(api: Api, world: Web) -> None:
    heading = world.page("<body><script>x</script><h1>Big</h1><p> </p><p>First <b>words</b>.</p>", "/heading")
    assert (await api.preview(heading))[1] == {"og:title": "Big", "og:description": "First words ."}
    latin = "<meta charset=iso-8859-1><title>caf\u00e9</title>".encode("latin-1")
    world.answers["/latin"] = lambda: web.Response(body=latin, headers={"Content-Type": "text/html"})
    assert (await api.preview(world.root + "/latin"))[1] == {"og:title": "caf\u00e9"}
    for charset in ("hex", "no-such", "utf-16", "\u00e4"):
        world.answers["/odd"] = lambda c=charset: web.Response(
            body=b"<title>x</title>", headers={"Content-Type": f"text/html; charset={c}"}
        )
        assert (await api.preview(f"{world.root}/odd?{charset}"))[0] == 200
    world.answers["/pdf"] = lambda: web.Response(body=b"%PDF", headers={"Content-Type": "application/pdf"})
    assert await api.preview(world.root + "/pdf") == (200, {})
    picture = (await api.preview(world.image(IMAGE, "/picture")))[1]
    assert (picture["og:image:width"], picture["matrix:image:size"]) == (400, len(IMAGE))
    moved = world.redirect("/heading", "/moved")
    assert (await api.preview(moved))[1]["og:title"] == "Big"


async def test_what_is_asked_for_wrongly(api: Api) -> None:
    for query, errcode in [("", "M_MISSING_PARAM"), ("?url=", "M_MISSING_PARAM"),
                           ("?url=http://page.test&ts=x", "M_INVALID_PARAM")]:  # fmt: skip
        status, body = await api.get(PREVIEW + query)
        assert (status, json.loads(body)["errcode"]) == (400, errcode)
    api.token = ""
    assert (await api.get(PREVIEW + "?url=http://page.test"))[0] == 401


NOWHERE = [
    "http://10.0.0.1/", "http://127.0.0.1/", "http://[::1]/", "http://2130706433/", "http://0x7f.1/", "http://127.1/",
    "http://localhost/", "http://user:pw@page.test/", "http://user@page.test/", "ftp://page.test/", "file:///etc/passwd",
    "gopher://page.test/", "javascript:alert(1)", "data:text/html,x", "//page.test/", "/", "x", "http://", "http:///x",
    "http://page.test:22/", "http://page.test:8008/", "http://page.test:99999/", "http://page.test\\@private.test/",
    "http://" + "a" * 3000 + ".test/", "http://" + "\u00e4" * 400 + ".test/", "http://page.test/" + "x" * 3000,
    "http://page.test/\r\nHost: x", "http://\u2460\u2461\u2466.0.0.1/", "http://page.test\0.x/",
]  # fmt: skip


async def test_m5_f1_f4_urls_that_are_not_fetched(api: Api, world: Web) -> None:
    """Addresses, other schemes and ports, credentials, and what is no URL: nobody is even looked up."""
    for url in NOWHERE:
        await api.refused(url)
    assert [name for name in world.looked_up if name != "page.test"] == []
    assert world.asked == []


def test_q5_a_long_name_is_refused_before_it_is_encoded() -> None:
    """Encoding names takes more time than they are long; a text that is too long is not even parsed."""
    started = time.thread_time()
    for name in ("\u00e4" * 100_000, "\u0661" * 1900, ".".join(["\u00e4"] * 900), "xn--" + "9" * 1900):
        with pytest.raises(Unreachable):
            web_pages.parsed(f"http://{name}.test/")
    assert time.thread_time() - started < 0.2


async def test_m5_f1_f5_pages_do_not_lead_inside(api: Api, world: Web) -> None:
    """Names of private addresses, and redirects and images that lead to them or in circles."""
    port = world.site.port
    for name in PLACES:
        if name not in ("page.test", "denied.test"):
            await api.refused(f"http://{name}:{port}/")
            await api.refused(world.redirect(f"http://{name}:{port}/", f"/to-{name}"))
            page = f"<title>x</title><meta property=og:image content='http://{name}:{port}/secret.png'>"
            assert await api.preview(world.page(page, f"/image-{name}")) == (200, {"og:title": "x"})
    for number, place in enumerate(("http://127.0.0.1/", "file:///etc/passwd", "http://page.test:22/", "")):
        await api.refused(world.redirect(place, f"/r{number}"))
    await api.refused(world.redirect("/circle", "/circle"))
    assert len([request for request in world.asked if request.path == "/circle"]) == 6
    assert not [request for request in world.asked if "secret" in request.path]
    # Of two addresses the denied one is not connected to.
    world.page("<title>there</title>", "/there")
    assert (await api.preview(f"http://denied.test:{port}/there"))[1] == {"og:title": "there"}


async def test_m5_f3_the_address_that_was_checked_is_connected_to(
    api: Api, world: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to the inside the second time is looked up once for each request."""
    url = world.page("<title>x</title>", "/rebound")
    answers = iter((["127.0.0.1"], ["127.0.0.2"]))

    async def rebinding(_: str) -> AddressAnswer:
        return AddressAnswer(tuple(next(answers)), 0)

    monkeypatch.setattr(world, "addresses", rebinding)
    assert (await api.preview(url))[0] == 200
    await api.refused(url + "?again")


async def test_m5_f10_pages_and_images_without_end(api: Api, world: Web, db: Database) -> None:
    """Too large, too slow, compressed, or no image: no preview, or one without an image; nothing is kept."""

    async def endless() -> AsyncIterator[bytes]:
        yield b"<title>long</title>"
        while True:
            yield b"words " * 10_000

    release = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield b"<title>slow</title>"
        await release.wait()

    html = {"Content-Type": "text/html"}
    world.answers |= {
        "/endless": lambda: web.Response(body=endless(), headers=html),
        "/silent": lambda: web.Response(body=silent(), headers=html),
        "/zip": lambda: web.Response(
            body=gzip.compress(bytes(10_000_000)), headers={**html, "Content-Encoding": "gzip"}
        ),
        "/error": lambda: web.Response(body=b"<title>x</title>", status=500, headers=html),
    }
    assert (await api.preview(world.root + "/endless"))[1]["og:title"] == "long"
    for path in ("/silent", "/zip", "/error"):
        await api.refused(world.root + path)
    for number, data in enumerate((bytes(MAX_IMAGE + 1), b"<svg/>", png_claiming(60_000, 60_000), b"")):
        image = world.image(data, f"/bad{number}.png")
        await api.refused(image)
        page = world.page(f"<title>x</title><meta property=og:image content='{image}'>", f"/with{number}")
        assert await api.preview(page) == (200, {"og:title": "x"})
    deep = world.page("<div>" * 100_000 + "<title>deep</title>", "/deep")
    assert (await api.preview(deep))[0] in (200, 502)
    many = world.page("<meta name=x content=y>" * 40_000 + "<title>many</title>", "/many")
    assert (await api.preview(many))[1] == {"og:title": "many"}
    release.set()
    assert await media_rows(db) == 0


async def test_m5_nothing_recurs(api: Api, world: Web) -> None:
    """A page whose image is itself, oEmbed and frames: one page and one image are asked for."""
    url = world.root + "/self"
    world.page(
        f"<title>x</title><meta property=og:image content='{url}'><iframe src='/frame'></iframe>"
        f"<link rel=alternate type=application/json+oembed href='{world.root}/oembed'>"
        f"<meta http-equiv=refresh content='0;url={world.root}/elsewhere'>", "/self"
    )  # fmt: skip
    assert await api.preview(url) == (200, {"og:title": "x"})
    assert [request.path for request in world.asked] == ["/self", "/self"]


async def test_previews_are_kept_for_a_while_and_so_many(
    api: Api, world: Web, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    previews = api.server.media.previews
    assert previews is not None
    await api.refused(world.root + "/missing")
    await api.refused(world.root + "/missing")
    assert len(world.asked) == 1
    for number in range(7):
        await api.preview(world.image(IMAGE[:-12] + bytes([number]) + IMAGE[-12:], f"/i{number}"))
    assert await media_rows(db) <= 4
    count = len(world.asked)
    assert (await api.preview(world.root + "/i6"))[0] == 200
    assert len(world.asked) == count
    now = previews._clock()
    monkeypatch.setattr(previews, "_clock", lambda: now + url_previews.KEEP_MS + 1)
    before = await media_rows(db)
    assert (await api.preview(world.root + "/i6"))[0] == 200
    assert (len(world.asked), await media_rows(db)) == (count + 1, before)
    monkeypatch.setattr(previews, "_clock", lambda: now + 3 * url_previews.KEEP_MS + url_previews.GRACE_MS)
    await api.server.media.local.keep_image(_bytes(b"lost"), _text)  # a crash came before its row
    await previews.tidy()
    assert await media_rows(db) == 0
    assert await db.fetchval("SELECT count(*) FROM url_previews") == 0


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _text(_: Path) -> str:
    return "text/plain"


async def test_m5_a_user_gets_so_many(api: Api, world: Web) -> None:
    url = world.page("<title>x</title>")
    statuses = [(await api.preview(url))[0] for _ in range(201)]
    assert statuses == [200] * 200 + [429]
