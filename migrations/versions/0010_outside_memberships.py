"""Memberships in rooms this server is not in: invites, knocks, and how they ended."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UP = """
ALTER TABLE pending_invites RENAME TO outside_memberships;
ALTER TABLE outside_memberships RENAME CONSTRAINT pending_invites_pkey TO outside_memberships_pkey;
ALTER TABLE outside_memberships RENAME COLUMN invite TO event;
ALTER TABLE outside_memberships
    ALTER COLUMN event DROP NOT NULL,
    ADD COLUMN membership text NOT NULL DEFAULT 'invite',
    ADD COLUMN event_id text;
UPDATE outside_memberships SET membership = 'leave', event = NULL WHERE retired;
ALTER TABLE outside_memberships ALTER COLUMN membership DROP DEFAULT, DROP COLUMN retired;
CREATE INDEX outside_memberships_room ON outside_memberships (room_id);
CREATE INDEX outside_memberships_stream ON outside_memberships (user_id, stream_xid);
CREATE TABLE outside_rooms (
    room_id text PRIMARY KEY
);
"""

_DOWN = """
DROP TABLE outside_rooms;
DROP INDEX outside_memberships_stream;
DROP INDEX outside_memberships_room;
ALTER TABLE outside_memberships ADD COLUMN retired boolean NOT NULL DEFAULT false;
DELETE FROM outside_memberships WHERE membership <> 'invite';
ALTER TABLE outside_memberships
    DROP COLUMN event_id,
    DROP COLUMN membership,
    ALTER COLUMN event SET NOT NULL;
ALTER TABLE outside_memberships RENAME COLUMN event TO invite;
ALTER TABLE outside_memberships RENAME CONSTRAINT outside_memberships_pkey TO pending_invites_pkey;
ALTER TABLE outside_memberships RENAME TO pending_invites;
"""


def upgrade() -> None:
    for statement in filter(str.strip, _UP.split(";")):
        op.execute(statement)


def downgrade() -> None:
    for statement in filter(str.strip, _DOWN.split(";")):
        op.execute(statement)
