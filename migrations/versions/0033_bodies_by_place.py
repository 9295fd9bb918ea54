"""A transaction of nothing but events of rooms' lists is stored as where they stand: for each destination
the same events were written once more."""

from __future__ import annotations

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE outbound_transactions ALTER COLUMN body DROP NOT NULL")


def downgrade() -> None:
    # Their events are due as long as nothing says that they were taken.
    op.execute("DELETE FROM outbound_transactions WHERE body IS NULL")
    op.execute("ALTER TABLE outbound_transactions ALTER COLUMN body SET NOT NULL")
