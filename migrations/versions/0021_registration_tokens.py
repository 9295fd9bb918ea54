"""Registration tokens with a number of uses and an end."""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE registration_tokens (
    token text PRIMARY KEY,
    uses_allowed bigint,
    completed bigint NOT NULL DEFAULT 0,
    expires_ts bigint,
    created_ts bigint NOT NULL
)"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE registration_tokens")
