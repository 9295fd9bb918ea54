"""History from before a participant's join: fetched in steps, checked, woven in, and shown as it may be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmserver.federation_client.errors import Unreachable
from lmserver.protocol import hub
from lmserver.protocol.events import EventDraft, Pdu
from lmserver.rooms import snapshot
from lmserver.rooms.access import Reader
from lmserver.rooms.backfill import PAGE, QUIET_MS, Backfill, Reached
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.outcomes import Accepted
from lmserver.rooms.reading import Reading
from lmserver.storage import evidence, message_search, room_log, room_state
from lmserver.storage.database import Database
from tests.kit.engines import EngineKit, StaticVerifier, adopt_join, engine_kit
from tests.kit.rooms import (
    ALICE,
    BOB,
    HUB,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    draft,
    key_of,
    lpdu,
    member,
    message,
    now,
)

CAROL = f"@carol:{PARTICIPANT}"


class ListPast:
    """A hub whose history is a list; `bad` are events whose signatures do not hold."""

    def __init__(self, room: RoomBuilder) -> None:
        self.room = room
        self.bad: set[str] = set()
        self.asked = 0
        self.away = False
        self.change: Any = lambda page: page

    async def past(self, server: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unreachable("no answer")
        ids = [pdu.event_id for pdu in self.room.pdus]
        if event_id not in ids:
            return []
        end = ids.index(event_id) + 1
        page = [(pdu, pdu.event_id not in self.bad) for pdu in self.room.pdus[max(0, end - limit) : end]]
        changed: list[tuple[Pdu, bool]] = self.change(page)
        return changed


class Verifier(StaticVerifier):
    """Holds what `past.bad` names for wrong."""

    def __init__(self, past: ListPast) -> None:
        super().__init__()
        self._past = past

    async def verify_events(self, events: Any, *, current_keys_only: bool = False) -> Any:
        found = await super().verify_events(events)
        return [
            Unreachable("no keys") if event.event_id in self._past.bad else verdict
            for event, verdict in zip(events, found, strict=True)
        ]


class Scene:
    """A room at its hub, and a participant that joins it after a while."""

    def __init__(self, db: Database, room: RoomBuilder) -> None:
        self.db = db
        self.room = room
        self.past = ListPast(room)
        self.kit: EngineKit = engine_kit(db, PARTICIPANT)
        self.clock = now()
        self.backfill = Backfill(
            db, PARTICIPANT, self.past, Verifier(self.past), EvidenceLog(db, now), lambda: self.clock
        )
        self.reading = Reading(db, now)

    async def join(self, user: str = BOB) -> None:
        """With the state before the join, as send_join gives it."""
        state = {(p.type, p.state_key): p for p in self.room.pdus if p.state_key is not None}
        join = self.room.add(member("join", sender=user))
        await adopt_join(self.kit, [*state.values(), join], HUB)

    async def hears(self, *events: Any) -> None:
        for event in events:
            await self.kit.engine.accept_pdus(ROOM, [self.room.add(event)])

    async def head(self) -> int:
        row = await room_log.room(self.db, ROOM)
        assert row is not None
        return row.head_position

    async def reach(self, wanted: int = 1000) -> Reached:
        return await self.backfill.reach(ROOM, await self.head(), wanted)

    async def listed(self) -> list[str]:
        rows = await room_log.events_between(self.db, ROOM, -1, 2**62, 10**6, newest_first=False)
        return [row.event_id for row in rows]

    async def texts(self, user: str = BOB) -> list[str]:
        access = await self.reading.access(user, ROOM)
        assert access is not None
        page = await self.reading.backwards(access, 2**62, 10**4, lambda event: True)
        return [e.content["body"] for e in reversed(page.events) if "body" in e.content]

    async def sound(self) -> None:
        """The stored bytes verify, and the state is untouched."""
        assert await self.kit.problems(ROOM) == []
        row = await room_log.room(self.db, ROOM)
        assert row is not None
        loaded = await snapshot.load(self.db, row)
        expected = {key: entry.event_id for key, entry in self.room.view.state.items()}
        assert {key: entry.event_id for key, entry in loaded.view.state.items()} == expected


def busy_room(events: int, *, visibility: str | None = None) -> RoomBuilder:
    room = RoomBuilder()
    if visibility is not None:
        room.add(draft("m.room.history_visibility", {"history_visibility": visibility}, state_key=""))
    for n in range(events):
        match n % 5:
            case 0:
                room.add(draft("m.room.name", {"name": str(n)}, state_key=""))
            case 1:
                room.add(draft("m.room.topic", {"topic": str(n)}, state_key=""))
            case _:
                room.add(message(str(n)))
    return room


async def ids_of(room: RoomBuilder) -> list[str]:
    return [pdu.event_id for pdu in room.pdus]


async def test_history_is_fetched_in_steps_down_to_the_beginning(db: Database) -> None:
    scene = Scene(db, busy_room(720))
    await scene.join()
    await scene.hears(message("after"))
    assert await scene.reach(10) == Reached(True, False)
    assert scene.past.asked == 1
    assert len(await scene.listed()) == 2 + PAGE
    assert await scene.reach(10) == Reached(False, False)
    while not (await scene.reach()).complete:
        await scene.sound()
    assert await scene.listed() == await ids_of(scene.room)
    assert scene.past.asked == 8
    assert await scene.reach() == Reached(False, True)
    assert scene.past.asked == 8
    await scene.sound()


async def test_history_is_fetched_for_who_has_read_down_to_the_join(db: Database) -> None:
    """A client goes on where /sync began, a position below the join: nothing is there yet."""
    scene = Scene(db, busy_room(120))
    await scene.join()
    below = await scene.head() - 1
    assert await scene.backfill.reach(ROOM, below, 10) == Reached(True, False)
    assert len(await scene.listed()) == 1 + PAGE
    assert await scene.backfill.reach(ROOM, below - PAGE, 10) == Reached(True, True)
    assert await scene.listed() == await ids_of(scene.room)
    await scene.sound()


async def test_state_in_history_is_what_a_replay_says(db: Database) -> None:
    scene = Scene(db, busy_room(150))
    await scene.join()
    await scene.reach()
    first = (await scene.head()) - len(scene.room.pdus) + 1
    expected: dict[Any, str] = {}
    for index, pdu in enumerate(scene.room.pdus):
        found = {row.event_id for row in await room_state.state_at(db, ROOM, first + index)}
        assert found == set(expected.values()), index
        if pdu.state_key is not None:
            expected[pdu.type, pdu.state_key] = pdu.event_id
    await scene.sound()


async def test_everybody_who_asks_at_once_waits_for_the_same_page(db: Database) -> None:
    scene = Scene(db, busy_room(50))
    await scene.join()
    answers = await asyncio.gather(*(scene.reach() for _ in range(20)))
    assert scene.past.asked == 1 and all(answer.complete for answer in answers)
    assert await scene.listed() == await ids_of(scene.room)


async def test_two_processes_may_fetch_the_same_page(db: Database) -> None:
    scene = Scene(db, busy_room(50))
    await scene.join()
    other = Backfill(db, PARTICIPANT, scene.past, StaticVerifier(), EvidenceLog(db, now), now)
    await asyncio.gather(scene.reach(), other.reach(ROOM, await scene.head(), 1000))
    assert await scene.listed() == await ids_of(scene.room)
    await scene.sound()


async def test_a_hub_that_is_away_costs_nothing_but_the_history(db: Database) -> None:
    scene = Scene(db, busy_room(50))
    await scene.join()
    scene.past.away = True
    assert await scene.reach() == Reached(False, False)
    assert await scene.reach() == Reached(False, False)
    assert scene.past.asked == 1
    scene.past.away = False
    scene.clock += QUIET_MS + 1
    assert await scene.reach() == Reached(True, True)


async def test_between_two_stays_history_is_filled_in(db: Database) -> None:
    room = busy_room(30)
    scene = Scene(db, room)
    await scene.join()
    await scene.hears(message("first stay"), member("leave", sender=BOB))
    for n in range(230):
        room.add(message(f"away {n}") if n % 3 else draft("m.room.name", {"name": f"away {n}"}, state_key=""))
    await scene.join()
    await scene.hears(message("second stay"))
    assert (await scene.listed())[-2] == room.pdus[-2].event_id
    await scene.backfill.reach(ROOM, await scene.head() - 2, 20)  # below the second join
    assert len(await scene.listed()) > 4 + PAGE - 1
    await scene.sound()
    while not (await scene.reach()).complete:
        await scene.sound()
    assert await scene.listed() == await ids_of(room)
    await scene.sound()
    assert len(await scene.texts()) == len([p for p in room.pdus if "body" in p.content])


async def test_late_events_of_an_earlier_stay_are_found_as_history(db: Database) -> None:
    room = busy_room(3)
    scene = Scene(db, room)
    await scene.join()
    await scene.hears(member("leave", sender=BOB))
    late = [room.add(message("late")), room.add(message("later"))]
    await scene.join()
    outcomes = await scene.kit.engine.accept_pdus(ROOM, late)
    assert all(not isinstance(o, Accepted) or o.position is None for o in outcomes)
    await scene.reach()
    assert await scene.listed() == await ids_of(room)
    assert await evidence.of_room(db, ROOM) == []


async def test_a_redaction_of_what_comes_later_by_backfill_counts(db: Database) -> None:
    room = RoomBuilder()
    said, other, own = (room.add(message(text)) for text in ("regretted", "kept", "own"))
    room.add(draft("m.room.redaction", {"redacts": own.event_id}))
    scene = Scene(db, room)
    await scene.join()
    await scene.hears(draft("m.room.redaction", {"redacts": said.event_id}))
    await scene.hears(draft("m.room.redaction", {"redacts": other.event_id}, sender=BOB))
    await scene.reach()
    assert await scene.texts() == ["kept"]


async def test_relations_in_history_count_and_redacted_ones_do_not(db: Database) -> None:
    """A root, a reply and a reply that was redacted, all of before the join."""
    room = busy_room(3)
    root = room.pdus[-1].event_id

    def related() -> EventDraft:
        relates = {"rel_type": "m.thread", "event_id": root}
        return draft("m.room.message", {"body": "x", "m.relates_to": relates})

    kept = room.add(related()).event_id
    gone = room.add(related()).event_id
    room.add(draft("m.room.redaction", {"redacts": gone}))
    scene = Scene(db, room)
    await scene.join()
    await scene.reach()
    access = await scene.reading.access(BOB, ROOM)
    assert access is not None
    event = await scene.reading.event(access, root)
    assert event is not None
    [rendered] = await scene.reading.render(access, Reader(BOB), [event])
    thread = rendered["unsigned"]["m.relations"]["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (1, kept)


async def test_history_is_found_by_its_words_where_it_belongs_in_time(db: Database) -> None:
    """Nothing is kept of what was redacted, nor in a room that is encrypted now."""
    room = RoomBuilder()
    gone = room.add(message("old tea, redacted"))
    kept = [room.add(message("old tea")).event_id for _ in range(2)]
    room.add(draft("m.room.redaction", {"redacts": gone.event_id}))
    scene = Scene(db, room)
    await scene.join()
    await scene.hears(message("new tea"))
    await scene.reach()
    hits = await message_search.newest(db, [ROOM], "tea", ["content.body"], None, 10)
    assert hits[0].event_id == room.pdus[-1].event_id
    assert {hit.event_id for hit in hits[1:]} == set(kept)


async def test_words_of_history_are_not_kept_in_an_encrypted_room(db: Database) -> None:
    room = busy_room(9)
    room.add(draft("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}, state_key=""))
    scene = Scene(db, room)
    await scene.join()
    await scene.reach()
    assert await db.fetchval("SELECT count(words) FROM events") == 0


async def test_members_of_history_are_shown_though_their_own_events_are_further_back(db: Database) -> None:
    scene = Scene(db, busy_room(300))
    await scene.join()
    await scene.reach(10)
    access = await scene.reading.access(BOB, ROOM)
    assert access is not None
    [member_event] = await scene.reading.members_named(access, access.room.min_position + 5, [ALICE])
    assert (member_event.state_key, member_event.content["membership"]) == (ALICE, "join")


# -- what may be seen -------------------------------------------------------------------------------


async def test_a26_under_joined_nothing_from_before_is_shown(db: Database) -> None:
    room = busy_room(20, visibility="joined")
    scene = Scene(db, room)
    await scene.join()
    await scene.reach()
    assert await scene.listed() == await ids_of(room)
    assert await scene.texts() == []
    await scene.hears(message("now"))
    assert await scene.texts() == ["now"]


async def test_a26_a_stricter_time_further_back_stays_hidden_step_by_step(db: Database) -> None:
    """The hub is not asked to be honest: it gives every event in full."""
    room = RoomBuilder()
    room.add(message("first"))
    room.add(draft("m.room.history_visibility", {"history_visibility": "joined"}, state_key=""))
    for n in range(2 * PAGE):
        room.add(message(f"hidden {n}"))
    room.add(draft("m.room.history_visibility", {"history_visibility": "shared"}, state_key=""))
    for n in range(10):
        room.add(message(f"open {n}"))
    scene = Scene(db, room)
    await scene.join()
    opened = [f"open {n}" for n in range(10)]
    complete = False
    while not complete:
        complete = (await scene.reach(20 if not complete else 1000)).complete or (
            await scene.reach()
        ).complete
        texts = await scene.texts()
        assert [t for t in texts if t != "first"] == opened
    assert await scene.texts() == ["first", *opened]


async def test_a26_who_was_invited_sees_from_the_invite_on_and_others_do_not(db: Database) -> None:
    room = RoomBuilder()
    room.add(draft("m.room.history_visibility", {"history_visibility": "invited"}, state_key=""))
    room.add(message("before"))
    room.add(member("invite", target=BOB))
    room.add(message("while invited"))
    scene = Scene(db, room)
    await scene.join()
    await scene.hears(member("join", sender=CAROL))
    for _ in range(2):
        assert await scene.texts(CAROL) == []
        await scene.reach()
    assert await scene.texts(BOB) == ["while invited"]


# -- a hub that lies --------------------------------------------------------------------------------


async def test_s3_an_event_whose_signature_does_not_hold_is_passed_over(db: Database) -> None:
    room = busy_room(30)
    scene = Scene(db, room)
    await scene.join()
    bad = next(p for p in room.pdus if p.content.get("body") == "7")
    name = next(p for p in room.pdus if p.content.get("name") == "15")
    scene.past.bad = {bad.event_id, name.event_id}
    assert (await scene.reach()).complete
    texts = await scene.texts()
    assert "7" not in texts and "8" in texts and "4" in texts
    await scene.sound()
    # When the keys of its server can be had again, it is shown.
    scene.past.bad = set()
    assert (await scene.reach()).stored
    assert "7" in await scene.texts()
    await scene.sound()
    first = (await scene.head()) - len(room.pdus) + 1
    after = {e.event_id for e in await room_state.state_at(db, ROOM, first + room.pdus.index(name) + 1)}
    assert name.event_id in after


async def test_h3_content_altered_in_history_is_redacted_and_held(db: Database) -> None:
    room = busy_room(10)
    scene = Scene(db, room)
    await scene.join()
    victim = next(p for p in room.pdus if p.content.get("body") == "7")

    def altered(page: list[tuple[Pdu, bool]]) -> list[tuple[Pdu, bool]]:
        return [
            (p.redacted(altered_from=b'{"forged":1}') if p.event_id == victim.event_id else p, good)
            for p, good in page
        ]

    scene.past.change = altered
    await scene.reach()
    assert "7" not in await scene.texts()
    assert [case.kind for case in await evidence.of_room(db, ROOM)] == ["altered"]
    await scene.sound()


async def test_b5_a_replay_in_history_is_shown_once(db: Database) -> None:
    room = RoomBuilder()
    room.add(member("join", sender=f"@erin:{PARTICIPANT}"))
    said = lpdu(message("once", sender=f"@erin:{PARTICIPANT}"))
    room.add(said)
    room.add(message("between"))
    room.force(hub.complete_lpdu(said, room.view, key_of(HUB)))
    scene = Scene(db, room)
    await scene.join()
    await scene.reach()
    assert await scene.texts() == ["between", "once"]
    assert [case.kind for case in await evidence.of_room(db, ROOM)] == ["replay"]
    await scene.sound()


async def test_b8_history_that_runs_into_the_middle_of_an_earlier_stay_is_a_fork(db: Database) -> None:
    room = busy_room(3)
    scene = Scene(db, room)
    await scene.join()
    view, count = room.view, len(room.pdus)
    await scene.hears(message("ours"), member("leave", sender=BOB))
    room.view, room.pdus = view, room.pdus[:count]
    room.add(message("theirs"))
    room.add(member("leave", sender=BOB))
    await scene.join()
    await scene.reach(3)
    assert [case.kind for case in await evidence.of_room(db, ROOM)] == ["fork"]
    assert "theirs" not in await scene.texts()
    assert await scene.kit.problems(ROOM) == []


async def test_history_that_contradicts_the_joins_state_is_hidden_and_held(db: Database) -> None:
    """The hub left a change of the name out of the state it gave us."""
    room = busy_room(3)
    state = {(p.type, p.state_key): p for p in room.pdus if p.state_key is not None}
    renamed = room.add(draft("m.room.name", {"name": "kept from us"}, state_key=""))
    alien = room.add(draft("m.custom", {"x": 1}, state_key="never in the state"))
    scene = Scene(db, room)
    join = room.add(member("join", sender=BOB))
    await adopt_join(scene.kit, [*state.values(), join], HUB)
    await scene.reach()
    cases = await evidence.of_room(db, ROOM)
    assert {case.event_id for case in cases} == {renamed.event_id, alien.event_id}
    assert {case.kind for case in cases} == {"join_state"}
    assert await scene.kit.problems(ROOM) == []


async def test_history_that_begins_with_another_room_is_held(db: Database) -> None:
    room = busy_room(3)
    scene = Scene(db, room)
    await scene.join()
    await db.execute("UPDATE rooms SET create_event_id = '$another'")
    await scene.reach()
    assert [case.kind for case in await evidence.of_room(db, ROOM)] == ["second_create"]


@pytest.mark.parametrize("count", [0, 1])
async def test_a_page_that_is_empty_or_has_nothing_new_ends_the_try(db: Database, count: int) -> None:
    scene = Scene(db, busy_room(10))
    await scene.join()
    scene.past.change = lambda page: [] if count == 0 else [(scene.room.pdus[-1], True)]
    assert await scene.reach() == Reached(False, False)
    assert scene.past.asked == 1
    assert len(await scene.listed()) == 1


async def test_the_hub_of_a_room_asks_nobody(db: Database) -> None:
    scene = Scene(db, busy_room(5))
    await scene.join()
    ours = Backfill(db, HUB, scene.past, StaticVerifier(), EvidenceLog(db, now), now)
    assert await ours.reach(ROOM, 2**62, 100) == Reached(False, True)
    assert scene.past.asked == 0
