"""Attacks X: requests that are not what their signature is for, over real HTTP."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

import aiohttp
import pytest
from yarl import URL

from lmserver.protocol.signatures import SigningKey
from tests.evilpeer.arena import Arena
from tests.evilpeer.peer import UNSTABLE
from tests.kit.rooms import EVIL, HUB, MALLORY, PARTICIPANT, key_of, lpdu, message, now

PATH = f"{UNSTABLE}/send/x"
BODY = b'{"pdus":[]}'

Make = Callable[[Arena], str | list[str]]


def good(arena: Arena, *, method: str = "PUT", path: str = PATH, to: str = HUB, body: bytes = BODY) -> str:
    return arena.evil.authorization(method, path, to, body)


def instead(old: str, new: str) -> Make:
    """The good header with something replaced."""

    def make(arena: Arena) -> str:
        header = good(arena)
        assert old in header
        return header.replace(old, new)

    return make


REFUSED: dict[str, Make] = {
    "x1_other_destination": lambda a: good(a, to="other.test"),
    "x1_other_destination_renamed": lambda a: good(a, to="other.test").replace("other.test", HUB),
    "x2_no_destination": instead(f'destination="{HUB}",', ""),
    "x2_empty_destination": instead(f'destination="{HUB}"', 'destination=""'),
    "x4_other_path": lambda a: good(a, path=PATH + "2"),
    "x4_other_method": lambda a: good(a, method="POST"),
    "x4_other_query": lambda a: good(a, path=PATH + "?a=1"),
    "x4_other_escaping": lambda a: good(a, path=PATH.replace("send", "s%65nd")),
    "x6_two_origins": lambda a: [
        good(a),
        a.peers[PARTICIPANT].authorization("PUT", PATH, HUB, BODY),
    ],
    "x6_one_good_of_two": lambda a: [good(a), good(a, path=PATH + "2")],
    "x6_two_origins_in_one": instead('origin="evil.test"', 'origin="participant.test",origin="evil.test"'),
    "x7_duplicate_origin": lambda a: good(a) + ',origin="evil.test"',
    "x7_duplicate_in_upper_case": lambda a: good(a) + ',ORIGIN="evil.test"',
    "x7_both_signatures": lambda a: good(a) + ",signature=" + good(a).rpartition("sig=")[2],
    "x7_open_quote": lambda a: good(a) + ',x="',
    "x7_no_scheme": instead("X-Matrix ", ""),
    "x7_other_scheme": instead("X-Matrix", "Bearer"),
    "x7_nothing": lambda a: "X-Matrix",
    "x8_other_body": lambda a: good(a, body=b'{"pdus":[1]}'),
    "x8_no_body": lambda a: a.evil.authorization("PUT", PATH, HUB, None),
    "x11_case": instead('origin="evil.test"', 'origin="EVIL.test"'),
    "x11_port": instead('origin="evil.test"', 'origin="evil.test:8448"'),
    "x11_dot": instead('origin="evil.test"', 'origin="evil.test."'),
    "x12_ipv4": instead('origin="evil.test"', 'origin="127.0.0.1"'),
    "x12_ipv4_with_port": instead('origin="evil.test"', 'origin="127.0.0.1:8448"'),
    "x12_ipv6": instead('origin="evil.test"', 'origin="[::1]"'),
    "x12_short_ipv4": instead('origin="evil.test"', 'origin="127.1"'),
    "our_own_name": lambda a: a.evil.authorization("PUT", PATH, HUB, BODY, key_of(HUB)),
    "another_key": instead("ed25519:t1", "ed25519:t2"),
    "another_algorithm": instead("ed25519:t1", "rsa:t1"),
}


@pytest.mark.parametrize("name", list(REFUSED))
async def test_x1_x2_x4_x6_x7_x8_x11_x12_a_signature_is_for_one_request_of_one_server(
    arena: Arena, name: str
) -> None:
    made = REFUSED[name](arena)
    headers = [made] if isinstance(made, str) else made
    status, answer = await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, *headers)
    assert (status, answer["errcode"]) == (401, "M_FORBIDDEN")
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY))[0] == 401
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, good(arena)))[0] == 200


@pytest.mark.parametrize(
    "make",
    [
        instead("sig=", "signature="),
        instead(",", " \t, ,"),
        instead('origin="evil.test"', "OriGin = evil.test"),
        instead('origin="evil.test"', 'x="a,b\\"c",origin="evil.test"'),
        instead('origin="evil.test"', 'origin="\\evil\\.test"'),
        instead("X-Matrix", "x-matrix"),
    ],
)
async def test_x7_what_the_grammar_allows_is_taken(arena: Arena, make: Make) -> None:
    header = make(arena)
    assert isinstance(header, str)
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, header))[0] == 200


async def test_x7_a_header_without_end_is_refused(arena: Arena) -> None:
    header = good(arena) + ',x="' + "a" * 65536 + '"'
    url = URL(f"http://127.0.0.1:{arena.victim.port}{PATH}", encoded=True)
    headers = {"Authorization": header}
    async with aiohttp.ClientSession() as http, http.put(url, data=BODY, headers=headers) as response:
        assert response.status in (400, 401, 431)
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, good(arena)))[0] == 200


async def test_x8_the_signature_covers_what_the_body_means(arena: Arena) -> None:
    """Other bytes of the same value are the same; what two parsers may read differently is refused."""
    spaced = b'{ "pdus" : [ ] }'
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, spaced, good(arena)))[0] == 200
    twice = b'{"pdus":[],"pdus":[]}'
    for signed in (BODY, twice):
        status, answer = await arena.evil.ask_raw(HUB, "PUT", PATH, twice, good(arena, body=signed))
        assert (status, answer["errcode"]) == (400, "M_NOT_JSON")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-gzip", "gzip, identity"])
async def test_x8_a_compressed_body_is_refused_unread(arena: Arena, encoding: str) -> None:
    packed = gzip.compress(BODY)
    url = URL(f"http://127.0.0.1:{arena.victim.port}{PATH}", encoded=True)
    for data, signed in ((packed, BODY), (BODY, BODY)):
        headers = {"Authorization": good(arena, body=signed), "Content-Encoding": encoding}
        async with aiohttp.ClientSession() as http, http.put(url, data=data, headers=headers) as response:
            assert response.status == 415


async def test_x3_a_replayed_request_gets_the_stored_answer(arena: Arena) -> None:
    sent = lpdu(message(sender=MALLORY))
    first = await arena.send("x3", [sent.fields])
    assert first[0] == 200
    assert await arena.send("x3", [sent.fields]) == first
    assert await arena.send("x3", []) == first


async def raw(arena: Arena, target: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", arena.victim.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.split(b" ")[1]


@pytest.mark.parametrize("target", ["//_matrix/key/v2/server", "/_matrix/key/v2/server/", "/_matrix/key//v2/server",
                                    "/_matrix/key/v2/%2e%2e/v2/server", "/_matrix%2Fkey/v2/server",
                                    "/_matrix/key/v2/./server", "http://evil.test/_matrix/key/v2/server",
                                    "http:///_matrix/key/v2/server", "*"])  # fmt: skip
async def test_x9_only_declared_paths_in_origin_form_exist(arena: Arena, target: str) -> None:
    assert await raw(arena, target) in (b"404", b"400")
    assert await raw(arena, "/_matrix/key/v2/server") == b"200"


async def test_x9_what_is_signed_are_the_bytes_on_the_wire(arena: Arena) -> None:
    """Two spellings of one path are two requests."""
    event_id = "$" + "a" * 43
    plain, escaped = f"{UNSTABLE}/event/{event_id}", f"{UNSTABLE}/event/%24{'a' * 43}"
    for path in (plain, escaped):
        assert (await arena.evil.ask(HUB, "GET", path))[0] == 404
    assert (await arena.evil.ask(HUB, "GET", plain, signed=escaped))[0] == 401


async def test_k4_a_request_signed_with_an_old_key_is_refused(arena: Arena) -> None:
    old = SigningKey.from_seed(EVIL, "ed25519:old", bytes([7] * 32))
    arena.evil.old_keys["ed25519:old"] = (old, now())
    header = arena.evil.authorization("PUT", PATH, HUB, BODY, old)
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, header))[0] == 401
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, good(arena)))[0] == 200


@pytest.mark.parametrize("config", [{"limits": {"new_servers": {"per_second": 0.01, "burst": 5}}}])
async def test_k9_made_up_origins_make_us_ask_only_so_many_servers(arena: Arena) -> None:
    """A server that we know is heard all the same, from the same address."""
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, good(arena)))[0] == 200
    statuses = []
    for number in range(10):
        header = good(arena).replace('origin="evil.test"', f'origin="s{number}.test"')
        statuses.append((await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, header))[0])
    assert statuses == [401] * 4 + [429] * 6
    assert (await arena.evil.ask_raw(HUB, "PUT", PATH, BODY, good(arena)))[0] == 200
