"""The user directory, and which rooms anybody may join or read.

Users known already come into it with their next member event or change of profile.
"""

from __future__ import annotations

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE directory_users (
            user_id text PRIMARY KEY,
            display_name text,
            avatar_url text,
            words tsvector NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX directory_users_words ON directory_users USING gin (words)")
    op.execute("ALTER TABLE rooms ADD COLUMN is_public boolean NOT NULL DEFAULT false")
    # Events are canonical JSON: a setting is written in one way only.
    op.execute(
        """
        UPDATE rooms AS r SET is_public = true FROM room_state AS s, events AS e
        WHERE s.room_id = r.room_id AND s.to_position IS NULL AND s.state_key = ''
        AND e.event_id = s.event_id AND e.room_id = s.room_id
        AND (s.type = 'm.room.join_rules' AND position('"join_rule":"public"'::bytea IN e.pdu) > 0
        OR s.type = 'm.room.history_visibility'
        AND position('"history_visibility":"world_readable"'::bytea IN e.pdu) > 0)
        """
    )


def downgrade() -> None:
    op.execute("ALTER TABLE rooms DROP COLUMN is_public")
    op.execute("DROP TABLE directory_users")
