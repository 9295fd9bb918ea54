"""Find what one user signed of another without reading what everybody else did."""

from __future__ import annotations

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX key_signatures_pair ON key_signatures (target_user_id, signer_user_id)")


def downgrade() -> None:
    op.execute("DROP INDEX key_signatures_pair")
