"""Push rules: the specification's default set, and a user's rules as differences from it.

CS API §Push Notifications. A rule set is a dictionary of kind to rules, most important first; users' own
rules stand before the default ones, except for `.m.rule.master`.
"""

from __future__ import annotations

import copy
from typing import Any, Final

Rule = dict[str, Any]
RuleSet = dict[str, list[Rule]]

KINDS: Final = ("override", "content", "room", "sender", "underride")
MASTER: Final = ".m.rule.master"
REPLACED_BY_MENTIONS: Final = frozenset(
    {".m.rule.contains_display_name", ".m.rule.roomnotif", ".m.rule.contains_user_name"}
)
"""Rules that do not look at events which say themselves whom they mention."""

NOTIFY: Final[list[Any]] = ["notify"]
SOUND: Final[list[Any]] = ["notify", {"set_tweak": "sound", "value": "default"}]
HIGHLIGHT: Final[list[Any]] = ["notify", {"set_tweak": "highlight"}]
LOUD: Final[list[Any]] = [*SOUND, {"set_tweak": "highlight"}]
RING: Final[list[Any]] = ["notify", {"set_tweak": "sound", "value": "ring"}]


def _is(key: str, value: Any) -> dict[str, Any]:
    return {"kind": "event_property_is", "key": key, "value": value}


def _match(key: str, pattern: str) -> dict[str, Any]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _rule(rule_id: str, actions: list[Any], *conditions: dict[str, Any], enabled: bool = True) -> Rule:
    return {
        "rule_id": rule_id,
        "default": True,
        "enabled": enabled,
        "conditions": list(conditions),
        "actions": copy.deepcopy(actions),
    }


def default_rules(user_id: str) -> RuleSet:
    """§Predefined Rules, and those of MSC3930 for polls."""
    content = _rule(".m.rule.contains_user_name", LOUD)
    del content["conditions"]
    content["pattern"] = user_id[1:].partition(":")[0]
    return {
        "override": _override(user_id),
        "content": [content],
        "room": [],
        "sender": [],
        "underride": _underride(),
    }


def _override(user_id: str) -> list[Rule]:
    mention = {"kind": "event_property_contains", "key": "content.m\\.mentions.user_ids", "value": user_id}
    may_notify = {"kind": "sender_notification_permission", "key": "room"}
    return [
        _rule(MASTER, [], enabled=False),
        _rule(".m.rule.suppress_notices", [], _match("content.msgtype", "m.notice")),
        _rule(
            ".m.rule.invite_for_me",
            SOUND,
            _match("type", "m.room.member"),
            _match("content.membership", "invite"),
            _match("state_key", user_id),
        ),
        _rule(".m.rule.member_event", [], _match("type", "m.room.member")),
        _rule(".m.rule.is_user_mention", LOUD, mention),
        _rule(".m.rule.contains_display_name", LOUD, {"kind": "contains_display_name"}),
        _rule(".m.rule.is_room_mention", HIGHLIGHT, _is("content.m\\.mentions.room", True), may_notify),
        _rule(".m.rule.roomnotif", HIGHLIGHT, _match("content.body", "@room"), may_notify),
        _rule(".m.rule.tombstone", HIGHLIGHT, _match("type", "m.room.tombstone"), _match("state_key", "")),
        _rule(".m.rule.reaction", [], _match("type", "m.reaction")),
        _rule(".m.rule.room.server_acl", [], _match("type", "m.room.server_acl"), _match("state_key", "")),
        _rule(".m.rule.suppress_edits", [], _is("content.m\\.relates_to.rel_type", "m.replace")),
        _rule(".m.rule.poll_response", [], _match("type", "m.poll.response")),
    ]


def _underride() -> list[Rule]:
    two = {"kind": "room_member_count", "is": "2"}
    return [
        _rule(".m.rule.call", RING, _match("type", "m.call.invite")),
        _rule(".m.rule.encrypted_room_one_to_one", SOUND, two, _match("type", "m.room.encrypted")),
        _rule(".m.rule.room_one_to_one", SOUND, two, _match("type", "m.room.message")),
        _rule(".m.rule.message", NOTIFY, _match("type", "m.room.message")),
        _rule(".m.rule.encrypted", NOTIFY, _match("type", "m.room.encrypted")),
        _rule(".m.rule.poll_start_one_to_one", SOUND, two, _match("type", "m.poll.start")),
        _rule(".m.rule.poll_start", NOTIFY, _match("type", "m.poll.start")),
        _rule(".m.rule.poll_end_one_to_one", SOUND, two, _match("type", "m.poll.end")),
        _rule(".m.rule.poll_end", NOTIFY, _match("type", "m.poll.end")),
    ]


def no_changes() -> dict[str, Any]:
    """The differences of somebody who changed nothing: `own` rules by kind, and of default rules, by kind
    and ID, what was `changed`."""
    return {"own": {}, "changed": {}}


def merged(user_id: str, changes: dict[str, Any]) -> RuleSet:
    """The rules in force: the default ones with a user's differences."""
    rules = default_rules(user_id)
    for kind, defaults in rules.items():
        changed = changes["changed"].get(kind, {})
        for rule in defaults:
            rule.update(changed.get(rule["rule_id"], {}))
        first = 1 if kind == "override" else 0
        defaults[first:first] = changes["own"].get(kind, [])
    return rules
