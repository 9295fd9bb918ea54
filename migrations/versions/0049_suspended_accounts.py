"""Accounts that may hardly do more than read."""

from __future__ import annotations

from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE accounts ADD COLUMN suspended boolean NOT NULL DEFAULT false")


def downgrade() -> None:
    op.execute("ALTER TABLE accounts DROP COLUMN suspended")
