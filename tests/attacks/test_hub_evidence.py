"""A hub that cheats with events is caught, with the proof kept, and the list goes on (B5, B8, H3, S4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmserver.cli import main
from lmserver.protocol import canonical_json, hub
from lmserver.protocol.events import Pdu, parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import check_event_signatures
from lmserver.rooms.evidence import KINDS
from lmserver.storage import evidence, room_log
from lmserver.storage.database import Database
from lmserver.storage.evidence import MAX_FOR_EACH_KIND, NewEvidence, StoredEvidence
from tests.evilpeer.prey import Prey
from tests.kit.engines import adopt_join, engine_kit
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    KEYS,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    draft,
    key_of,
    lpdu,
    member,
    message,
)


async def held(db: Database) -> list[StoredEvidence]:
    return await evidence.of_room(db, ROOM)


def signed(data: bytes | None) -> Pdu:
    """The event as proof: its signatures hold whoever looks at it."""
    assert data is not None
    pdu = parse_pdu(canonical_json.parse_object(data), LM_02)
    check_event_signatures(pdu, KEYS)
    return pdu


async def goes_on(prey: Prey) -> None:
    """An honest event after it all is taken, and the stored bytes verify."""
    after = prey.hub.room.force(hub.complete_draft(message("after"), prey.hub.room.view, key_of(HUB)))
    assert await prey.hub.deliver(PARTICIPANT, "after", after) == {}
    row = await room_log.room(prey.db, ROOM)
    assert row is not None
    assert row.head_event_id == after.event_id
    assert await prey.victim.problems(ROOM) == []


def counted(prey: Prey, kind: str) -> float:
    value = prey.victim.server.metrics.registry.get_sample_value(
        "lmserver_hub_evidence_total", {"kind": kind}
    )
    return value or 0.0


async def test_b8_equivocation_is_proven_by_two_signatures_over_one_predecessor(prey: Prey) -> None:
    await prey.join()
    before = prey.hub.room.view
    ours = prey.hub.room.add(message("for us"))
    theirs = hub.complete_draft(message("for others"), before, key_of(HUB))
    await prey.hub.deliver(PARTICIPANT, "t1", ours)
    failed = await prey.hub.deliver(PARTICIPANT, "t2", theirs)
    assert list(failed) == [theirs.event_id]
    [case] = await held(prey.db)
    assert (case.kind, case.hub_server, case.event_id) == ("fork", HUB, theirs.event_id)
    one, other = signed(case.pdu), signed(case.related)
    assert one.prev_events == other.prev_events and one.event_id != other.event_id
    assert counted(prey, "fork") == 1
    await goes_on(prey)


async def test_b8_both_halves_of_a_fork_in_one_transaction(prey: Prey) -> None:
    await prey.join()
    before = prey.hub.room.view
    first = prey.hub.room.add(message("1"))
    second = hub.complete_draft(message("2"), before, key_of(HUB))
    failed = await prey.hub.deliver(PARTICIPANT, "t1", first, second)
    assert list(failed) == [second.event_id]
    [case] = await held(prey.db)
    assert signed(case.related).event_id == first.event_id


async def test_b8_a_late_event_of_an_earlier_stay_is_no_fork(db: Database) -> None:
    """Control: two followers make a fork, not an event that comes after we have left and come back."""
    room = RoomBuilder()
    room.add(member("join", sender=BOB))
    kit = engine_kit(db, PARTICIPANT)
    await adopt_join(kit, room.pdus, HUB)
    await kit.engine.accept_pdus(ROOM, [room.add(member("leave", sender=BOB))])
    late = room.add(message("sent after we left"))
    room.add(member("join", sender=BOB))
    state = {(p.type, p.state_key): p for p in room.pdus[:-1] if p.state_key is not None}
    await adopt_join(kit, [*state.values(), room.pdus[-1]], HUB)
    await kit.engine.accept_pdus(ROOM, [late])
    assert await held(db) == []


async def test_b5_a_replayed_lpdu_is_held_with_the_event_it_repeats(prey: Prey) -> None:
    await prey.join()
    said = lpdu(message("once", sender=BOB))
    first = prey.hub.room.add(said)
    again = prey.hub.room.force(hub.complete_lpdu(said, prey.hub.room.view, key_of(HUB)))
    assert await prey.hub.deliver(PARTICIPANT, "t1", first, again) == {}
    [case] = await held(prey.db)
    assert (case.kind, signed(case.pdu).event_id) == ("replay", again.event_id)
    assert signed(case.related).lpdu_hash == signed(case.pdu).lpdu_hash == said.lpdu_hash
    await goes_on(prey)


@pytest.mark.parametrize("author", [ALICE, BOB])
async def test_h3_content_altered_by_the_hub_is_kept_redacted_and_held(prey: Prey, author: str) -> None:
    """H1, H2, H3: the event ID and the link stand, the false words are evidence and shown to nobody."""
    await prey.join()
    honest = prey.hub.room.add(message("true", sender=author))
    false = {"msgtype": "m.text", "body": "false"}
    altered = parse_pdu({**honest.fields, "content": false}, LM_02)
    assert await prey.hub.deliver(PARTICIPANT, "t1", altered) == {}
    stored = await room_log.event(prey.db, honest.event_id, ROOM)
    assert stored is not None
    assert canonical_json.parse_object(stored.pdu)["content"] == {}
    [case] = await held(prey.db)
    assert case.kind == "altered"
    assert signed(case.pdu).content == false
    assert counted(prey, "altered") == 1
    await goes_on(prey)


async def test_h3_a_redacted_copy_is_not_held_against_the_hub(prey: Prey) -> None:
    """Control: what an honest hub sends of an event that it may not show in full."""
    await prey.join()
    pdu = prey.hub.room.add(message("secret"))
    assert await prey.hub.deliver(PARTICIPANT, "t1", pdu.redacted()) == {}
    assert await held(prey.db) == []
    await goes_on(prey)


async def test_a_broken_auth_rule_is_held_and_the_event_shown_to_nobody(prey: Prey) -> None:
    await prey.join()
    levels = draft("m.room.power_levels", {"users": {BOB: 100}}, sender=BOB, state_key="")
    seized = prey.hub.room.force(hub.complete_lpdu(lpdu(levels), prey.hub.room.view, key_of(HUB)))
    assert await prey.hub.deliver(PARTICIPANT, "t1", seized) == {}
    [case] = await held(prey.db)
    assert (case.kind, signed(case.pdu).event_id) == ("auth", seized.event_id)
    view = await prey.victim.engine.view(ROOM)
    assert view is not None
    entry = view.get("m.room.power_levels")
    assert entry is not None and entry.event_id != seized.event_id


def other_hub(prey: Prey) -> Pdu:
    return hub.complete_lpdu(lpdu(message(sender=BOB), hub_server=EVIL), prey.hub.room.view, key_of(EVIL))


def without_hub(prey: Prey) -> Pdu:
    return hub.complete_draft(message(sender=BOB), prey.hub.room.view, key_of(PARTICIPANT))


def two_predecessors(prey: Prey) -> Pdu:
    pdu = hub.complete_draft(message(), prey.hub.room.view, key_of(HUB))
    fields = {k: v for k, v in pdu.fields.items() if k not in ("hashes", "signatures")}
    fields["prev_events"] = [*pdu.prev_events, prey.hub.room.pdus[0].event_id]
    return hub._hash_and_sign(fields, LM_02, key_of(HUB), {})


def second_create(prey: Prey) -> Pdu:
    return RoomBuilder().pdus[0]


@pytest.mark.parametrize(
    ("kind", "make"),
    [("wrong_hub", other_hub), ("bypassed_hub", without_hub), ("prev_events", two_predecessors),
     ("second_create", second_create)],
)  # fmt: skip
async def test_s9_b2_b13_a8_what_has_no_place_in_the_list_is_refused_and_held(
    prey: Prey, kind: str, make: Any
) -> None:
    await prey.join()
    pdu = make(prey)
    assert list(await prey.hub.deliver(PARTICIPANT, "t1", pdu)) == [pdu.event_id]
    assert [case.kind for case in await held(prey.db)] == [kind]
    assert kind in KINDS
    await goes_on(prey)


async def test_an_event_given_as_state_before_cannot_come_after(prey: Prey) -> None:
    await prey.join()
    after = prey.hub.room.add(draft("m.room.name", {"name": "x"}, state_key=""))
    await prey.db.execute(
        "INSERT INTO events (room_id, event_id, type, state_key, sender, pdu, received_ts)"
        " VALUES ($1, $2, 'm.room.name', '', $3, $4, 0)",
        ROOM, after.event_id, ALICE, after.canonical,
    )  # fmt: skip
    assert list(await prey.hub.deliver(PARTICIPANT, "t1", after)) == [after.event_id]
    assert [case.kind for case in await held(prey.db)] == ["future_state"]


async def test_evidence_is_bounded_for_each_kind_in_a_room(db: Database) -> None:
    for n in range(MAX_FOR_EACH_KIND + 5):
        stored = await evidence.add(db, ROOM, NewEvidence(f"${n}", "fork", "x", b"{}"), n)
        assert stored == (n < MAX_FOR_EACH_KIND)
    assert await evidence.add(db, ROOM, NewEvidence("$1", "replay", "x", b"{}"), 1)
    assert not await evidence.add(db, ROOM, NewEvidence("$1", "replay", "again", b"{}"), 2)
    assert len(await held(db)) == MAX_FOR_EACH_KIND + 1


async def test_the_command_lists_cases_with_their_proof(
    prey: Prey, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    await prey.join()
    before = prey.hub.room.view
    await prey.hub.deliver(PARTICIPANT, "t1", prey.hub.room.add(message("1")))
    await prey.hub.deliver(PARTICIPANT, "t2", hub.complete_draft(message("2"), before, key_of(HUB)))
    config = tmp_path / "lmserver.yaml"
    config.write_text(yaml.safe_dump({"server_name": PARTICIPANT, "data_dir": str(tmp_path),
                                      "database": {"url": database_url}}))  # fmt: skip

    async def command(*arguments: str) -> str:
        status = await asyncio.to_thread(main, ["evidence", "--config", str(config), *arguments])
        assert status == 0
        return capsys.readouterr().out

    assert f"{ROOM} {HUB} signed two events with the same predecessor" in await command()
    case = json.loads(await command("--json", "--room", ROOM))
    assert case["kind"] == "fork"
    assert case["event"]["prev_events"] == case["related"]["prev_events"]
    assert await command("--json", "--room", "!other:x") == ""
    assert "Nothing is held" in await command("--room", "!other:x")
