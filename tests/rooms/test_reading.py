"""What one user may see of a room: the rules by table, then against a brute-force oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms import reading
from lmserver.rooms.visible_ranges import FOREVER, Span, spans_of, visibility_spans, visible_to_user
from lmserver.storage.room_state import StateSpan
from tests.kit.reading_world import CAROL, DAVE, World
from tests.kit.rooms import ALICE, ROOM, draft

VISIBILITIES = ["world_readable", "shared", "invited", "joined"]

# What a user who was invited, joined, left, and came no more sees of messages said in each stage.
STAGES = ["before", "invited", "in", "out"]
SEEN = {
    "world_readable": ["before", "invited", "in", "out"],
    "shared": ["before", "invited", "in"],
    "invited": ["invited", "in"],
    "joined": ["in"],
    "WORLD_READABLE": ["before", "invited", "in"],
}


@pytest.mark.parametrize("visibility", SEEN)
async def test_stages_of_a_membership(world: World, visibility: str) -> None:
    await world.create(join_rule="invite", visibility=visibility)
    await world.say("before")
    await world.member("invite", CAROL, by=ALICE)
    await world.say("invited")
    await world.member("join", CAROL)
    await world.say("in")
    await world.member("leave", CAROL)
    await world.say("out")
    assert await world.visible_texts(CAROL) == SEEN[visibility]
    assert await world.visible_texts(ALICE) == STAGES


@pytest.mark.parametrize("visibility", VISIBILITIES)
async def test_a_stranger_sees_only_what_is_world_readable(world: World, visibility: str) -> None:
    await world.create(visibility=visibility)
    await world.say("x")
    access = await world.access(DAVE)
    assert access.nothing is (visibility != "world_readable")


async def test_visibility_is_that_of_the_time_of_the_event(world: World) -> None:
    await world.create(visibility="joined")
    await world.say("closed")
    await world.set_visibility("world_readable")
    await world.say("open")
    await world.set_visibility("joined")
    await world.say("closed again")
    assert await world.visible_texts(DAVE) == ["open"]
    access = await world.access(DAVE)
    assert access.state_position is None
    await world.member("join", DAVE)
    await world.say("here")
    assert await world.visible_texts(DAVE) == ["open", "here"]


async def test_banned_user_sees_state_of_the_moment(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    await world.state("m.room.name", {"name": "then"})
    await world.member("ban", CAROL, by=ALICE)
    await world.state("m.room.name", {"name": "now"})
    await world.member("join", DAVE)
    access = await world.access(CAROL)
    name = await world.reading.state_entry(access, "m.room.name", "")
    assert name is not None and name.content == {"name": "then"}
    assert {e.state_key for _, e in await world.reading.members(access)} == {ALICE, CAROL}
    # An old token may not be used to look past the ban.
    assert {e.state_key for _, e in await world.reading.members(access, 10**9)} == {ALICE, CAROL}


async def test_pages_go_on_where_the_last_ended(world: World) -> None:
    await world.create()
    await world.say(*(str(i) for i in range(25)))
    access = await world.access(ALICE)
    start: int | None = access.room.head_position
    found: list[str] = []
    pages = 0
    while start is not None:
        page = await world.reading.backwards(access, start, 7, lambda e: True)
        found += [e.event_id for e in page.events]
        start = page.end
        pages += 1
    assert pages == 5 and len(found) == len(set(found)) == 29
    forward = await world.reading.forwards(access, -1, 100, lambda e: True)
    assert [e.event_id for e in forward.events] == found[::-1]


async def test_soft_failed_events_are_shown_to_nobody(world: World) -> None:
    await world.create()
    [event_id] = await world.say("bad")
    await world.db.execute("UPDATE events SET soft_failed = 'auth: x' WHERE event_id = $1", event_id)
    access = await world.access(ALICE)
    assert await world.reading.event(access, event_id) is None
    assert await world.visible_texts(ALICE) == []
    timeline = (await world.sync(ALICE))["rooms"]["join"][ROOM]["timeline"]["events"]
    assert event_id not in {e["event_id"] for e in timeline}


async def test_a_redaction_after_one_left_prunes_and_is_not_shown(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    [said] = await world.say("gone")
    await world.member("leave", CAROL)
    await world.send(draft("m.room.redaction", {"redacts": said}))
    access = await world.access(CAROL)
    event = await world.reading.event(access, said)
    assert event is not None and event.content == {}
    [rendered] = await world.reading.render(access, world.reader(CAROL), [event])
    assert "redacted_because" not in rendered["unsigned"]


# -- the ranges, against the rules applied to each event by itself ------------------------------


def spans(draw_changes: list[tuple[int, str]]) -> list[Span]:
    ordered = sorted(dict(draw_changes).items())
    ends: list[int | None] = [*(start for start, _ in ordered[1:]), None][: len(ordered)]
    return [Span(start, end, value) for (start, value), end in zip(ordered, ends, strict=True)]


def values_at(found: list[Span], position: int, default: str) -> set[str]:
    """The value before the event and, if the event sets one, after it."""
    before = [s.value for s in found if s.start < position and (s.end is None or s.end >= position)]
    after = [s.value for s in found if s.start == position]
    return set(before or [default]) | set(after)


def sees(members: list[Span], visibility: list[Span], position: int) -> bool:
    joined_later = any(s.value == "join" and (s.end is None or s.end >= position) for s in members)
    for hv in values_at(visibility, position, "shared"):
        for member in values_at(members, position, "leave"):
            if hv == "world_readable" or member == "join" or (hv == "shared" and joined_later):
                return True
            if hv == "invited" and member == "invite":
                return True
    return False


changes = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from(["join", "leave", "invite", "ban"])), max_size=6
)
settings_of_room = st.lists(st.tuples(st.integers(1, 30), st.sampled_from(VISIBILITIES)), max_size=4)


@given(changes, settings_of_room)
@settings(max_examples=300, deadline=None)
def test_ranges_agree_with_the_rules(
    member_changes: list[tuple[int, str]], hv: list[tuple[int, str]]
) -> None:
    # One event is one change: a position sets a membership or the visibility, not both.
    taken = {at for at, _ in member_changes}
    members, visibility = spans(member_changes), spans([(at, v) for at, v in hv if at not in taken])
    ranges = visible_to_user(members, visibility)
    for position in range(33):
        assert (position in ranges) == sees(members, visibility, position), position
    assert all(a <= b for a, b in ranges.intervals)
    assert ranges.within(-FOREVER, FOREVER) == list(ranges.intervals)


# -- a participant, whose list begins with its join ---------------------------------------------


def life(
    start: int, end: int | None, value: str, *, placed: int | None, lived_before: int | None = None
) -> StateSpan:
    pdu = b'{"content":{"history_visibility":"%s","membership":"%s"}}' % (value.encode(), value.encode())
    return StateSpan(start, end, "$x", pdu, placed, lived_before)


def test_a26_what_came_with_a_join_counts_for_all_that_we_have_of_the_time_before() -> None:
    """The setting of the join may be old; that it is not among the events we have says so."""
    carried = life(99, None, "joined", placed=None)
    assert visibility_spans([carried], complete=False) == [Span(-FOREVER, None, "joined")]
    assert visible_to_user(
        [Span(100, None, "join")], spans_of([carried], "history_visibility")
    ).intervals == ((100, FOREVER),)


def test_a26_before_the_first_setting_we_know_there_may_be_a_stricter_one() -> None:
    fetched = [life(90, 99, "shared", placed=90), life(99, None, "shared", placed=90)]
    members = [Span(100, None, "join")]
    assert 95 in visible_to_user(members, visibility_spans(fetched, complete=False))
    assert 89 not in visible_to_user(members, visibility_spans(fetched, complete=False))
    assert 89 in visible_to_user(members, visibility_spans(fetched, complete=True))
    assert 89 in visible_to_user(members, visibility_spans([], complete=False))


def test_what_happened_between_two_stays_is_under_the_later_joins_state() -> None:
    """Stays [100, 110] and from 500 on; the state of the second join was set while we were away."""
    visibility = [
        life(99, 499, "shared", placed=None),
        life(499, None, "joined", placed=None, lived_before=110),
    ]
    assert visibility_spans(visibility, complete=True) == [
        Span(-FOREVER, 111, "shared"), Span(111, None, "joined"),
    ]  # fmt: skip
    members = [
        life(99, 100, "invite", placed=None),
        life(100, 499, "join", placed=100),
        life(499, 500, "leave", placed=None, lived_before=110),
        life(500, None, "join", placed=500),
    ]
    ranges = visible_to_user(spans_of(members, "membership"), visibility_spans(visibility, complete=True))
    assert 105 in ranges and 300 not in ranges and 500 in ranges


async def test_state_between_hidden_events_is_that_of_the_next_visible_one(world: World) -> None:
    """An old token gives nobody the members of a time that is hidden from them."""
    await world.create(visibility="joined")
    await world.member("join", CAROL)
    await world.member("leave", CAROL)
    hidden = (await world.access(ALICE)).room.head_position
    await world.say("hidden")
    await world.member("join", DAVE)
    access = await world.access(DAVE)
    join = access.room.head_position
    await world.say("seen")
    at = [access.state_at(at) for at in (hidden, join, join + 1, 10**9)]
    assert at == [join, join, join + 1, join + 1]
    alice = await world.access(ALICE)
    assert alice.state_at(hidden) == hidden


async def test_mls_commits_are_shown_to_members_whatever_the_visibility(world: World) -> None:
    await world.create(visibility="joined")
    commit = await world.send(draft("m.mls.commit", {"message": "x"}))
    [said] = await world.say("hidden")
    await world.member("join", CAROL)
    await world.member("leave", CAROL)
    later = await world.send(draft("m.mls.commit", {"message": "y"}))
    access = await world.access(CAROL)
    found = [await world.reading.event(access, event_id) for event_id in (commit, said, later)]
    assert [event is not None for event in found] == [True, False, False]
    assert await world.reading.event(await world.access(DAVE), commit) is None


async def test_many_events_are_rendered_as_few_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces (R14): the same events, with the same that is private to the reader."""
    await world.create()
    for n in range(5):
        await world.state("m.test", {"n": n}, key=str(n % 3))

    async def seen() -> list[JsonObject]:
        access = await world.access(ALICE)
        state = await world.reading.state(access)
        rendered = await world.reading.render(access, world.reader(ALICE), state)
        return [{**e, "unsigned": {k: v for k, v in e["unsigned"].items() if k != "age"}} for e in rendered]

    whole = await seen()
    assert sum("prev_content" in e["unsigned"] for e in whole) == 2
    for piece in (1, 2, len(whole)):
        monkeypatch.setattr(reading, "PIECE", piece)
        assert await seen() == whole
