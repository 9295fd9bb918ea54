"""The auth rules one by one: a table of events and the rule that refuses them, attacks by their id."""

from __future__ import annotations

from typing import Any

import pytest

from lmserver.protocol import hub
from lmserver.protocol.auth_rules import auth_types, authorize, check_auth_events, check_create
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft, Pdu
from lmserver.protocol.room_versions import LM_02
from tests.kit.rooms import (
    ALICE,
    BOB,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    draft,
    key_of,
    lpdu,
    member,
    message,
    opening,
)  # fmt: skip


@pytest.fixture
def room() -> RoomBuilder:
    built = RoomBuilder()
    built.add(member("join", sender=BOB))
    return built


def refused(event: EventDraft, room: RoomBuilder) -> str:
    with pytest.raises(AuthRejected) as error:
        authorize(event, room.view)
    return error.value.rule


def levels(content: dict[str, Any], sender: str = ALICE) -> EventDraft:
    return draft("m.room.power_levels", content, sender=sender, state_key="")


FIELDS = ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["50", True, None, [], {}, 2**53])
def test_a1_levels_that_are_not_integers(room: RoomBuilder, field: str, value: Any) -> None:
    assert refused(levels({field: value}), room) == "9.1"


@pytest.mark.parametrize("value", [5, [], {"m.x": "5"}, {"m.x": True}, {"m.x": None}])
def test_a1_events_that_are_not_levels(room: RoomBuilder, value: Any) -> None:
    assert refused(levels({"events": value}), room) == "9.2"


@pytest.mark.parametrize("users", [{"a": 50}, {"@A:x.test": 1}, {"__proto__": 1}, {ALICE: "100"}, [], 5])
def test_a2_users_that_are_no_user_ids(room: RoomBuilder, users: Any) -> None:
    assert refused(levels({"users": users}), room) == "9.3"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"users": {ALICE: 101}}, "9.9"),
        ({"users": {ALICE: 100, BOB: 101}}, "9.9"),
        ({"users": {ALICE: 100}, "ban": 101}, "9.5.2"),
        ({"users": {ALICE: 100}, "events": {"m.x": 101}}, "9.7"),
    ],
)
def test_a5_nobody_gives_more_than_they_have(room: RoomBuilder, content: dict[str, Any], rule: str) -> None:
    assert refused(levels(content), room) == rule


def test_a5_a_moderator_cannot_lower_what_is_above_them(room: RoomBuilder) -> None:
    room.add(levels({"users": {ALICE: 100, BOB: 50}, "state_default": 50, "ban": 80, "events": {"m.x": 80}}))
    rest = {"users": {ALICE: 100, BOB: 50}, "state_default": 50}
    assert refused(levels({**rest, "ban": 0, "events": {"m.x": 80}}, BOB), room) == "9.5.1"
    assert refused(levels({**rest, "ban": 80, "events": {"m.x": 0}}, BOB), room) == "9.6"
    assert refused(levels({**rest, "users": {BOB: 50}, "ban": 80, "events": {"m.x": 80}}, BOB), room) == "9.8"


def test_a6_an_equal_is_not_demoted_but_oneself_may_be(room: RoomBuilder) -> None:
    room.add(levels({"users": {ALICE: 100, BOB: 100}}))
    assert refused(levels({"users": {ALICE: 0, BOB: 100}}, BOB), room) == "9.8"
    authorize(levels({"users": {ALICE: 100, BOB: 0}}, BOB), room.view)


def test_a4_defaults_without_power_levels() -> None:
    built = RoomBuilder(opening()[:2])
    authorize(draft("m.room.topic", {}, state_key=""), built.view)
    authorize(levels({"users": {ALICE: 100}}), built.view)
    join_rules = draft("m.room.join_rules", {"join_rule": "public"}, state_key="")
    built.add(join_rules)
    built.add(member("join", sender=BOB))
    assert refused(draft("m.room.topic", {}, sender=BOB, state_key=""), built) == "7"
    authorize(message(sender=BOB), built.view)
    authorize(member("invite", sender=BOB, target=MALLORY), built.view)
    assert refused(member("ban", sender=BOB, target=MALLORY), built) == "5.5.3"


def test_a8_a_second_create_is_refused(room: RoomBuilder) -> None:
    assert refused(draft("m.room.create", {"room_version": LM_02.id}, state_key=""), room) == "3.1"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"room_id": f"!x:{PARTICIPANT}"}, "3.2"),
        ({"content": {"room_version": "11"}}, "3.3"),
        ({"content": {"room_version": 1}}, "3.3"),
        ({"content": {}}, "3.3"),
        ({"prev_events": ["$x"]}, "3.1"),
        ({"auth_events": ["$x"]}, "3.1"),
        ({"type": "m.room.member"}, "3"),
        ({"state_key": "x"}, "3"),
    ],
)
def test_a9_a11_creates_that_start_nothing(change: dict[str, Any], rule: str) -> None:
    good = hub.create_event(opening()[0], LM_02, key_of(HUB))
    check_create(good)
    with pytest.raises(AuthRejected) as error:
        check_create(Pdu({**good.fields, **change}, LM_02))
    assert error.value.rule == rule


def test_a12_nobody_joins_the_creator() -> None:
    built = RoomBuilder(opening()[:1])
    assert refused(member("join", sender=MALLORY, target=ALICE), built) == "5.2.2"
    authorize(member("join"), built.view)


def test_a12_the_creator_joins_freely_only_right_after_the_create_event() -> None:
    built = RoomBuilder(opening(join_rule="invite"))
    built.add(member("leave"))
    assert refused(member("join"), built) == "5.2.6"


def test_a14_unbanning_takes_the_level_to_ban(room: RoomBuilder) -> None:
    room.add(levels({"users": {ALICE: 100, BOB: 50}, "ban": 60, "kick": 40}))
    room.add(member("ban", target=MALLORY))
    assert refused(member("leave", sender=BOB, target=MALLORY), room) == "5.4.3"
    authorize(member("leave", target=MALLORY), room.view)


def test_a14_an_equal_is_not_banned(room: RoomBuilder) -> None:
    room.add(levels({"users": {ALICE: 100, BOB: 100}}))
    assert refused(member("ban", sender=BOB, target=ALICE), room) == "5.5.3"
    assert refused(member("leave", sender=BOB, target=ALICE), room) == "5.4.5"


def test_a15_invites(room: RoomBuilder) -> None:
    assert refused(member("invite", target=BOB), room) == "5.3.2"
    assert refused(member("invite", sender=MALLORY, target=f"@x:{HUB}"), room) == "5.3.1"


def test_a16_a_knock_while_invited_is_accepted_as_the_draft_says() -> None:
    built = RoomBuilder(opening(join_rule="knock"))
    built.add(member("invite", target=BOB))
    authorize(member("knock", sender=BOB), built.view)


def test_a17_state_keys_of_other_users(room: RoomBuilder) -> None:
    room.add(levels({"users": {ALICE: 100, BOB: 100}}))
    assert refused(draft("custom.state", {}, sender=BOB, state_key=ALICE), room) == "8"
    authorize(draft("custom.state", {}, sender=BOB, state_key=BOB), room.view)


@pytest.mark.parametrize("state_key", [None, "", "__proto__", "alice", "@Alice:hub.test", "@a"])
def test_a18_members_that_are_no_users(room: RoomBuilder, state_key: str | None) -> None:
    event = draft("m.room.member", {"membership": "invite"}, state_key=state_key)
    assert refused(event, room) == "5.1"


@pytest.mark.parametrize("membership", [None, 5, ["join"], {}])
def test_a18_memberships_that_are_no_text(room: RoomBuilder, membership: Any) -> None:
    event = draft("m.room.member", {"membership": membership}, state_key=ALICE)
    assert refused(event, room) == "5.1"


@pytest.mark.parametrize("name", ["__class__", "constructor", "toString", "__proto__"])
def test_a19_names_of_the_machinery_are_plain_names(room: RoomBuilder, name: str) -> None:
    pdu = room.add(draft(name, {name: 1}, state_key=name))
    assert room.view.get(name, name) is not None
    assert pdu.content == {name: 1}


def test_a21_auth_events_of_another_room(room: RoomBuilder) -> None:
    other = RoomBuilder(opening(room_id=f"!other:{HUB}", levels={"users": {MALLORY: 100, ALICE: 100}}))
    pdu = room.add(message())
    foreign = [e.event_id for e in other.view.state.values() if e.type == "m.room.power_levels"]
    cited = [pdu.auth_events[0], *foreign]
    with pytest.raises(AuthRejected) as error:
        check_auth_events(Pdu({**pdu.fields, "auth_events": cited}, LM_02), room.view)
    assert error.value.rule == "4.2"


def test_rule_4_duplicates_missing_create_and_missing_members(room: RoomBuilder) -> None:
    view = room.view
    pdu = hub.complete_draft(message(), view, key_of(HUB))
    check_auth_events(pdu, view)
    create = view.get("m.room.create")
    assert create is not None
    for cited, rule in (
        ([*pdu.auth_events, pdu.auth_events[0]], "4.1"),
        ([e for e in pdu.auth_events if e != create.event_id], "4.3"),
        (pdu.auth_events[:-1], "4.2"),
    ):
        with pytest.raises(AuthRejected) as error:
            check_auth_events(Pdu({**pdu.fields, "auth_events": cited}, LM_02), view)
        assert error.value.rule == rule


def test_auth_events_selection() -> None:
    create, power = ("m.room.create", ""), ("m.room.power_levels", "")
    rules, sender, target = ("m.room.join_rules", ""), ("m.room.member", ALICE), ("m.room.member", BOB)
    assert auth_types(draft("m.room.create", state_key="")) == []
    assert set(auth_types(message())) == {create, power, sender}
    for membership, reads_rules in (
        ("join", True),
        ("invite", True),
        ("knock", True),
        ("ban", False),
        ("leave", False),
    ):
        found = auth_types(member(membership, target=BOB))
        assert set(found) == {create, power, sender, target} | ({rules} if reads_rules else set())
        assert len(found) == len(set(found))
    assert set(auth_types(member("join"))) == {create, power, sender, rules}


@pytest.mark.parametrize("rule", ["restricted", "knock_restricted"])
def test_restricted_rules_are_not_set(room: RoomBuilder, rule: str) -> None:
    assert refused(draft("m.room.join_rules", {"join_rule": rule}, state_key=""), room) == "5.2.6"


def test_senders_outside_the_room_are_refused(room: RoomBuilder) -> None:
    assert refused(message(sender=MALLORY), room) == "6"
    room.add(member("leave", sender=BOB))
    assert refused(message(sender=BOB), room) == "6"


def test_the_hub_says_which_rule(room: RoomBuilder) -> None:
    decision = room.decide(lpdu(message(sender=MALLORY)))
    assert decision == hub.Reject("M_FORBIDDEN", "the sender is not in the room", "6")
    assert room.view.room_id == ROOM
