"""Rooms that operators closed to their users, and rooms that are being deleted."""

from __future__ import annotations

from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE blocked_rooms (
    room_id text PRIMARY KEY,
    blocked_by text NOT NULL,
    created_ts bigint NOT NULL
)"""
    )
    op.execute(
        """
CREATE TABLE room_purges (
    delete_id text NOT NULL,
    room_id text NOT NULL,
    requested_by text NOT NULL,
    deletes boolean NOT NULL,
    forced boolean NOT NULL,
    status text NOT NULL,
    kicked text[] NOT NULL DEFAULT '{}',
    aliases text[] NOT NULL DEFAULT '{}',
    removed bigint NOT NULL DEFAULT 0,
    error text,
    started_ts bigint NOT NULL,
    ended_ts bigint,
    PRIMARY KEY (room_id, delete_id)
)"""
    )
    # One at a time for a room; it stands in the way of joins until it has ended.
    op.execute("CREATE UNIQUE INDEX room_purges_active ON room_purges (room_id) WHERE ended_ts IS NULL")
    # When (ms) a room was first seen without anybody of this server in it.
    op.execute("ALTER TABLE rooms ADD COLUMN empty_since bigint")
    op.execute("CREATE INDEX rooms_empty ON rooms (empty_since) WHERE empty_since IS NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE rooms DROP COLUMN empty_since")
    op.execute("DROP TABLE room_purges")
    op.execute("DROP TABLE blocked_rooms")
