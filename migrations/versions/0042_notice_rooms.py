"""The room in which the server speaks to each of its users."""

from __future__ import annotations

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE notice_rooms (user_id text PRIMARY KEY, room_id text NOT NULL)")


def downgrade() -> None:
    op.execute("DROP TABLE notice_rooms")
