"""An LPDU is known by its hash and its sender: a hash alone is what anybody may claim."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP INDEX events_lpdu")
    op.execute("CREATE UNIQUE INDEX events_lpdu ON events (room_id, lpdu_hash, sender)")


def downgrade() -> None:
    op.execute("DROP INDEX events_lpdu")
    op.execute("CREATE UNIQUE INDEX events_lpdu ON events (room_id, lpdu_hash)")
