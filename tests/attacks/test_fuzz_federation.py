"""A fuzz pass over every federation endpoint: valid requests with something changed, signed anew.

Whatever is sent: no 5xx, an error with a code, nothing but JSON, no part of the server that fails
and says so in its log, an honest event in the same room goes through, the stored bytes verify.
What it finds becomes a fixed case among the attacks. LMSERVER_FUZZ=n runs n examples an endpoint.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any
from urllib.parse import quote

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lmserver.protocol.room_versions import LM_02_ID
from lmserver.storage import e2e_keys
from lmserver.web.endpoint import Endpoint
from tests.attacks.test_federation_registry import declared
from tests.evilpeer.arena import Arena
from tests.evilpeer.forging import evil
from tests.evilpeer.mutation import made_valid, mutated, path_of, query_of
from tests.evilpeer.peer import UNSTABLE
from tests.kit.rooms import ALICE, BOB, EVIL, HUB, MALLORY, ROOM, lpdu, member

EXAMPLES = int(os.environ.get("LMSERVER_FUZZ", "6"))
_numbers = count()

EDUS = [
    {"type": "m.direct_to_device", "sender": MALLORY, "sender_id": MALLORY, "content": {
        "target": ALICE, "target_device": "PHONE", "message_type": "m.test", "message": {"a": 1}}},
    {"type": "m.device_list_update", "sender": MALLORY, "sender_id": MALLORY,
     "content": {"changed": [], "removed": ["X"]}},
    {"edu_type": "m.device_list_update", "content": {
        "user_id": MALLORY, "device_id": "X", "stream_id": 5, "prev_id": [4], "deleted": False}},
    {"type": "m.typing", "sender": MALLORY, "sender_id": MALLORY,
     "content": {"room_id": ROOM, "user_id": MALLORY, "typing": True}},
    {"edu_type": "m.direct_to_device", "content": {
        "sender": MALLORY, "type": "m.test", "message_id": "m", "messages": {ALICE: {"*": {"a": 1}}}}},
    {"edu_type": "m.signing_key_update", "content": {"user_id": MALLORY, "master_key": {}}},
    {"type": "m.receipt", "content": {ROOM: {"m.read": {MALLORY: {"event_ids": ["$x"], "data": {"ts": 5}}}}}},
    {"type": "m.presence", "content": {"push": [
        {"user_id": MALLORY, "presence": "online", "last_active_ago": 5, "status_msg": "x"}]}},
]  # fmt: skip


@pytest.fixture
def config() -> dict[str, Any]:
    """What is off by default is attacked too."""
    return {"presence": {"enabled": True}}


def stripped() -> list[dict[str, Any]]:
    return [{"type": "m.room.name", "state_key": "", "sender": ALICE, "content": {"name": "x"}}]


def membership(kind: str, target: str = MALLORY) -> dict[str, Any]:
    return dict(lpdu(member(kind, sender=MALLORY, target=target)).fields)


def body_of(entry: Endpoint) -> Any:
    """A body that the endpoint would take; None for a request without."""
    if entry.method == "GET":
        return None
    bodies: dict[str, Any] = {
        "/send/": {"pdus": [evil("fuzz"), membership("join")], "edus": EDUS},
        "/send_join/": membership("join"),
        "/send_leave/": membership("leave"),
        "/send_knock/": membership("knock"),
        "/invite/": {"event": membership("invite", f"@new:{EVIL}"), "room_version": LM_02_ID,
                     "invite_room_state": stripped()},
        "/keys/claim": {"one_time_keys": {ALICE: {"PHONE": "signed_curve25519"}}},
        "/keys/query": {"device_keys": {ALICE: ["PHONE"], BOB: []}},
        "/key/v2/query": {"server_keys": {EVIL: {"ed25519:t1": {"minimum_valid_until_ts": 5}}}},
    }  # fmt: skip
    return next((body for part, body in bodies.items() if part in entry.path), {})


def query_values(event_id: str) -> dict[str, str]:
    return {
        "event_id": event_id, "v": event_id, "limit": "5", "ver": LM_02_ID, "user_id": ALICE, "field": "displayname",
        "room_alias": f"#a:{HUB}", "minimum_valid_until_ts": "5", "width": "32", "height": "32", "method": "crop",
    }  # fmt: skip


async def attack(arena: Arena, method: str, path: str, body: bytes | None) -> int:
    """Send it, signed for exactly what it is, and hold the answer to the rules."""
    with structlog.testing.capture_logs() as logs:
        authorization = arena.evil.authorization(method, path, HUB, body)
        status, answer = await arena.evil.ask_raw(HUB, method, path, body, authorization)
    request = (method, path, body)
    assert status < 500, (request, status, answer)
    if status != 200:
        assert isinstance(answer.get("errcode"), str), (request, answer)
    defects = [entry for entry in logs if entry["log_level"] == "error"]
    assert not defects, (request, defects)
    return status


def values_of(event_id: str) -> dict[str, str]:
    return {
        "room_id": ROOM, "event_id": event_id, "user_id": MALLORY, "device_id": "PHONE", "server_name": EVIL,
        "media_id": "abc", "txn_id": f"fuzz{next(_numbers)}",
    }  # fmt: skip


async def fuzz(arena: Arena, data: st.DataObject) -> None:
    await local_device(arena)
    view = await arena.engine.view(ROOM)
    assert view is not None
    for entry in declared(arena):
        values = values_of(view.head_event_id)
        path = data.draw(path_of(entry.path, values)) + data.draw(query_of(query_values(view.head_event_id)))
        body = body_of(entry)
        if body is not None:
            changed = data.draw(mutated(body))
            if data.draw(st.booleans()):
                changed = made_valid(changed)
            body = orjson.dumps(changed, option=orjson.OPT_NON_STR_KEYS)
        await attack(arena, entry.method, path, body)


@seed(20261125)
@settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                 HealthCheck.data_too_large, HealthCheck.large_base_example])  # fmt: skip
@given(data=st.data())
async def test_nothing_a_peer_sends_harms_an_endpoint(arena: Arena, data: st.DataObject) -> None:
    await fuzz(arena, data)
    await arena.ask("POST", f"{UNSTABLE}/send_join/back{next(_numbers)}", membership("join"))
    assert await arena.problems() == []


@seed(20261128)
@settings(max_examples=5 * EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                 HealthCheck.data_too_large, HealthCheck.large_base_example])  # fmt: skip
@given(data=st.data())
async def test_b23_nothing_in_an_edu_harms_the_others(arena: Arena, data: st.DataObject) -> None:
    """Each message around the changed EDUs arrives, whatever those are."""
    await local_device(arena)
    edus = data.draw(mutated(EDUS))
    number = next(_numbers)
    sentinels = [
        {**EDUS[0], "content": {**EDUS[0]["content"], "message": {"sentinel": [number, n]}}} for n in (1, 2)
    ]
    changed = [sentinels[0], *(edus if isinstance(edus, list) else [edus])[:90], sentinels[1]]
    body = orjson.dumps({"pdus": [], "edus": changed}, option=orjson.OPT_NON_STR_KEYS)
    if await attack(arena, "PUT", f"{UNSTABLE}/send/edus{number}", body) == 200:
        stored = await arena.db.fetch("SELECT message FROM to_device_messages ORDER BY seq")
        found = [orjson.loads(row["message"])["content"].get("sentinel") for row in stored]
        assert [[number, n] for n in (1, 2)] == [f for f in found if f and f[0] == number]


async def local_device(arena: Arena) -> None:
    accounts = arena.victim.server.accounts
    if not await accounts.exists(accounts.user_id("alice")):
        await accounts.register("alice", "a long password")
        await accounts.log_in(ALICE, "PHONE", None)
        await e2e_keys.put_device_keys(arena.db, ALICE, "PHONE", b'{"user_id":"x"}')


async def test_unchanged_most_of_the_requests_are_taken(arena: Arena) -> None:
    """The pass starts from requests that reach what lies behind the first check."""
    await local_device(arena)
    refused = set()
    for entry in declared(arena):
        view = await arena.engine.view(ROOM)
        assert view is not None
        values = values_of(view.head_event_id)
        path = "/".join(
            quote(values[p.strip("{}")]) if p.startswith("{") else p for p in entry.path.split("/")
        )
        query = "&".join(f"{k}={quote(v)}" for k, v in query_values(view.head_event_id).items())
        status, _ = await arena.ask(entry.method, f"{path}?{query}", body_of(entry))
        if status != 200:
            refused.add(entry.path)
    assert len(refused) < len(declared(arena)) / 3, sorted(refused)


async def test_the_rules_of_the_pass_can_be_broken(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a defect behind an endpoint is noticed by the same rules."""

    async def defective(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(arena.victim.server.transactions, "_process", defective)
    try:
        await attack(arena, "PUT", f"{UNSTABLE}/send/control", orjson.dumps({"pdus": []}))
    except AssertionError:
        return
    raise AssertionError("the pass did not notice a 500")
