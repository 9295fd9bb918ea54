"""Fields of profiles beside name and avatar."""

from __future__ import annotations

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
CREATE TABLE profile_fields (
    user_id text NOT NULL,
    field text NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (user_id, field)
)"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE profile_fields")
