"""Servers that operators have nothing to do with, and media that are never hidden with others."""

from __future__ import annotations

from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE blocked_servers (
    server text PRIMARY KEY,
    blocked_by text NOT NULL,
    reason text NOT NULL,
    created_ts bigint NOT NULL
)"""
    )
    op.execute("ALTER TABLE local_media ADD COLUMN protected boolean NOT NULL DEFAULT false")


def downgrade() -> None:
    op.execute("ALTER TABLE local_media DROP COLUMN protected")
    op.execute("DROP TABLE blocked_servers")
