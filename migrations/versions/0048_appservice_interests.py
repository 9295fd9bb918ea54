"""Since when application services have their namespaces of rooms, and rooms their aliases."""

from __future__ import annotations

from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE appservice_interests (
    service text PRIMARY KEY,
    namespaces text NOT NULL,
    since_ts bigint NOT NULL
)"""
    )
    op.execute("ALTER TABLE room_aliases ADD COLUMN created_ts bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE room_aliases DROP COLUMN created_ts")
    op.execute("DROP TABLE appservice_interests")
