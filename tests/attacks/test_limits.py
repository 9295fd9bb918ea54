"""Limits by server, room, user and address: over them 429 with when to come back, others unharmed (R7)."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.protocol.room_versions import LM_02
from tests.evilpeer.arena import Arena
from tests.evilpeer.forging import evil
from tests.evilpeer.peer import UNSTABLE
from tests.evilpeer.victim import FAST
from tests.kit.rooms import BOB, EVIL, HUB, MALLORY, PARTICIPANT, ROOM, lpdu, member, message, opening

_numbers = count()


def limits(**rates: tuple[float, int]) -> dict[str, Any]:
    return {"limits": FAST | {n: {"per_second": rate, "burst": burst} for n, (rate, burst) in rates.items()}}


async def head(arena: Arena) -> int:
    view = await arena.engine.view(ROOM)
    assert view is not None
    return view.head_position


async def join(arena: Arena, name: str, server: str = EVIL) -> tuple[int, Any]:
    fields = lpdu(member("join", sender=f"@{name}:{server}")).fields
    return await arena.ask("POST", f"{UNSTABLE}/send_join/j{next(_numbers)}", fields, origin=server)


def is_limited(answer: tuple[int, Any]) -> bool:
    status, body = answer
    if status != 429:
        return False
    assert body["errcode"] == "M_LIMIT_EXCEEDED"
    assert isinstance(body["retry_after_ms"], int) and body["retry_after_ms"] > 0
    return True


@pytest.mark.parametrize("config", [limits(federation_room_joins=(0.001, 3))])
async def test_r7_one_server_joins_a_room_only_so_fast(arena: Arena) -> None:
    """The flood ends at the limit; another server joins the same room as before."""
    answers = [await join(arena, f"flood{n}") for n in range(10)]
    assert [status for status, _ in answers] == [200] * 3 + [429] * 7
    assert all(is_limited(answer) for answer in answers[3:])
    assert (await join(arena, "honest", PARTICIPANT))[0] == 200
    assert await arena.problems() == []


@pytest.mark.parametrize("config", [limits(federation_room_joins=(0.001, 3))])
async def test_r7_joins_in_transactions_count_too(arena: Arena) -> None:
    joins = [lpdu(member("join", sender=f"@flood{n}:{EVIL}")).fields for n in range(6)]
    assert (await arena.send("first", joins[:3]))[0] == 200
    before = await head(arena)
    assert is_limited(await arena.send("second", joins[3:]))
    assert await head(arena) == before


@pytest.mark.parametrize("config", [limits(room_joins=(0.001, 3))])
async def test_r7_a_room_is_joined_only_so_fast_by_all_together(arena: Arena) -> None:
    servers = [EVIL, PARTICIPANT, EVIL, PARTICIPANT]
    answers = [await join(arena, f"u{n}", server) for n, server in enumerate(servers)]
    assert [status for status, _ in answers] == [200, 200, 200, 429]
    other = f"!other:{HUB}"
    await arena.engine.create(LM_02, opening(room_id=other))
    fields = lpdu(member("join", sender=BOB, room_id=other)).fields
    assert (await arena.ask("POST", f"{UNSTABLE}/send_join/o", fields, origin=PARTICIPANT))[0] == 200


@pytest.mark.parametrize("config", [limits(room_joins=(0.001, 3), federation_room_joins=(0.001, 3))])
async def test_r7_joins_a_room_refuses_do_not_keep_others_out(arena: Arena) -> None:
    ban = member("ban", target=f"@banned:{EVIL}")
    await arena.engine.send([ban])
    for _ in range(10):
        assert (await join(arena, "banned"))[0] == 403
    assert (await join(arena, "honest", PARTICIPANT))[0] == 200


@pytest.mark.parametrize("config", [limits(federation_room_events=(1.0, 5))])
async def test_events_over_the_limit_are_refused_whole_and_taken_later(arena: Arena) -> None:
    """429 before anything is processed; the same transaction again is processed once."""
    before = await head(arena)
    assert (await arena.send("one", [evil(f"a{n}") for n in range(5)]))[0] == 200
    late = [evil(f"b{n}") for n in range(5)]
    answer = await arena.send("two", late)
    assert is_limited(answer)
    assert await head(arena) == before + 5
    # Others in the same room, and the same server elsewhere, are not held up.
    honest = lpdu(message("honest", sender=BOB)).fields
    assert len((await arena.send("h", [honest], origin=PARTICIPANT))[1]["org.lmserver.accepted"]) == 1
    assert (await arena.send("one", []))[1][
        "org.lmserver.accepted"
    ] != {}  # an answer that is known costs nothing
    await asyncio.sleep(answer[1]["retry_after_ms"] / 1000)
    status, body = await arena.send("two", late)
    assert (status, len(body["org.lmserver.accepted"])) == (200, 5)
    assert await head(arena) == before + 11
    assert await arena.problems() == []


@pytest.mark.parametrize("config", [limits(federation_edus=(0.001, 10))])
async def test_r9_edus_over_the_limit_are_refused_whole(arena: Arena) -> None:
    typing = {"type": "m.typing", "sender": MALLORY, "content": {"room_id": ROOM, "typing": True}}
    assert (await arena.send("one", [], edus=[typing] * 10))[0] == 200
    before = await head(arena)
    assert is_limited(await arena.send("two", [evil()], edus=[typing]))
    assert await head(arena) == before
    assert (await arena.send("three", [evil()]))[0] == 200
    assert (await arena.send("one", [], edus=[typing], origin=PARTICIPANT))[0] == 200


@pytest.mark.parametrize("config", [limits(federation_requests=(0.001, 2))])
async def test_transactions_are_limited_by_server(arena: Arena) -> None:
    answers = [await arena.send(f"t{n}", []) for n in range(3)]
    assert [status for status, _ in answers[:2]] == [200, 200]
    assert is_limited(answers[2])
    assert (await arena.send("t", [], origin=PARTICIPANT))[0] == 200


async def anonymous(http: TestClient[Any, Any], forwarded: str) -> tuple[int, str | None]:
    headers = {"X-Forwarded-For": forwarded}
    async with http.get("/_matrix/client/versions", headers=headers) as response:
        return response.status, response.headers.get("Retry-After")


@pytest.mark.parametrize("config", [limits(anonymous=(0.001, 2))])
async def test_i4_a_made_up_forwarded_address_is_not_believed(arena: Arena) -> None:
    async with TestClient(TestServer(arena.victim.server.client_app)) as http:
        answers = [await anonymous(http, f"192.0.2.{n}") for n in range(3)]
    *served, (status, retry_after) = answers
    assert served == [(200, None), (200, None)]
    assert status == 429 and 900 < int(retry_after or 0) <= 1000


@pytest.mark.parametrize("config", [limits(anonymous=(0.001, 2)) | {"trusted_proxies": ["127.0.0.0/8"]}])
async def test_i4_behind_a_trusted_proxy_each_client_counts_for_itself(arena: Arena) -> None:
    """What the client wrote before the proxy's entry changes nothing."""
    async with TestClient(TestServer(arena.victim.server.client_app)) as http:
        spoofed = [await anonymous(http, f"198.51.100.{n}, 192.0.2.1") for n in range(3)]
        assert [status for status, _ in spoofed] == [200, 200, 429]
        assert (await anonymous(http, "192.0.2.1, 192.0.2.2"))[0] == 200
        assert (await anonymous(http, "192.0.2.1"))[0] == 429


@pytest.mark.parametrize("config", [limits(room_joins=(0.001, 2), join=(0.001, 4))])
async def test_r7_our_own_users_join_only_so_fast(arena: Arena) -> None:
    """By room whoever joins, by user whatever is joined."""
    async with TestClient(TestServer(arena.victim.server.client_app)) as http:
        statuses = []
        for name in ("a", "b", "c"):
            token = await register(http, name)
            statuses.append(await join_as(http, token, ROOM))
        assert [status for status, _ in statuses] == [200, 200, 429]
        assert is_limited(statuses[2])
        refused = [await join_as(http, token, f"!no{n}:{HUB}") for n in range(4)]
        assert [status == 429 for status, _ in refused] == [False, False, False, True]


@pytest.mark.parametrize("config", [limits(unauthorized=(0.001, 5)) | {"trusted_proxies": ["127.0.0.0/8"]}])
async def test_x_an_address_that_cannot_prove_itself_is_not_listened_to_for_a_while(arena: Arena) -> None:
    """Wrong signatures cost nothing after so many; others are heard, and whoever a private address
    stands for."""
    path = f"{UNSTABLE}/event/$x"
    right = arena.evil.authorization("GET", path, HUB, None)
    wrong = arena.evil.authorization("GET", path + "y", HUB, None)

    async def ask(header: str, address: str) -> int:
        url = URL(f"http://127.0.0.1:{arena.victim.port}{path}", encoded=True)
        headers = {"Authorization": header, "X-Forwarded-For": address}
        async with ClientSession() as http, http.get(url, headers=headers) as response:
            return response.status

    assert [await ask(wrong, "1.1.1.1") for _ in range(7)] == [401] * 5 + [429] * 2
    assert await ask(right, "1.1.1.1") == 429
    assert await ask(right, "1.1.1.2") == 404
    assert [await ask(wrong, "10.0.0.1") for _ in range(7)] == [401] * 7


@pytest.mark.parametrize("config", [limits(unauthorized=(0.001, 50)) | {"trusted_proxies": ["127.0.0.0/8"]}])
async def test_x_a_failure_costs_its_address_by_the_size_of_its_body(arena: Arena) -> None:
    """Half a megabyte that is parsed to be refused keeps us busy longer than a request without a body; one
    of little else than brackets is not parsed at all."""
    path = f"{UNSTABLE}/send/x"
    key = arena.evil.authorization("PUT", path + "y", HUB, b"{}")

    async def put(body: bytes, address: str) -> int:
        url = URL(f"http://127.0.0.1:{arena.victim.port}{path}", encoded=True)
        headers = {"Authorization": key, "X-Forwarded-For": address}
        async with ClientSession() as http, http.put(url, data=body, headers=headers) as response:
            return response.status

    large = b'{ "pdus": ["' + b"x" * 500_000 + b'"]}'
    assert [await put(large, "1.1.1.1") for _ in range(2)] == [401, 429]
    assert [await put(b"{ }", "1.1.1.2") for _ in range(3)] == [401] * 3
    brackets = b'{"pdus": [' + b"[],[]," * 120_000 + b"[]]}"
    assert await put(brackets, "1.1.1.3") == 413


async def register(http: TestClient[Any, Any], name: str) -> str:
    body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
    async with http.post("/_matrix/client/v3/register", json=body) as response:
        return str((await response.json())["access_token"])


async def join_as(http: TestClient[Any, Any], token: str, room_id: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with http.post(f"/_matrix/client/v3/join/{room_id}", json={}, headers=headers) as response:
        return response.status, await response.json()
