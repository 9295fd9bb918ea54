"""What clients keep with us: account data, filters, receipts, aliases, forgotten rooms."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE account_data (
    user_id text NOT NULL,
    room_id text NOT NULL,
    type text NOT NULL,
    content bytea NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (user_id, room_id, type)
);

CREATE TABLE filters (
    user_id text NOT NULL,
    filter_id text NOT NULL,
    filter bytea NOT NULL,
    PRIMARY KEY (user_id, filter_id)
);

CREATE TABLE receipts (
    room_id text NOT NULL,
    user_id text NOT NULL,
    receipt_type text NOT NULL,
    thread_id text NOT NULL,
    event_id text NOT NULL,
    position bigint NOT NULL,
    ts bigint NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (room_id, user_id, receipt_type, thread_id)
);
CREATE INDEX receipts_stream ON receipts (room_id, stream_xid);

CREATE TABLE room_aliases (
    alias text PRIMARY KEY,
    room_id text NOT NULL,
    creator text NOT NULL
);
CREATE INDEX room_aliases_room ON room_aliases (room_id);

CREATE TABLE published_rooms (
    room_id text PRIMARY KEY
);

CREATE TABLE forgotten_rooms (
    user_id text NOT NULL,
    room_id text NOT NULL,
    PRIMARY KEY (user_id, room_id)
);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE forgotten_rooms, published_rooms, room_aliases, receipts, filters, account_data")
