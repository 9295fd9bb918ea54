"""Push rules as differences from the default ones, so that defaults may change under those who changed
others."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

# The actions of the default rules as they were copied to every user who had changed one.
_SOUND = ["notify", {"set_tweak": "sound", "value": "default"}]
_HIGHLIGHT = ["notify", {"set_tweak": "highlight"}]
_LOUD = [*_SOUND, {"set_tweak": "highlight"}]
_RING = ["notify", {"set_tweak": "sound", "value": "ring"}]
_WERE: dict[str, list[Any]] = {
    ".m.rule.invite_for_me": _SOUND,
    ".m.rule.is_user_mention": _LOUD,
    ".m.rule.contains_display_name": _LOUD,
    ".m.rule.is_room_mention": _HIGHLIGHT,
    ".m.rule.roomnotif": _HIGHLIGHT,
    ".m.rule.tombstone": _HIGHLIGHT,
    ".m.rule.contains_user_name": _LOUD,
    ".m.rule.call": _RING,
    ".m.rule.encrypted_room_one_to_one": _SOUND,
    ".m.rule.room_one_to_one": _SOUND,
    ".m.rule.message": ["notify"],
    ".m.rule.encrypted": ["notify"],
}


def upgrade() -> None:
    op.execute(
        "CREATE TABLE push_rules (user_id text NOT NULL, changes bytea NOT NULL,"
        " stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(), PRIMARY KEY (user_id))"
    )
    bind = op.get_bind()
    rows = bind.execute(
        sa.text("SELECT user_id, content FROM account_data WHERE room_id = '' AND type = 'm.push_rules'")
    )
    for user_id, content in list(rows):
        bind.execute(
            sa.text("INSERT INTO push_rules (user_id, changes) VALUES (:user_id, :changes)"),
            {"user_id": user_id, "changes": json.dumps(_differences(json.loads(bytes(content)))).encode()},
        )
    op.execute("DELETE FROM account_data WHERE room_id = '' AND type = 'm.push_rules'")


def _differences(stored: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, list[Any]] = {}
    changed: dict[str, dict[str, Any]] = {}
    for kind, rules in stored.get("global", {}).items():
        for rule in rules:
            if not rule["default"]:
                own.setdefault(kind, []).append(rule)
                continue
            fields = {}
            if rule["enabled"] is (rule["rule_id"] == ".m.rule.master"):
                fields["enabled"] = rule["enabled"]
            if rule["actions"] != _WERE.get(rule["rule_id"], []):
                fields["actions"] = rule["actions"]
            if fields:
                changed.setdefault(kind, {})[rule["rule_id"]] = fields
    return {"own": own, "changed": changed}


def downgrade() -> None:
    op.execute("DROP TABLE push_rules")
