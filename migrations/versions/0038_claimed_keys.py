"""Which one-time keys were handed out: an upload that is repeated does not bring them back."""

from __future__ import annotations

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE claimed_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    key_id text NOT NULL,
    key_hash bytea NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, device_id, key_id)
);
CREATE INDEX claimed_keys_age ON claimed_keys (claimed_at);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLE.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE claimed_keys")
