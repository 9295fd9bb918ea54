"""Who has asked that what they sent be kept from those who come later, and since where in each room."""

from __future__ import annotations

from alembic import op

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE accounts ADD COLUMN erased boolean NOT NULL DEFAULT false")
    op.execute(
        "CREATE TABLE erasures (room_id text NOT NULL, user_id text NOT NULL, position bigint NOT NULL,"
        " PRIMARY KEY (room_id, user_id))"
    )


def downgrade() -> None:
    op.execute("DROP TABLE erasures")
    op.execute("ALTER TABLE accounts DROP COLUMN erased")
