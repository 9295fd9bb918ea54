"""How far a user's notifications in a room have been counted, and which of them are unread."""

from __future__ import annotations

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE TABLE unread_tallies (user_id text NOT NULL, room_id text NOT NULL,"
        " counted_to bigint NOT NULL, marks bytea NOT NULL, PRIMARY KEY (user_id, room_id))"
    )


def downgrade() -> None:
    op.execute("DROP TABLE unread_tallies")
