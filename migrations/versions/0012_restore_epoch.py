"""A number that changes with every restore, so that clients' tokens of before are known as such."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE restore_guard ADD COLUMN epoch bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE restore_guard DROP COLUMN epoch")
