"""How far application services that encrypt were told of changed device lists."""

from __future__ import annotations

from alembic import op

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE appservice_transactions ADD COLUMN devices_position bigint")


def downgrade() -> None:
    op.execute("ALTER TABLE appservice_transactions DROP COLUMN devices_position")
