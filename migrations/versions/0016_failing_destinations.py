"""Since when a server takes nothing, and what it said last."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE destinations ADD COLUMN failing_since bigint NOT NULL DEFAULT 0,"
        " ADD COLUMN last_failure text"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE destinations DROP COLUMN failing_since, DROP COLUMN last_failure")
