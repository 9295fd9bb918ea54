"""Access tokens that end and are renewed, login tokens, locked accounts, users on their way out."""

from __future__ import annotations

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

_TABLES = """
ALTER TABLE access_tokens ADD COLUMN expires_ts bigint, ADD COLUMN refresh_hash bytea;
CREATE INDEX access_tokens_refresh ON access_tokens (refresh_hash) WHERE refresh_hash IS NOT NULL;

CREATE TABLE refresh_tokens (
    token_hash bytea PRIMARY KEY,
    user_id text NOT NULL,
    device_id text NOT NULL,
    next_hash bytea,
    created_ts bigint NOT NULL
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_next ON refresh_tokens (next_hash) WHERE next_hash IS NOT NULL;

CREATE TABLE login_tokens (
    token_hash bytea PRIMARY KEY,
    user_id text NOT NULL,
    expires_ts bigint NOT NULL
);
CREATE INDEX login_tokens_age ON login_tokens (expires_ts);
CREATE INDEX login_tokens_user ON login_tokens (user_id);

ALTER TABLE accounts ADD COLUMN locked boolean NOT NULL DEFAULT false;

CREATE TABLE departures (
    user_id text PRIMARY KEY,
    retry_at bigint NOT NULL,
    tries integer NOT NULL DEFAULT 0
);
CREATE INDEX departures_due ON departures (retry_at);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE departures, login_tokens, refresh_tokens")
    op.execute("ALTER TABLE accounts DROP COLUMN locked")
    op.execute("ALTER TABLE access_tokens DROP COLUMN expires_ts, DROP COLUMN refresh_hash")
