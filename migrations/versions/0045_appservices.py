"""Application services: which users are theirs, what they have been told, and what is on its way to them."""

from __future__ import annotations

from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE appservice_users (
    user_id text NOT NULL,
    service text NOT NULL,
    PRIMARY KEY (user_id, service)
);

CREATE TABLE appservice_rooms (
    service text NOT NULL,
    room_id text NOT NULL,
    position bigint NOT NULL,
    present boolean NOT NULL,
    PRIMARY KEY (service, room_id)
);

CREATE TABLE appservice_invites (
    service text NOT NULL,
    user_id text NOT NULL,
    room_id text NOT NULL,
    told_xid bigint NOT NULL,
    PRIMARY KEY (service, user_id, room_id)
);

CREATE TABLE appservice_transactions (
    service text PRIMARY KEY,
    txn_id bigint NOT NULL,
    body bytea
);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE appservice_transactions, appservice_invites, appservice_rooms, appservice_users")
