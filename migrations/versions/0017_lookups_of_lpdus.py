"""Finding what waits for an LPDU takes no longer the more of them there were."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE INDEX client_transactions_lpdu ON client_transactions (room_id, lpdu_id)"
        " WHERE lpdu_id IS NOT NULL"
    )
    op.execute("CREATE INDEX outbound_lpdus_destination ON outbound_lpdus (destination, lpdu_id)")


def downgrade() -> None:
    op.execute("DROP INDEX outbound_lpdus_destination")
    op.execute("DROP INDEX client_transactions_lpdu")
