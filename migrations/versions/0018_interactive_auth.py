"""Sessions of user-interactive authentication outlast a restart."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE interactive_auth_sessions (
    session_hash bytea PRIMARY KEY,
    owner text NOT NULL,
    fingerprint bytea NOT NULL,
    completed bytea NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX interactive_auth_sessions_owner ON interactive_auth_sessions (owner, created_ts);
CREATE INDEX interactive_auth_sessions_age ON interactive_auth_sessions (created_ts);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE interactive_auth_sessions")
