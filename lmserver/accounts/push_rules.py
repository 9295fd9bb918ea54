"""Push rules: the specification's default set, with what each user changed of it.

Stored as account data of type m.push_rules, which is also how /sync tells other devices (CS API
§Push Rules). Nothing is pushed yet; clients evaluate the rules themselves.
"""

from __future__ import annotations

import copy
from typing import Any

from lmserver.accounts.client_data import ClientData

KINDS = ("override", "content", "room", "sender", "underride")
TYPE = "m.push_rules"
MAX_RULES = 1_000
NOTIFY: list[Any] = ["notify"]
SOUND: list[Any] = ["notify", {"set_tweak": "sound", "value": "default"}]
HIGHLIGHT: list[Any] = ["notify", {"set_tweak": "highlight"}]
LOUD: list[Any] = [*SOUND, {"set_tweak": "highlight"}]
RING: list[Any] = ["notify", {"set_tweak": "sound", "value": "ring"}]


class UnknownRule(Exception):
    """No rule of this kind and ID."""


class BadRule(ValueError):
    """A rule that is not one; the text says why."""


def _is(key: str, value: Any) -> dict[str, Any]:
    return {"kind": "event_property_is", "key": key, "value": value}


def _match(key: str, pattern: str) -> dict[str, Any]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _rule(
    rule_id: str, actions: list[Any], *conditions: dict[str, Any], enabled: bool = True
) -> dict[str, Any]:
    return {
        "rule_id": rule_id,
        "default": True,
        "enabled": enabled,
        "conditions": list(conditions),
        "actions": copy.deepcopy(actions),
    }


def default_rules(user_id: str) -> dict[str, list[dict[str, Any]]]:
    """The server-default rules of the specification (CS API §Predefined Rules)."""
    localpart = user_id[1:].split(":", 1)[0]
    contains = {"kind": "contains_display_name"}
    mention = {"kind": "event_property_contains", "key": "content.m\\.mentions.user_ids", "value": user_id}
    may_notify = {"kind": "sender_notification_permission", "key": "room"}
    two = {"kind": "room_member_count", "is": "2"}
    override = [
        _rule(".m.rule.master", [], enabled=False),
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
        _rule(".m.rule.contains_display_name", LOUD, contains),
        _rule(".m.rule.is_room_mention", HIGHLIGHT, _is("content.m\\.mentions.room", True), may_notify),
        _rule(".m.rule.roomnotif", HIGHLIGHT, _match("content.body", "@room"), may_notify),
        _rule(".m.rule.tombstone", HIGHLIGHT, _match("type", "m.room.tombstone"), _match("state_key", "")),
        _rule(".m.rule.reaction", [], _match("type", "m.reaction")),
        _rule(".m.rule.room.server_acl", [], _match("type", "m.room.server_acl"), _match("state_key", "")),
        _rule(".m.rule.suppress_edits", [], _is("content.m\\.relates_to.rel_type", "m.replace")),
    ]
    content = _rule(".m.rule.contains_user_name", LOUD)
    del content["conditions"]
    content["pattern"] = localpart
    underride = [
        _rule(".m.rule.call", RING, _match("type", "m.call.invite")),
        _rule(".m.rule.encrypted_room_one_to_one", SOUND, two, _match("type", "m.room.encrypted")),
        _rule(".m.rule.room_one_to_one", SOUND, two, _match("type", "m.room.message")),
        _rule(".m.rule.message", NOTIFY, _match("type", "m.room.message")),
        _rule(".m.rule.encrypted", NOTIFY, _match("type", "m.room.encrypted")),
    ]
    return {"override": override, "content": [content], "room": [], "sender": [], "underride": underride}


class PushRules:
    """Reads and changes one user's rules."""

    def __init__(self, data: ClientData) -> None:
        self._data = data

    async def rules(self, user_id: str) -> dict[str, list[dict[str, Any]]]:
        """Kind to rules, in order of precedence."""
        stored = await self._data.get(user_id, "", TYPE)
        found = (stored or {}).get("global")
        return found if isinstance(found, dict) else default_rules(user_id)

    async def rule(self, user_id: str, kind: str, rule_id: str) -> dict[str, Any]:
        """Raises UnknownRule."""
        return _find(await self.rules(user_id), kind, rule_id)

    async def put(
        self,
        user_id: str,
        kind: str,
        rule_id: str,
        body: dict[str, Any],
        before: str | None,
        after: str | None,
    ) -> None:
        """Add or replace a user's own rule; raises BadRule or UnknownRule."""
        rules = await self.rules(user_id)
        rule = _checked(kind, rule_id, body)
        own = [r for r in _of_kind(rules, kind) if r["rule_id"] != rule_id]
        index = 1 if kind == "override" else 0
        if before is not None or after is not None:
            wanted = before if before is not None else after
            place = [i for i, r in enumerate(own) if r["rule_id"] == wanted]
            if not place:
                raise UnknownRule
            index = place[0] + (before is None)
        own.insert(min(index, len(own)), rule)
        if sum(map(len, rules.values())) >= MAX_RULES:
            raise BadRule("there are too many rules")
        await self._store(user_id, {**rules, kind: own})

    async def delete(self, user_id: str, kind: str, rule_id: str) -> None:
        """Raises UnknownRule; server-default rules can only be disabled."""
        rules = await self.rules(user_id)
        rule = _find(rules, kind, rule_id)
        if rule["default"]:
            raise BadRule("a default rule can be disabled, not deleted")
        await self._store(user_id, {**rules, kind: [r for r in rules[kind] if r is not rule]})

    async def change(self, user_id: str, kind: str, rule_id: str, field: str, value: Any) -> None:
        """Set `enabled` or `actions`; raises UnknownRule or BadRule."""
        if field == "enabled" and not isinstance(value, bool):
            raise BadRule("enabled is a boolean")
        if field == "actions":
            _check_actions(value)
        rules = await self.rules(user_id)
        _find(rules, kind, rule_id)[field] = value
        await self._store(user_id, rules)

    async def _store(self, user_id: str, rules: dict[str, Any]) -> None:
        await self._data.put(user_id, "", TYPE, {"global": rules})


def _of_kind(rules: dict[str, list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    if kind not in KINDS:
        raise UnknownRule
    return rules.get(kind, [])


def _find(rules: dict[str, list[dict[str, Any]]], kind: str, rule_id: str) -> dict[str, Any]:
    for rule in _of_kind(rules, kind):
        if rule["rule_id"] == rule_id:
            return rule
    raise UnknownRule


def _check_actions(value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(action, str | dict) for action in value):
        raise BadRule("actions is a list of actions")


def _checked(kind: str, rule_id: str, body: dict[str, Any]) -> dict[str, Any]:
    if rule_id.startswith(".") or not rule_id or len(rule_id) > 255 or "/" in rule_id or "\\" in rule_id:
        raise BadRule("the rule ID is not valid")
    _check_actions(body.get("actions"))
    rule = {"rule_id": rule_id, "default": False, "enabled": True, "actions": body["actions"]}
    if kind == "content":
        if not isinstance(body.get("pattern"), str):
            raise BadRule("pattern is a string")
        rule["pattern"] = body["pattern"]
    elif kind in ("override", "underride"):
        conditions = body.get("conditions", [])
        if not isinstance(conditions, list) or not all(isinstance(c, dict) for c in conditions):
            raise BadRule("conditions is a list of conditions")
        rule["conditions"] = conditions
    return rule
