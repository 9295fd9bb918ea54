"""Tokens with which users prove to services who they are."""

from __future__ import annotations

from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE openid_tokens (
            token_hash bytea PRIMARY KEY,
            user_id text NOT NULL,
            expires_ts bigint NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX openid_tokens_ended ON openid_tokens (expires_ts)")


def downgrade() -> None:
    op.execute("DROP TABLE openid_tokens")
