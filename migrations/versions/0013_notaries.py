"""Keys that notaries told us of, and key IDs that somebody published with other bytes than the first."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_CONFLICTS = """
CREATE TABLE key_conflicts (
    server text NOT NULL,
    key_id text NOT NULL,
    key bytea NOT NULL,
    told_by text NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    times bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (server, key_id, key, told_by)
)
"""


def upgrade() -> None:
    op.execute(
        "ALTER TABLE server_keys ADD COLUMN direct boolean NOT NULL DEFAULT true,"
        " ADD COLUMN told_until bigint NOT NULL DEFAULT 0"
    )
    op.execute(_CONFLICTS)


def downgrade() -> None:
    op.execute("DROP TABLE key_conflicts")
    op.execute("DELETE FROM server_keys WHERE NOT direct")
    op.execute("ALTER TABLE server_keys DROP COLUMN direct, DROP COLUMN told_until")
