"""A client scrolls up on a participant: /messages reaches what was before the join, over the wire (S3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lmserver.protocol import canonical_json
from lmserver.storage import evidence
from tests.evilpeer.peer import Received
from tests.evilpeer.prey import Prey
from tests.kit.rooms import BOB, HUB, PARTICIPANT, ROOM, draft, message

MESSAGES = f"/_matrix/client/v3/rooms/{quote(ROOM)}/messages"


class Reader:
    """Bob at his client."""

    def __init__(self, http: TestClient[Any, Any], token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def page(self, start: str | None = None, limit: int = 50) -> dict[str, Any]:
        query = {"dir": "b", "limit": str(limit), **({} if start is None else {"from": start})}
        async with self._http.get(MESSAGES, params=query, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def scroll(self, limit: int = 50) -> list[str]:
        """Event IDs as far as it goes, oldest first."""
        found: list[str] = []
        start: str | None = None
        for _ in range(100):
            answer = await self.page(start, limit)
            found += [event["event_id"] for event in answer["chunk"]]
            start = answer.get("end")
            if start is None:
                return found[::-1]
        raise AssertionError("there is no end")


@pytest.fixture
async def bob(prey: Prey) -> AsyncIterator[Reader]:
    for n in range(230):
        prey.hub.room.add(message(str(n)) if n % 9 else draft("m.room.name", {"name": str(n)}, state_key=""))
    await prey.join()
    async with TestClient(TestServer(prey.victim.server.client_app)) as http:
        body = {"type": "m.login.password", "password": "a password of bob",
                "identifier": {"type": "m.id.user", "user": BOB}}  # fmt: skip
        async with http.post("/_matrix/client/v3/login", json=body) as response:
            token = (await response.json())["access_token"]
        yield Reader(http, token)


@pytest.mark.parametrize("limit", [7, 50, 1000])
async def test_a_client_scrolls_to_the_beginning_of_the_room(prey: Prey, bob: Reader, limit: int) -> None:
    await prey.hub.deliver(PARTICIPANT, "t", prey.hub.room.add(message("after")))
    assert await bob.scroll(limit) == [pdu.event_id for pdu in prey.hub.room.pdus]
    assert len(prey.hub.requests("backfill")) == 3
    assert await bob.scroll(limit) == [pdu.event_id for pdu in prey.hub.room.pdus]
    assert len(prey.hub.requests("backfill")) == 3
    assert prey.evil.requests("backfill") == []
    assert await prey.victim.problems(ROOM) == []


async def test_a_hub_that_is_away_ends_the_page_without_an_error(prey: Prey, bob: Reader) -> None:
    await prey.hub.stop()
    assert len(await bob.scroll()) == 1
    await prey.hub.start()


async def test_a_hub_that_shows_nothing_ends_the_page_without_an_error(prey: Prey, bob: Reader) -> None:
    prey.hub.shows = False
    assert len(await bob.scroll()) == 1


async def test_s3_forged_events_in_history_are_passed_over(prey: Prey, bob: Reader) -> None:
    """Unsigned: not shown. Altered: shown redacted, held against the hub. Of another room, or no
    event at all: history ends there."""
    pdus = prey.hub.room.pdus
    unsigned, altered, alien = pdus[-20], pdus[-30], pdus[-40]

    async def spoiled(request: Received) -> web.StreamResponse:
        page = [dict(pdu.fields) for pdu in pdus[-101:-1]]
        page[-19] = {**page[-19], "signatures": {HUB: {"ed25519:t1": "A" * 86}}}
        page[-29] = {**page[-29], "content": {"msgtype": "m.text", "body": "forged"}}
        page[-39] = {**page[-39], "room_id": "!other:hub.test"}
        return web.Response(body=canonical_json.encode({"pdus": page}))

    prey.hub.answers["backfill"] = spoiled
    seen = await bob.scroll()
    assert unsigned.event_id not in seen and alien.event_id not in seen
    assert seen[0] == pdus[-39].event_id
    assert altered.event_id in seen
    answer = await bob.page(limit=200)
    assert [e["content"] for e in answer["chunk"] if e["event_id"] == altered.event_id] == [{}]
    assert [case.kind for case in await evidence.of_room(prey.db, ROOM)] == ["altered"]
    assert await prey.victim.problems(ROOM) == []


@pytest.mark.parametrize(
    "body", [b"[]", b'{"pdus":{}}', b'{"pdus":[null,5,[],{}]}', b"\xff", b'{"pdus":' + b"[" * 9999]
)
async def test_s3_junk_instead_of_history_is_no_history(prey: Prey, bob: Reader, body: bytes) -> None:
    async def junk(request: Received) -> web.StreamResponse:
        return web.Response(body=body)

    prey.hub.answers["backfill"] = junk
    assert len(await bob.scroll()) == 1
    assert await prey.victim.problems(ROOM) == []


async def test_more_events_than_asked_for_are_not_read(prey: Prey, bob: Reader) -> None:
    async def flood(request: Received) -> web.StreamResponse:
        page = [pdu.fields for pdu in prey.hub.room.pdus[:-1]]
        return web.Response(body=canonical_json.encode({"pdus": page}))

    prey.hub.answers["backfill"] = flood
    assert len(await bob.scroll()) == 1
