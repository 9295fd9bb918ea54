"""What a user's push rules say to an event (CS API §Push Rules: conditions, §Actions).

Rules are compiled once and asked often. A condition that is not understood never matches, so neither
does its rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from lmserver.protocol.globs import Glob, contains_words
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.push_rules import KINDS, REPLACED_BY_MENTIONS, Rule, RuleSet, default_rules

BODY: Final = "content.body"
_COUNT: Final = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """What conditions ask about the room: joined users, the reader and their name in it, its power
    levels."""

    members: int
    reader: str
    display_name: str | None
    levels: PowerLevels

    @property
    def localpart(self) -> str:
        return self.reader[1:].partition(":")[0].lower()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first rule that matched says: its actions, without those of old specifications."""

    actions: tuple[Any, ...]
    highlight: bool

    @property
    def tweaks(self) -> dict[str, Any]:
        """For a push gateway; a highlight without value is true."""
        return {a["set_tweak"]: a.get("value", True) for a in self.actions if isinstance(a, dict)}


class Occasion:
    """An event in its room. `event` has the members clients see."""

    __slots__ = ("_body", "event", "room")

    def __init__(self, event: Mapping[str, Any], room: RoomFacts) -> None:
        self.event = event
        self.room = room
        self._body: str | None = None

    @property
    def mentions(self) -> bool:
        """Whether the event says itself whom it mentions."""
        return "m.mentions" in self.event["content"]

    def body(self) -> str | None:
        """The message's text in lower case."""
        if self._body is None:
            body = self.event["content"].get("body")
            if not isinstance(body, str):
                return None
            self._body = body.lower()
        return self._body

    def get(self, path: tuple[str, ...]) -> Any:
        """The property at a path; ABSENT where there is none."""
        found: Any = self.event
        for part in path:
            if not isinstance(found, dict) or part not in found:
                return ABSENT
            found = found[part]
        return found


ABSENT: Final = object()
Condition = Callable[[Occasion], bool]


@dataclass(frozen=True, slots=True)
class _Compiled:
    conditions: tuple[Condition, ...]
    verdict: Verdict | None
    not_for_mentions: bool


class PushRuleSet:
    """One user's rules, ready to be asked."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = _known(
            _shared(kind, json.dumps(rule, sort_keys=True))
            for kind in KINDS
            for rule in rules[kind]
            if rule["enabled"]
        )

    def verdict(self, occasion: Occasion) -> Verdict | None:
        """What is to be done; None where nobody is to be notified."""
        for rule in self._rules:
            if rule.not_for_mentions and occasion.mentions:
                continue
            if all(condition(occasion) for condition in rule.conditions):
                return rule.verdict
        return None


class DefaultRuleSet(PushRuleSet):
    """The default rules as whoever reads has them: most users change none, and all of those share it."""

    def __init__(self) -> None:
        rules = default_rules(_READER)
        self._rules = _known(
            _compile(kind, rule, _reader_condition)
            for kind in KINDS
            for rule in rules[kind]
            if rule["enabled"]
        )


_READER: Final = "@reader:"
"""Stands in the default rules for the user that they are of."""


def _known(rules: Iterable[_Compiled | None]) -> tuple[_Compiled, ...]:
    return tuple(rule for rule in rules if rule is not None)


@lru_cache(maxsize=4096)
def _shared(kind: str, rule: str) -> _Compiled | None:
    """Most rules are the same for everybody: they are compiled and kept once."""
    return _compile(kind, json.loads(rule), _condition)


def _compile(
    kind: str, rule: Rule, condition: Callable[[Mapping[str, Any]], Condition | None]
) -> _Compiled | None:
    """None for a rule that never matches."""
    conditions = [condition(c) for c in _conditions(kind, rule)]
    known = tuple(c for c in conditions if c is not None)
    if len(known) < len(conditions):
        return None
    return _Compiled(
        known, _shared_verdict(json.dumps(rule["actions"])), rule["rule_id"] in REPLACED_BY_MENTIONS
    )


def _conditions(kind: str, rule: Rule) -> list[dict[str, Any]]:
    """The predefined ones of kinds without conditions of their own."""
    match kind:
        case "content":
            return [{"kind": "event_match", "key": BODY, "pattern": rule["pattern"]}]
        case "room":
            return [{"kind": "event_property_is", "key": "room_id", "value": rule["rule_id"]}]
        case "sender":
            return [{"kind": "event_property_is", "key": "sender", "value": rule["rule_id"]}]
        case _:
            found: list[dict[str, Any]] = rule["conditions"]
            return found


@lru_cache(maxsize=256)
def _shared_verdict(actions: str) -> Verdict | None:
    """There are few that differ."""
    return _verdict(json.loads(actions))


def _verdict(actions: list[Any]) -> Verdict | None:
    if "notify" not in actions:
        return None
    kept = [
        a for a in actions if a == "notify" or (isinstance(a, dict) and isinstance(a.get("set_tweak"), str))
    ]
    highlight = any(
        isinstance(a, dict) and a["set_tweak"] == "highlight" and a.get("value", True) is True for a in kept
    )
    return Verdict(tuple(kept), highlight)


def _reader_condition(condition: Mapping[str, Any]) -> Condition | None:
    """A condition of the default rules; what names the reader is asked of the room's facts."""
    match condition:
        case {"kind": "event_match", "key": "state_key", "pattern": str(pattern)} if pattern == _READER:
            return lambda o: (
                isinstance(value := o.event.get("state_key"), str)
                and (value.lower() == o.room.reader.lower())
            )
        case {"kind": "event_property_contains", "key": str(key), "value": value} if value == _READER:
            path = parse_path(key)
            return lambda o: isinstance(found := o.get(path), list) and o.room.reader in found
        case {"kind": "event_match", "key": str(key), "pattern": "reader"} if key == BODY:
            return lambda o: (body := o.body()) is not None and contains_words(body, o.room.localpart)
    return _condition(condition)


def _condition(condition: Mapping[str, Any]) -> Condition | None:
    match condition:
        case {"kind": "event_match", "key": str(key), "pattern": str(pattern)}:
            return _event_match(key, pattern)
        case {"kind": "event_property_is", "key": str(key), "value": value} if _is_simple(value):
            return _property_is(parse_path(key), value)
        case {"kind": "event_property_contains", "key": str(key), "value": value} if _is_simple(value):
            return _property_contains(parse_path(key), value)
        case {"kind": "contains_display_name"}:
            return _contains_display_name
        case {"kind": "room_member_count", "is": str(text)}:
            return _member_count(text)
        case {"kind": "sender_notification_permission", "key": str(key)}:
            return lambda o: o.room.levels.user(o.event["sender"]) >= o.room.levels.notification(key)
    return None


def _event_match(key: str, pattern: str) -> Condition:
    glob, path = Glob(pattern), parse_path(key)
    if key == BODY:
        return lambda o: (body := o.body()) is not None and glob.matches_words(body)
    return lambda o: isinstance(value := o.get(path), str) and glob.matches(value.lower())


def _property_is(path: tuple[str, ...], value: Any) -> Condition:
    return lambda o: _same(o.get(path), value)


def _property_contains(path: tuple[str, ...], value: Any) -> Condition:
    return lambda o: isinstance(found := o.get(path), list) and any(_same(item, value) for item in found)


def _contains_display_name(occasion: Occasion) -> bool:
    name, body = occasion.room.display_name, occasion.body()
    return bool(name) and body is not None and contains_words(body, str(name).lower())


def _member_count(text: str) -> Condition | None:
    found = _COUNT.fullmatch(text)
    if found is None:
        return None
    number = int(found[2])
    match found[1]:
        case "<":
            return lambda o: o.room.members < number
        case ">":
            return lambda o: o.room.members > number
        case "<=":
            return lambda o: o.room.members <= number
        case ">=":
            return lambda o: o.room.members >= number
    return lambda o: o.room.members == number


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int)


def _same(found: Any, value: Any) -> bool:
    """Equal without casts: true is not 1."""
    return type(found) is type(value) and bool(found == value)


def parse_path(key: str) -> tuple[str, ...]:
    """A dot-separated path; dots and backslashes within a part are escaped (appendices §Dot-separated
    property paths)."""
    parts, part, escaped = [], "", False
    for character in key:
        if escaped:
            part += character if character in ".\\" else "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ".":
            parts.append(part)
            part = ""
        else:
            part += character
    parts.append(part + ("\\" if escaped else ""))
    return tuple(parts)
