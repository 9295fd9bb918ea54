"""Logging in at a provider: sessions on their way, and whose account a provider's user is."""

from __future__ import annotations

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE sso_sessions (
    state_hash bytea PRIMARY KEY,
    browser_hash bytea NOT NULL,
    provider text NOT NULL,
    nonce text NOT NULL,
    verifier text NOT NULL,
    redirect_url text,
    confirms bytea,
    counted_as text NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX sso_sessions_age ON sso_sessions (created_ts);
CREATE INDEX sso_sessions_counted ON sso_sessions (counted_as, created_ts);

CREATE TABLE external_ids (
    provider text NOT NULL,
    subject text NOT NULL,
    user_id text NOT NULL,
    PRIMARY KEY (provider, subject)
);
CREATE INDEX external_ids_user ON external_ids (user_id);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE external_ids, sso_sessions")
