"""Globs and conditions of push rules, as tables."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol.globs import Glob
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.push_evaluation import DefaultRuleSet, Occasion, PushRuleSet, RoomFacts, parse_path
from lmserver.protocol.push_rules import KINDS, RuleSet, default_rules, merged, no_changes
from tests.kit.rooms import ALICE, BOB, ROOM

WHOLE = [
    ("lunc?*", "lunch plans", True), ("lunc?*", "lunch", True), ("lunc?*", " lunch", False), ("lunc?*", "lunc", False),
    ("*", "", True), ("", "", True), ("", "x", False), ("a*b*c", "aXbYc", True), ("a*b*c", "acb", False), ("?", "", False),
    ("M.Room.*", "m.room.member", True), ("m.room.member", "m-room-member", False), ("**a**", "bab", True),
]  # fmt: skip
WORDS = [
    ("cake", "a Cake!", True), ("cake", "cakes", False), ("cake", "pancake cake", True), ("cake", "cheese_cake", False),
    ("ex*ple", "an example event.", True), ("ex*ple", "exple", True), ("ex*ple", "an exciting triple-whammy", True),
    ("@room", "hey @room", True), ("@room", "hey @rooms", False), ("c?ke", "the coke", True), ("c?ke", "the choke", False),
    ("*", "", True), ("a", "ba ab xay", False), ("ünter", "günter", False), ("nter", "günter", True), ("a b", "xa b a b", True),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "text", "expected"), WHOLE)
def test_a_glob_describes_the_whole_text(pattern: str, text: str, expected: bool) -> None:
    assert Glob(pattern).matches(text.lower()) is expected


@pytest.mark.parametrize(("pattern", "text", "expected"), WORDS)
def test_a_glob_describes_words_of_a_body(pattern: str, text: str, expected: bool) -> None:
    assert Glob(pattern).matches_words(text.lower()) is expected


@given(st.text("ab *?", max_size=6), st.text("ab ", max_size=10))
def test_globs_agree_with_regular_expressions(pattern: str, text: str) -> None:
    """The oracle backtracks, which on such short texts does no harm."""
    body = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    assert Glob(pattern).matches(text) is (re.fullmatch(body, text, re.DOTALL) is not None)
    words = rf"(?:(?<![A-Za-z0-9_]))(?:{body})(?![A-Za-z0-9_])"
    assert Glob(pattern).matches_words(text) is (re.search(words, text, re.DOTALL) is not None)


@pytest.mark.parametrize(
    "pattern", ["*a" * 100 + "b", "a?" * 100 + "b", "a" * 200 + "*b", "a " * 100 + "b", "a"]
)
@pytest.mark.parametrize("text", ["a" * 65_000 + "_b", "a " * 32_000 + "b", "ab" * 32_000])
def test_r11_no_pattern_makes_a_text_cost_more_than_one_pass(pattern: str, text: str) -> None:
    glob, began = Glob(pattern), time.process_time()
    glob.matches(text)
    glob.matches_words(text)
    assert time.process_time() - began < 0.3


def test_paths_have_escaped_dots() -> None:
    assert parse_path("content.m\\.relates_to.rel_type") == ("content", "m.relates_to", "rel_type")
    assert parse_path("a\\\\.b\\c\\") == ("a\\", "b\\c\\")


# -- conditions -------------------------------------------------------------------------------------


def event(content: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    body = {"msgtype": "m.text", "body": "hello"} if content is None else content
    return {"type": "m.room.message", "sender": BOB, "room_id": ROOM, "content": body, **more}


def facts(members: int = 3, name: str | None = "Alice L", level: int = 0, needed: Any = 50) -> RoomFacts:
    content = {"users": {BOB: level}, "notifications": {"room": needed}}
    return RoomFacts(members, ALICE, name, PowerLevels(content, ALICE))


def only(condition: dict[str, Any]) -> PushRuleSet:
    rules: RuleSet = {kind: [] for kind in KINDS}
    rules["override"] = [{"rule_id": "x", "enabled": True, "actions": ["notify"], "conditions": [condition]}]
    return PushRuleSet(rules)


def matching(key: str, pattern: Any) -> dict[str, Any]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


CONDITIONS: list[tuple[dict[str, Any], dict[str, Any], RoomFacts, bool]] = [
    (matching("content.msgtype", "M.TEXT"), event(), facts(), True),
    (matching("content.number", "*"), event({"number": 5}), facts(), False),
    (matching("content.absent", "*"), event(), facts(), False),
    (matching("content.body", 5), event(), facts(), False),
    (matching("content.body", "hell"), event(), facts(), False),
    (matching("content.body.x", "hell"), event(), facts(), False),
    ({"kind": "event_property_is", "key": "content.a", "value": True}, event({"a": True}), facts(), True),
    ({"kind": "event_property_is", "key": "content.a", "value": True}, event({"a": 1}), facts(), False),
    ({"kind": "event_property_is", "key": "content.a", "value": None}, event({"a": None}), facts(), True),
    ({"kind": "event_property_is", "key": "content.a", "value": None}, event({}), facts(), False),
    ({"kind": "event_property_is", "key": "content.a", "value": []}, event({"a": []}), facts(), False),
    ({"kind": "event_property_contains", "key": "content.a", "value": 1}, event({"a": [True, 1]}), facts(), True),
    ({"kind": "event_property_contains", "key": "content.a", "value": 1}, event({"a": [True]}), facts(), False),
    ({"kind": "event_property_contains", "key": "content.a", "value": "x"}, event({"a": "x"}), facts(), False),
    ({"kind": "contains_display_name"}, event({"body": "ask alice l?"}), facts(), True),
    ({"kind": "contains_display_name"}, event({"body": "ask alice lee"}), facts(), False),
    ({"kind": "contains_display_name"}, event({"body": "ask "}), facts(name=""), False),
    ({"kind": "contains_display_name"}, event({"body": ["alice l"]}), facts(), False),
    ({"kind": "room_member_count", "is": "3"}, event(), facts(), True),
    ({"kind": "room_member_count", "is": "==2"}, event(), facts(), False),
    ({"kind": "room_member_count", "is": "<=3"}, event(), facts(), True),
    ({"kind": "room_member_count", "is": ">3"}, event(), facts(), False),
    ({"kind": "room_member_count", "is": "<4"}, event(), facts(), True),
    ({"kind": "room_member_count", "is": ">=3"}, event(), facts(), True),
    ({"kind": "room_member_count", "is": "many"}, event(), facts(), False),
    ({"kind": "sender_notification_permission", "key": "room"}, event(), facts(level=50), True),
    ({"kind": "sender_notification_permission", "key": "room"}, event(), facts(level=49), False),
    ({"kind": "sender_notification_permission", "key": "room"}, event(), facts(level=50, needed="0"), True),
    ({"kind": "org.example.unknown"}, event(), facts(), False),
    ({}, event(), facts(), False),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "what", "room", "expected"), CONDITIONS)
def test_conditions(condition: dict[str, Any], what: dict[str, Any], room: RoomFacts, expected: bool) -> None:
    assert (only(condition).verdict(Occasion(what, room)) is not None) is expected


# -- the default rules ------------------------------------------------------------------------------


def mentions(**what: Any) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": "alice, @room", "m.mentions": what}


DEFAULTS: list[tuple[str, dict[str, Any], RoomFacts, str | None]] = [
    ("a message", event(), facts(), ""),
    ("in a room of two", event(), facts(members=2), "sound"),
    ("a notice", event({"msgtype": "m.notice", "body": "alice"}), facts(), None),
    ("my name", event({"msgtype": "m.text", "body": "hi alice"}), facts(), "sound highlight"),
    ("my name in a mention of nobody", event(mentions()), facts(), ""),
    ("a mention", event(mentions(user_ids=[ALICE])), facts(), "sound highlight"),
    ("of another", event(mentions(user_ids=[BOB])), facts(), ""),
    ("of the room", event(mentions(room=True)), facts(level=50), "highlight"),
    ("without the level", event(mentions(room=True)), facts(), ""),
    ("@room", event({"msgtype": "m.text", "body": "@room"}), facts(level=50), "highlight"),
    ("a reaction", event({}, type="m.reaction"), facts(), None),
    ("an edit", event({"body": "alice", "m.relates_to": {"rel_type": "m.replace"}}), facts(name=None), None),
    ("an encrypted event", event({}, type="m.room.encrypted"), facts(), ""),
    ("a call", event({}, type="m.call.invite"), facts(), "sound"),
    ("a poll", event({}, type="m.poll.start"), facts(), ""),
    ("a vote", event({}, type="m.poll.response"), facts(), None),
    ("a tombstone", event({}, type="m.room.tombstone", state_key=""), facts(), "highlight"),
    ("no tombstone", event({}, type="m.room.tombstone"), facts(), None),
    ("an invite", event({"membership": "invite"}, type="m.room.member", state_key=ALICE), facts(), "sound"),
    ("another's", event({"membership": "invite"}, type="m.room.member", state_key=BOB), facts(), None),
    ("something else", event({}, type="org.example"), facts(), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what", "room", "expected"), DEFAULTS, ids=[d[0] for d in DEFAULTS])
def test_the_default_rules(name: str, what: dict[str, Any], room: RoomFacts, expected: str | None) -> None:
    verdict = PushRuleSet(merged(ALICE, no_changes())).verdict(Occasion(what, room))
    found = None if verdict is None else sorted(verdict.tweaks)
    assert found == (None if expected is None else sorted(expected.split()))
    assert verdict is None or verdict.highlight is ("highlight" in (expected or ""))


def test_own_rules_stand_before_the_default_ones_and_the_master_before_all() -> None:
    changes = no_changes()
    mine = {"rule_id": "mine", "default": False, "enabled": True, "conditions": [], "actions": ["notify"]}
    changes["own"]["override"] = [mine]
    notice = Occasion(event({"msgtype": "m.notice", "body": "x"}), facts())
    assert [r["rule_id"] for r in merged(ALICE, changes)["override"]][:3] == [
        ".m.rule.master", "mine", ".m.rule.suppress_notices",
    ]  # fmt: skip
    assert PushRuleSet(merged(ALICE, changes)).verdict(notice) is not None
    changes["changed"]["override"] = {".m.rule.master": {"enabled": True}}
    assert PushRuleSet(merged(ALICE, changes)).verdict(notice) is None


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (["dont_notify"], None),
        (["coalesce"], None),
        (["notify", "coalesce", {"set_tweak": "highlight", "value": False}], False),
        (["notify", {"set_tweak": "highlight"}], True),
    ],
)
def test_actions(actions: list[Any], expected: bool | None) -> None:
    changes = no_changes()
    changes["own"]["room"] = [{"rule_id": ROOM, "default": False, "enabled": True, "actions": actions}]
    verdict = PushRuleSet(merged(ALICE, changes)).verdict(Occasion(event(), facts()))
    assert (None if verdict is None else verdict.highlight) is expected
    assert verdict is None or "coalesce" not in verdict.actions


DEFAULT_CASES: list[dict[str, Any]] = [
    event(),
    event({"msgtype": "m.notice", "body": "alice"}),
    event({"body": "hello ALICE!"}),
    event({"body": "malice"}),
    event({"body": "hello", "m.mentions": {"user_ids": [ALICE, 5, None]}}),
    event({"body": "hello", "m.mentions": {"user_ids": [BOB]}}),
    event({"body": "hello", "m.mentions": {"user_ids": ALICE}}),
    event({"body": "hello", "m.mentions": {"user_ids": ["@reader:"]}}),
    event({"body": "the reader"}),
    event({"body": "@room"}),
    event({"membership": "invite"}, type="m.room.member", state_key=ALICE),
    event({"membership": "invite"}, type="m.room.member", state_key=ALICE.upper()),
    event({"membership": "invite"}, type="m.room.member", state_key=BOB),
    event({"membership": "invite"}, type="m.room.member", state_key="@reader:"),
    event({}, type="m.room.tombstone", state_key=""),
    event({}, type="m.room.encrypted"),
]


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("happened", DEFAULT_CASES, ids=str)
def test_the_defaults_that_all_share_say_what_each_ones_own_would(
    happened: dict[str, Any], members: int
) -> None:
    for level in (0, 100):
        room = facts(members, level=level)
        own = PushRuleSet(default_rules(ALICE)).verdict(Occasion(happened, room))
        assert DefaultRuleSet().verdict(Occasion(happened, room)) == own
