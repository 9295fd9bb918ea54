"""G6: nothing that a client may put in a path, a query or a body makes the server fail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from yarl import URL

from lmserver.storage.database import Database
from lmserver.web.endpoint import Endpoint
from tests.access.table import TABLE, Row
from tests.access.world import World
from tests.client_api.test_surface import registry
from tests.evilpeer.mutation import mutated, path_of, query_of
from tests.kit.client_api import NAME, V3, serve

ROOM_NAMES = ("room_id", "room", "event_id", "user_id", "alias")
PARAMETERS = [
    "\0",
    "x" * 300,
    "\u2028%s{}'\"",
    "..",
    "%",
    "!a:" + NAME,
    "$" + "x" * 43,
    "@a:" + NAME,
    "#a:" + NAME,
    "1",
]
BODIES: list[bytes] = [
    b"", b"[]", b"null", b'"x"', b"{", b"{}", b'{"a":' * 200 + b"1" + b"}" * 200, b'{"user_id":"\\ud800"}',
    b'{"limit":1e400}', b'{"limit":-1,"since":[],"filter":{"generic_search_term":"\\ud800","room_types":{}}}',
    b'{"search_term":"\\ud800\\u0000%_","limit":9007199254740993}', b'{"reason":"\\u0000","score":1.5}',
    b'{"new_version":{},"room_id":[],"visibility":5,"order":"x"}', b'{"name":"\\ud800","topic":1.5,"invite":[5]}',
    b'{"search_categories":{"room_events":{"search_term":"\\ud800","filter":{"rooms":["\\u0000"],"limit":0}}}}',
]  # fmt: skip
QUERIES = ["", "limit=-1&from=%00&since=%FF&dir=x&ts=1e9", "server=%00&via=%00&from=99_x_false&filter={&at=x"]


def paths(entry: Endpoint, rooms: dict[str, str]) -> Iterator[str]:
    """The declared path with each junk value, and with what is right where only the rest is junk."""
    for junk in PARAMETERS if "{" in entry.path else PARAMETERS[:1]:
        for good in (False, True):
            parts = [_filled(part, junk, rooms if good else {}) for part in entry.path.split("/")]
            yield "/".join(parts)


def _filled(part: str, junk: str, good: dict[str, str]) -> str:
    if not part.startswith("{"):
        return part
    return quote(good.get(part[1:-1], junk), safe="").replace("..", "%2E%2E")


async def test_g6_no_junk_is_a_failure_of_ours(db: Database, tmp_path: Path) -> None:
    api = await serve(db, tmp_path)
    try:
        alice = await api.register("alice")
        token = alice["access_token"]
        room_id = (await api.call("POST", f"{V3}/createRoom", {"preset": "public_chat"}, token))[1]["room_id"]
        rooms = {"room_id": room_id, "room": room_id, "user_id": alice["user_id"]}
        failures: list[Any] = []
        for entry in registry(api.server.client_app):
            if "/r0/" in entry.path or entry.path.endswith(("/logout", "/logout/all", "/account/deactivate")):
                continue
            for index, path in enumerate(dict.fromkeys(paths(entry, rooms))):
                body = BODIES[index % len(BODIES)] if entry.method != "GET" else None
                url = URL(f"{path}?{QUERIES[index % len(QUERIES)]}", encoded=True)
                headers = {"Authorization": f"Bearer {token}"}
                async with api.http.request(entry.method, url, data=body, headers=headers) as response:
                    if response.status >= 500 and response.status not in (502, 504):
                        failures.append((entry.method, str(url), body, await response.text()))
            if entry.method != "GET" and "{" not in entry.path:
                for body in BODIES:
                    headers = {"Authorization": f"Bearer {token}"}
                    async with api.http.request(
                        entry.method, entry.path, data=body, headers=headers
                    ) as response:
                        if response.status >= 500 and response.status not in (502, 504):
                            failures.append((entry.method, entry.path, body, await response.text()))
        assert not failures, "\n".join(map(str, failures))
    finally:
        await api.close()


# -- at random --------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("LMSERVER_FUZZ", "4"))
ASKERS = ("owner", "member", "stranger", "nobody")
ENDS_EVERYTHING = ("/logout", "/logout/all", "/account/deactivate")
ROWS = [row for row in TABLE if not row.path.endswith(ENDS_EVERYTHING)]
HANGS_SECONDS = 20.0


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(db, tmp_path)
    yield made
    await made.close()


def hurt(row: Row, world: World, role: str, data: st.DataObject) -> tuple[str, Any]:
    """Target and body of a request that was right until something in it was changed."""
    _, target, body = world.request(row, role)
    values = {name: str(value) for name, value in world.values.items() if isinstance(value, str)}
    values |= {"txn_id": "fuzz", **{name: text for name, text in row.fill.items() if "{" not in text}}
    query = dict(parse_qsl(target.partition("?")[2]))
    query |= {"limit": "5", "from": values["since"], "dir": "b"}
    path = data.draw(path_of(row.path, values)) + data.draw(query_of(query))
    if row.method == "GET":
        return path, None
    if isinstance(body, bytes):
        return path, data.draw(st.binary(max_size=200))
    return path, orjson.dumps(data.draw(mutated(body)), option=orjson.OPT_NON_STR_KEYS)


async def attack(world: World, method: str, path: str, token: str | None, body: Any) -> int:
    """Ask, and hold the answer to the rules."""
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(HANGS_SECONDS):
            status, text = await world.ask(method, path, token, body)
    request = (method, path, body)
    # What other servers do not answer is no failure of ours; a name that nobody has is one of them.
    assert status < 500 or status in (502, 504), (request, status, text)
    if status >= 400 and not text.startswith(b"<!DOCTYPE"):
        assert isinstance(orjson.loads(text).get("errcode"), str) or b'"flows"' in text, (request, text)
    defects = [entry for entry in logs if entry["log_level"] == "error"]
    assert not defects, (request, defects)
    return status


@seed(20261128)
@settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                 HealthCheck.data_too_large, HealthCheck.large_base_example])  # fmt: skip
@given(data=st.data())
async def test_g6_nothing_a_client_sends_harms_an_endpoint(world: World, data: st.DataObject) -> None:
    """Right requests with up to three changes; LMSERVER_FUZZ=n runs n of each endpoint."""
    for row in ROWS:
        role = data.draw(st.sampled_from(ASKERS))
        path, body = hurt(row, world, role, data)
        await attack(world, row.method, path, world.tokens[role][0] if role != "nobody" else None, body)
    await world.ok("GET", f"{V3}/account/whoami")
    made = await world.ok("POST", f"{V3}/createRoom", {})
    sent = await world.ok("PUT", f"{V3}/rooms/{made['room_id']}/send/m.room.message/1", {"body": "well"})
    shown = await world.ok("GET", f"{V3}/rooms/{made['room_id']}/event/{sent['event_id']}")
    assert shown["content"] == {"body": "well"}


async def test_the_rules_of_the_pass_can_be_broken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a defect behind an endpoint is noticed by the same rules."""

    async def defective(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("lmserver.accounts.client_data.ClientData.get", defective)
    row = next(row for row in ROWS if row.method == "GET" and row.path.endswith("/tags"))
    method, path, _ = world.request(row, "owner")
    with pytest.raises(AssertionError, match="a defect|Internal server error"):
        await attack(world, method, path, world.tokens["owner"][0], None)
