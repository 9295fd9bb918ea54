"""A fuzz pass over what a hub may tell a participant: events that were valid, with something changed,
hashed and signed anew by the hub; sent, and given as answers to what the participant asks.

Whatever it is: no 5xx, no part of the server that fails and says so in its log, the list goes on, and
the stored bytes verify. LMSERVER_FUZZ=n runs n examples.
"""

from __future__ import annotations

import copy
import os
from itertools import count
from typing import Any

import orjson
import pytest
import structlog
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lmserver.protocol import hub
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import Pdu
from lmserver.protocol.hashes import pdu_content_hash
from lmserver.protocol.room_versions import LM_02
from lmserver.storage import room_log
from tests.evilpeer.mutation import mutated
from tests.evilpeer.peer import UNSTABLE, Received
from tests.evilpeer.prey import Prey
from tests.kit.rooms import ALICE, BOB, HUB, PARTICIPANT, ROOM, draft, key_of, lpdu, member, message

EXAMPLES = 10 * int(os.environ.get("LMSERVER_FUZZ", "6"))
_numbers = count()

EVENTS: list[Any] = [
    lambda: message("fuzz"),
    lambda: lpdu(message("fuzz", sender=BOB)),
    lambda: draft("m.room.name", {"name": "fuzz"}, state_key=""),
    lambda: draft("m.room.power_levels", {"users": {ALICE: 100, BOB: 50}, "events": {"x": 1}}, state_key=""),
    lambda: draft("m.room.history_visibility", {"history_visibility": "joined"}, state_key=""),
    lambda: draft("m.room.redaction", {"redacts": "$x", "reason": "y"}),
    lambda: member("invite", target=f"@fuzz{next(_numbers)}:{PARTICIPANT}"),
]


def valid(prey: Prey, event: Any) -> Pdu:
    decision = hub.decide(event, prey.hub.room.view, key_of(HUB))
    assert isinstance(decision, hub.Append), decision
    return decision.pdu


def signed_anew(fields: Any) -> Any:
    """As far as that can be: what cannot be signed is hostile enough as it is."""
    changed = copy.deepcopy(fields)
    try:
        changed["hashes"] = {**changed["hashes"], "sha256": pdu_content_hash(changed)}
        key = key_of(HUB)
        reference = Pdu(changed, LM_02).reference_bytes
        changed["signatures"] = {
            **changed["signatures"],
            HUB: {key.key_id: key.sign_base64(reference)},
        }
    except (ProtocolError, TypeError, KeyError, AttributeError, ValueError):
        return fields
    return changed


def encoded(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


async def lives(prey: Prey) -> None:
    """An honest hub's next event is taken: the list goes on from wherever the attack has left it."""
    row = await room_log.room(prey.db, ROOM)
    assert row is not None
    view = await prey.victim.engine.view(ROOM)
    assert view is not None
    if row.head_event_id != prey.hub.room.view.head_event_id:
        stored = await room_log.event(prey.db, row.head_event_id, ROOM)
        assert stored is not None
        prey.hub.room.view = view
        prey.hub.room.pdus.append(Pdu(orjson.loads(stored.pdu), LM_02))
    honest = prey.hub.room.force(hub.complete_draft(message("honest"), view, key_of(HUB)))
    assert await prey.hub.deliver(PARTICIPANT, f"honest{next(_numbers)}", honest) == {}
    row = await room_log.room(prey.db, ROOM)
    assert row is not None and row.head_event_id == honest.event_id


async def send(prey: Prey, items: list[Any]) -> None:
    body = encoded({"pdus": items})
    path = f"{UNSTABLE}/send/fuzz{next(_numbers)}"
    with structlog.testing.capture_logs() as logs:
        header = prey.hub.authorization("PUT", path, PARTICIPANT, body)
        status, answer = await prey.hub.ask_raw(PARTICIPANT, "PUT", path, body, header)
        await prey.db.execute("UPDATE room_gaps SET retry_at = 0")
        await prey.victim.server.gaps.retry_due()
    assert status in (200, 400), (status, answer, items)
    assert [entry for entry in logs if entry["log_level"] == "error"] == [], items


async def fuzz(prey: Prey, data: st.DataObject) -> None:
    fields = valid(prey, data.draw(st.sampled_from(EVENTS))()).fields
    changed = data.draw(mutated(fields))
    if data.draw(st.booleans()):
        changed = signed_anew(changed)
    honest = hub.complete_draft(message("after"), prey.hub.room.view, key_of(HUB)).fields

    async def answer(request: Received) -> web.StreamResponse:
        return web.Response(body=encoded({"pdus": [changed, honest]}), content_type="application/json")

    async def event(request: Received) -> web.StreamResponse:
        return web.Response(body=encoded(changed), content_type="application/json")

    prey.hub.answers["backfill"], prey.hub.answers["event"] = answer, event
    items = data.draw(st.permutations([changed, fields])) if data.draw(st.booleans()) else [changed]
    await send(prey, items)
    await prey.victim.server.backfill.reach(ROOM, 2**62, 5)
    await lives(prey)


PROFILE = settings(
    max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.data_too_large, HealthCheck.large_base_example])  # fmt: skip


@seed(20261128)
@PROFILE
@given(data=st.data())
async def test_nothing_a_hub_tells_harms_a_participant(prey: Prey, data: st.DataObject) -> None:
    if await room_log.room(prey.db, ROOM) is None:
        await prey.join()
    await fuzz(prey, data)
    await prey.db.execute("UPDATE outbound_lpdus SET check_at = 0")
    prey.victim.server.backfill._quiet.clear()
    assert await prey.victim.problems(ROOM) == []


async def test_the_rules_of_the_pass_can_be_broken(prey: Prey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a defect in the participant is noticed by the same rules."""
    await prey.join()

    async def defective(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(prey.victim.engine, "accept_pdus", defective)
    try:
        await send(prey, [valid(prey, message("x")).fields])
    except AssertionError:
        return
    raise AssertionError("the pass did not notice a failure")
