"""A user's push rules: read, changed, and put before the user's other devices as `m.push_rules`.

Only differences from the default rules are stored (protocol/push_rules.py). CS API §Push Rules API.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import orjson

from lmserver.protocol.globs import has_wildcards
from lmserver.protocol.push_evaluation import DefaultRuleSet, PushRuleSet
from lmserver.protocol.push_rules import KINDS, Rule, RuleSet, default_rules, merged, no_changes
from lmserver.storage import push_rules
from lmserver.storage.database import Connection, Database, Executor
from lmserver.storage.together import Together

TYPE: Final = "m.push_rules"
MAX_RULES: Final = 1_000
MAX_PATTERNS: Final = 500
"""Patterns among a user's rules, which every message in every room of theirs is compared with."""
MAX_WILDCARDS: Final = 50
"""Patterns with wildcards among them."""
MAX_PATTERN: Final = 255
MAX_CONDITIONS: Final = 20
MAX_ACTIONS: Final = 20
MAX_RULE: Final = 16_384
"""Bytes of one rule."""
MAX_COMPILED: Final = 5_000
"""Users with rules of their own that are kept compiled in memory."""
_TEXTS: Final = ("kind", "key", "pattern", "is")


class UnknownRule(Exception):
    """No rule of this kind and ID."""


class UnknownNeighbour(Exception):
    """`before` or `after` names no rule of the user's own."""


class BadRule(ValueError):
    """A rule that is not one; the text says why."""


class PushRules:
    """Reads and changes one user's rules."""

    def __init__(self, db: Database, publish: Callable[[Iterable[str]], None]) -> None:
        self._db = db
        self._publish = publish
        self._stored: Together[str, bytes | None] = Together(partial(push_rules.of_users, db))
        self._compiled: OrderedDict[str, tuple[bytes, PushRuleSet]] = OrderedDict()
        self._default = DefaultRuleSet()

    async def compiled(self, user_id: str) -> PushRuleSet:
        """The rules in force, ready to be asked."""
        stored = await self._stored.answer(user_id)
        if stored is None:
            return self._default
        known = self._compiled.pop(user_id, None)
        if known is None or known[0] != stored:
            known = stored, PushRuleSet(_merged(user_id, stored))
        self._compiled[user_id] = known
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return known[1]

    async def rules(self, user_id: str) -> RuleSet:
        """Kind to rules, in order of precedence."""
        return await rules_of(self._db, user_id)

    async def rule(self, user_id: str, kind: str, rule_id: str) -> Rule:
        """Raises UnknownRule."""
        rules = await self.rules(user_id)
        found = next((r for r in rules.get(kind, []) if r["rule_id"] == rule_id), None)
        if found is None:
            raise UnknownRule
        return found

    async def put(
        self,
        user_id: str,
        kind: str,
        rule_id: str,
        body: dict[str, Any],
        before: str | None,
        after: str | None,
    ) -> None:
        """Add or replace a user's own rule. Raises BadRule, UnknownNeighbour, and UnknownRule for a kind
        there is not. A rule that is replaced keeps its place unless another one is asked for."""
        if kind not in KINDS:
            raise UnknownRule
        rule = checked_rule(kind, rule_id, body)

        def change(changes: dict[str, Any]) -> None:
            own = changes["own"].setdefault(kind, [])
            ids = [r["rule_id"] for r in own]
            old = ids.index(rule_id) if rule_id in ids else None
            if old is not None:
                rule["enabled"] = own[old]["enabled"]
                del own[old], ids[old]
            own.insert(_place(ids, old, before, after), rule)
            _check_amount(changes["own"])

        await self._change(user_id, change)

    async def delete(self, user_id: str, kind: str, rule_id: str) -> None:
        """Raises UnknownRule, and BadRule for server-default rules: they can only be disabled."""
        if any(r["rule_id"] == rule_id for r in default_rules(user_id).get(kind, [])):
            raise BadRule("a default rule can be disabled, not deleted")

        def change(changes: dict[str, Any]) -> None:
            own = changes["own"].get(kind, [])
            own.remove(_find(own, rule_id))

        await self._change(user_id, change)

    async def change(self, user_id: str, kind: str, rule_id: str, field: str, value: Any) -> None:
        """Set `enabled` or `actions`; raises UnknownRule or BadRule."""
        if field == "enabled" and not isinstance(value, bool):
            raise BadRule("enabled is a boolean")
        if field == "actions":
            _check_actions(value)
        is_default = any(r["rule_id"] == rule_id for r in default_rules(user_id).get(kind, []))

        def change(changes: dict[str, Any]) -> None:
            if is_default:
                changes["changed"].setdefault(kind, {}).setdefault(rule_id, {})[field] = value
            else:
                _find(changes["own"].get(kind, []), rule_id)[field] = value

        await self._change(user_id, change)

    async def _change(self, user_id: str, change: Callable[[dict[str, Any]], None]) -> None:
        """One change under the row's lock: two devices at once do not undo each other's."""

        async def work(db: Connection) -> None:
            changes = orjson.loads(await push_rules.lock(db, user_id, orjson.dumps(no_changes())))
            change(changes)
            await push_rules.put(db, user_id, orjson.dumps(changes))

        await self._db.run(work)
        self._publish([user_id])


async def rules_of(db: Executor, user_id: str) -> RuleSet:
    """The rules in force for a user."""
    return _merged(user_id, await push_rules.get(db, user_id))


def _merged(user_id: str, stored: bytes | None) -> RuleSet:
    return merged(user_id, no_changes() if stored is None else orjson.loads(stored))


async def event_of(db: Executor, user_id: str) -> dict[str, Any]:
    """The rules as the account data event clients follow."""
    return {"type": TYPE, "content": {"global": await rules_of(db, user_id)}}


def _find(rules: list[Rule], rule_id: str) -> Rule:
    for rule in rules:
        if rule["rule_id"] == rule_id:
            return rule
    raise UnknownRule


def _place(ids: list[str], old: int | None, before: str | None, after: str | None) -> int:
    wanted = before if before is not None else after
    if wanted is None:
        return 0 if old is None else old
    if wanted not in ids:
        raise UnknownNeighbour(wanted)
    return ids.index(wanted) + (before is None)


# -- what a rule may be -----------------------------------------------------------------------------


def checked_rule(kind: str, rule_id: str, body: dict[str, Any]) -> Rule:
    """A user's own rule from a request; raises BadRule. Unknown conditions are kept: they never match."""
    if rule_id.startswith(".") or not rule_id or len(rule_id) > 255 or "/" in rule_id or "\\" in rule_id:
        raise BadRule("the rule ID is not valid")
    _check_actions(body.get("actions"))
    rule = {"rule_id": rule_id, "default": False, "enabled": True, "actions": body["actions"]}
    if kind == "content":
        rule["pattern"] = _pattern(body.get("pattern"))
    elif kind in ("override", "underride"):
        rule["conditions"] = _conditions(body.get("conditions", []))
    _check_size(rule)
    return rule


def _pattern(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_PATTERN:
        raise BadRule(f"pattern is a string of at most {MAX_PATTERN} characters")
    return value


def _conditions(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MAX_CONDITIONS:
        raise BadRule(f"conditions is a list of at most {MAX_CONDITIONS} conditions")
    for condition in value:
        if not isinstance(condition, dict) or not isinstance(condition.get("kind"), str):
            raise BadRule("a condition is an object with a kind")
        if any(not isinstance(condition.get(name, ""), str) for name in _TEXTS):
            raise BadRule("a condition's key, pattern and is are strings")
        _pattern(condition.get("pattern", ""))
    return value


def _check_actions(value: object) -> None:
    if not isinstance(value, list) or len(value) > MAX_ACTIONS:
        raise BadRule(f"actions is a list of at most {MAX_ACTIONS} actions")
    for action in value:
        if isinstance(action, dict) and isinstance(action.get("set_tweak"), str):
            continue
        if not isinstance(action, str):
            raise BadRule("an action is a string or has set_tweak")
    _check_size(value)


def _check_size(value: object) -> None:
    if len(orjson.dumps(value)) > MAX_RULE:
        raise BadRule(f"a rule has at most {MAX_RULE} bytes")


def _check_amount(own: dict[str, list[Rule]]) -> None:
    """Bounds what comparing one event with all rules may cost."""
    patterns = [r["pattern"] for r in own.get("content", [])]
    for kind in ("override", "underride"):
        patterns += [c["pattern"] for r in own.get(kind, []) for c in r["conditions"] if "pattern" in c]
    if (
        sum(map(len, own.values())) > MAX_RULES
        or len(patterns) > MAX_PATTERNS
        or sum(map(has_wildcards, patterns)) > MAX_WILDCARDS
    ):
        raise BadRule("there are too many rules")
