"""Accounts, devices, access tokens, profiles, registration tokens."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE accounts (
    user_id text PRIMARY KEY,
    password_hash text NOT NULL,
    is_admin boolean NOT NULL DEFAULT false,
    deactivated boolean NOT NULL DEFAULT false,
    displayname text,
    avatar_url text,
    created_ts bigint NOT NULL
);

CREATE TABLE devices (
    user_id text NOT NULL,
    device_id text NOT NULL,
    display_name text,
    last_seen_ip text,
    last_seen_ts bigint,
    PRIMARY KEY (user_id, device_id)
);

CREATE TABLE access_tokens (
    token_hash bytea PRIMARY KEY,
    user_id text NOT NULL,
    device_id text NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE access_tokens, devices, accounts")
