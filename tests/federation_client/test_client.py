"""Signed requests and bounded answers (D04 §Request Authentication; attacks F3, F9, F10, F12)."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl

import pytest
import trustme
from aiohttp import web

from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.client import MAX_RESPONSE, FederationClient, quote_path
from lmserver.federation_client.connector import PinnedHttp
from lmserver.federation_client.errors import BadResponse, RemoteError, Unreachable
from lmserver.federation_client.resolver import Resolver
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol import transport
from lmserver.protocol.errors import InvalidIdentifier, InvalidJson
from lmserver.protocol.signatures import SigningKey
from tests.federation_client.fakes import LOOPBACK, Clock, FakeDns, Loopback
from tests.kit.rooms import BOB, lpdu, member
from tests.kit.waiting import HANGS

KEY = SigningKey.from_seed("us.test", "ed25519:1", b"k" * 32)


class Peer:
    """Records requests and answers what it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections: set[object] = set()
        self.status = 200
        self.body = b'{"ok":true}'
        self.headers: dict[str, str] = {}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.connections.add(request.transport)
        self.requests.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def port(loopback: Loopback, peer: Peer) -> int:
    return await loopback.serve(peer, "hub.test")


def make_client(
    http: PinnedHttp, dns: FakeDns, clock: Clock, *plain: str, guard: AddressGuard = LOOPBACK
) -> FederationClient:
    dns.hosts |= {"hub.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    resolver = Resolver(dns, guard, http, clock=clock, wall=clock, well_known_port=1)
    return FederationClient("us.test", KEY, resolver, http, plain_http_servers=frozenset(plain))


@pytest.fixture
def client(loopback: Loopback, dns: FakeDns, clock: Clock) -> FederationClient:
    return make_client(loopback.http(), dns, clock)


def check_signed(request: tuple[str, str, dict[str, str], bytes], destination: str) -> None:
    method, uri, headers, body = request
    parsed = transport.parse_authorization([headers["Authorization"]], destination)
    assert (
        transport.check_request(parsed, method, uri, body or None, {"ed25519:1": KEY.verify_key}) == "us.test"
    )


async def test_put_is_signed_as_sent(client: FederationClient, peer: Peer, port: int) -> None:
    path = quote_path("_matrix", "federation", "v2", "send", "a/b c%?é")
    answer = await client.send_json("PUT", f"hub.test:{port}", path, content={"pdus": [], "b": "é"})
    assert answer == {"ok": True}
    method, uri, headers, body = peer.requests[0]
    assert (method, uri) == ("PUT", "/_matrix/federation/v2/send/a%2Fb%20c%25%3F%C3%A9")
    assert body == '{"b":"é","pdus":[]}'.encode()
    assert headers["Host"] == f"hub.test:{port}"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"].startswith("X-Matrix ")
    assert ", " not in headers["Authorization"]
    check_signed(peer.requests[0], f"hub.test:{port}")


async def test_get_signs_no_content_and_its_query(client: FederationClient, peer: Peer, port: int) -> None:
    query = [("event_id", "$a b/+"), ("v", "1"), ("v", "ü")]
    await client.send_json("GET", f"hub.test:{port}", quote_path("state", "!r:hub.test"), query=query)
    method, uri, _, body = peer.requests[0]
    assert (method, uri, body) == ("GET", "/state/!r:hub.test?event_id=%24a%20b%2F%2B&v=1&v=%C3%BC", b"")
    check_signed(peer.requests[0], f"hub.test:{port}")


def test_quote_path() -> None:
    assert quote_path("a", "$x-_~", "@u:h") == "/a/$x-_~/@u:h"
    assert quote_path("..", ".", "a.b") == "/%2E%2E/%2E/a.b"
    for segment in ("", "\ud800"):
        with pytest.raises(InvalidIdentifier):
            quote_path("a", segment)


async def test_dot_segments_reach_the_wire_as_signed(client: FederationClient, peer: Peer, port: int) -> None:
    await client.request("GET", f"hub.test:{port}", quote_path("a", "..", "b"))
    assert peer.requests[0][1] == "/a/%2E%2E/b"


async def test_content_without_canonical_form_is_not_sent(
    client: FederationClient, peer: Peer, port: int
) -> None:
    with pytest.raises(InvalidJson):
        await client.request("PUT", f"hub.test:{port}", "/x", content={"a": 1.5})
    assert not peer.requests


async def test_connections_are_reused(client: FederationClient, peer: Peer, port: int) -> None:
    for _ in range(5):
        await client.request("GET", f"hub.test:{port}", "/x")
    assert len(peer.connections) == 1


async def test_two_names_at_one_address_share_no_connection(
    loopback: Loopback, dns: FakeDns, clock: Clock
) -> None:
    peer = Peer()
    port = await loopback.serve(peer, "hub.test", "other.test")
    client = make_client(loopback.http(), dns, clock)
    await client.request("GET", f"hub.test:{port}", "/x")
    await client.request("GET", f"other.test:{port}", "/x")
    assert len(peer.connections) == 2
    assert [r[2]["Host"] for r in peer.requests] == [f"hub.test:{port}", f"other.test:{port}"]


async def test_redirects_are_not_followed(client: FederationClient, peer: Peer, port: int) -> None:
    peer.status, peer.headers = 307, {"Location": "/elsewhere"}
    assert (await client.request("GET", f"hub.test:{port}", "/x")).status == 307
    assert len(peer.requests) == 1


async def test_errors_of_the_peer(client: FederationClient, peer: Peer, port: int) -> None:
    peer.status = 429
    peer.body = b'{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":7}'
    with pytest.raises(RemoteError) as caught:
        await client.send_json("PUT", f"hub.test:{port}", "/x", content={})
    error = caught.value
    assert (error.status, error.errcode, error.error, error.retry_after_ms) == (
        429,
        "M_LIMIT_EXCEEDED",
        "slow",
        7,
    )
    assert not error.unknown_endpoint


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"errcode":"M_UNRECOGNIZED"}'])
async def test_unknown_endpoints_are_told_apart(
    client: FederationClient, peer: Peer, port: int, body: bytes
) -> None:
    peer.status, peer.body = 404, body
    with pytest.raises(RemoteError) as caught:
        await client.send_json("GET", f"hub.test:{port}", "/x")
    assert caught.value.unknown_endpoint


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":1.5}', b"\xff", b"[" * 10_000]
)
async def test_answers_that_are_not_strict_objects(
    client: FederationClient, peer: Peer, port: int, body: bytes
) -> None:
    peer.body = body
    with pytest.raises(BadResponse):
        await client.send_json("GET", f"hub.test:{port}", "/x")


async def test_f10_answers_are_bounded(client: FederationClient, peer: Peer, port: int) -> None:
    peer.body = json.dumps({"a": "x" * 1000}).encode()
    size = len(peer.body)
    await client.request("GET", f"hub.test:{port}", "/x", max_response=size)
    with pytest.raises(BadResponse, match="too large"):
        await client.request("GET", f"hub.test:{port}", "/x", max_response=size - 1)


async def test_f10_an_answer_of_too_many_values_is_not_parsed(
    client: FederationClient, peer: Peer, port: int
) -> None:
    """Ten megabytes of brackets held up everybody for seconds; a room's whole state is read as before."""
    peer.body = b"[" + (b"[" * 60 + b"]" * 60 + b",") * 10_000 + b"0]"
    with pytest.raises(BadResponse, match="too many values"):
        await client.request("GET", f"hub.test:{port}", "/x")
    event = lpdu(member("join", sender=BOB)).fields
    peer.body = json.dumps({"state": [event] * 8_000}, separators=(",", ":")).encode()
    response = await client.request("GET", f"hub.test:{port}", "/x")
    assert response.json["state"] == [event] * 8_000


async def test_f10_gzip_is_bounded_after_decompression(
    client: FederationClient, peer: Peer, port: int
) -> None:
    plain = json.dumps({"a": "x" * 1_000_000}).encode()
    peer.headers = {"Content-Encoding": "gzip"}
    peer.body = gzip.compress(plain)
    response = await client.request("GET", f"hub.test:{port}", "/x", max_response=len(plain))
    assert len(response.json["a"]) == 1_000_000
    with pytest.raises(BadResponse, match="too large"):
        await client.request("GET", f"hub.test:{port}", "/x", max_response=len(plain) - 1)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd"])
async def test_other_encodings_are_refused(
    client: FederationClient, peer: Peer, port: int, encoding: str
) -> None:
    peer.headers = {"Content-Encoding": encoding}
    with pytest.raises(BadResponse):
        await client.request("GET", f"hub.test:{port}", "/x")


@pytest.mark.parametrize(
    "change", [lambda b: b[:-3], lambda b: b + b"x", lambda b: b + b, lambda b: b"no gzip"]
)
async def test_broken_gzip(client: FederationClient, peer: Peer, port: int, change: object) -> None:
    peer.headers = {"Content-Encoding": "gzip"}
    peer.body = change(gzip.compress(peer.body))  # type: ignore[operator]
    with pytest.raises(BadResponse):
        await client.request("GET", f"hub.test:{port}", "/x")


async def raw_server(loopback: Loopback, answer: bytes, *, drip: bool = False) -> int:
    """A plain server that writes these bytes to whoever connects; `drip` repeats them for ever."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while drip:
                await writer.drain()
                await asyncio.sleep(0.001)
                writer.write(b"X-More: 1\r\n" if answer.endswith(b"\r\n") else b" ")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    loopback._stack.callback(server.close)
    return int(server.sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),  # endless headers
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000 + b"\r\n\r\n{}", False),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n{}", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", True),  # slow drip
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", False),  # cut short
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
    ],
)
async def test_f10_hostile_http(
    loopback: Loopback, dns: FakeDns, clock: Clock, answer: bytes, drip: bool
) -> None:
    port = await raw_server(loopback, answer, drip=drip)
    client = make_client(loopback.http(), dns, clock, f"hub.test:{port}")
    with pytest.raises((Unreachable, BadResponse)):
        async with asyncio.timeout(HANGS):
            await client.request("GET", f"hub.test:{port}", "/x", timeout=0.5)


async def test_plain_http_only_where_configured(
    loopback: Loopback, dns: FakeDns, clock: Clock, peer: Peer
) -> None:
    port = await loopback.serve(peer)
    with pytest.raises(Unreachable):
        await make_client(loopback.http(), dns, clock).request("GET", f"hub.test:{port}", "/x")
    assert not peer.requests
    configured = make_client(loopback.http(), dns, clock, f"hub.test:{port}")
    assert (await configured.request("GET", f"hub.test:{port}", "/x")).status == 200
    with pytest.raises(Unreachable):
        await configured.request("GET", f"other.test:{port}", "/x")


async def test_f10_deadline(loopback: Loopback, dns: FakeDns, clock: Clock) -> None:
    async def never(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(3)
        return web.Response()

    port = await loopback.serve(never, "hub.test")
    client = make_client(loopback.http(), dns, clock)
    with pytest.raises(Unreachable):
        await client.request("GET", f"hub.test:{port}", "/x", timeout=0.2)


async def refused(loopback: Loopback, dns: FakeDns, clock: Clock, port: int, peer: Peer) -> None:
    client = make_client(loopback.http(), dns, clock)
    with pytest.raises(Unreachable, match="^server could not be reached$"):
        await client.request("GET", f"hub.test:{port}", "/x")
    assert not peer.requests


async def test_f9_wrong_certificate_name(loopback: Loopback, dns: FakeDns, clock: Clock, peer: Peer) -> None:
    await refused(loopback, dns, clock, await loopback.serve(peer, "127.0.0.1", "other.test"), peer)


async def test_f9_unknown_authority(loopback: Loopback, dns: FakeDns, clock: Clock, peer: Peer) -> None:
    await refused(loopback, dns, clock, await loopback.serve(peer, "hub.test", authority=trustme.CA()), peer)


async def test_f9_tls_1_2(loopback: Loopback, dns: FakeDns, clock: Clock, peer: Peer) -> None:
    port = await loopback.serve(peer, "hub.test", newest=ssl.TLSVersion.TLSv1_2)
    await refused(loopback, dns, clock, port, peer)


async def test_f3_the_address_that_is_connected_to_is_checked(
    loopback: Loopback, dns: FakeDns, clock: Clock, peer: Peer, port: int
) -> None:
    """A resolver that lets everything through does not help: the connector checks its own sockets (F3)."""
    http = loopback.http(AddressGuard())
    client = make_client(http, dns, clock, guard=LOOPBACK)
    with pytest.raises(Unreachable):
        await client.request("GET", f"hub.test:{port}", "/x")
    assert not peer.requests


async def test_f3_dns_is_asked_once_for_check_and_connection(
    client: FederationClient, dns: FakeDns, peer: Peer, port: int
) -> None:
    await client.request("GET", f"hub.test:{port}", "/x")
    assert dns.asked == ["hub.test"]


async def test_own_name_is_not_asked(client: FederationClient) -> None:
    with pytest.raises(Unreachable):
        await client.request("GET", "us.test", "/x")


async def test_cookies_are_not_kept(client: FederationClient, peer: Peer, port: int) -> None:
    peer.headers = {"Set-Cookie": "a=b"}
    for _ in range(2):
        await client.request("GET", f"hub.test:{port}", "/x")
    assert "Cookie" not in peer.requests[1][2]


async def test_f10_only_a_join_may_be_answered_with_a_whole_state(
    client: FederationClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: dict[str, int] = {}

    async def answered(method: str, server: str, path: str, *, max_response: int, **_: object) -> object:
        allowed[path.split("/")[-2]] = max_response
        return {"event": {}, "state": []}

    monkeypatch.setattr(client, "send_json", answered)
    api = RoomApi(client)
    await api.send_join("hub.test", "I.1", "$x", {})
    await api.send_leave("hub.test", "I.1", "$x", {})
    await api.send_knock("hub.test", "I.1", "$x", {})
    await api.invite("hub.test", "I.1", "$x", {}, [])
    assert allowed.pop("send_join") > MAX_RESPONSE
    assert set(allowed.values()) == {MAX_RESPONSE} and len(allowed) == 3
