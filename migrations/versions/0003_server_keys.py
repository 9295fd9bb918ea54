"""The signing keys of other servers, every one ever seen, and the documents that published them."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE key_servers (
    server text PRIMARY KEY,
    linearized boolean NOT NULL,
    fetched_ts bigint NOT NULL
);

CREATE TABLE server_keys (
    server text NOT NULL,
    key_id text NOT NULL,
    key bytea NOT NULL,
    valid_until_ts bigint NOT NULL,
    expired_ts bigint,
    first_seen bigint NOT NULL,
    PRIMARY KEY (server, key_id)
);

CREATE TABLE server_key_documents (
    server text NOT NULL,
    key_set text NOT NULL,
    document bytea NOT NULL,
    valid_until_ts bigint NOT NULL,
    fetched_ts bigint NOT NULL,
    PRIMARY KEY (server, key_set)
);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE server_key_documents, server_keys, key_servers")
