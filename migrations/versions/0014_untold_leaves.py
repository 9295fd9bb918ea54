"""Leaves of rooms this server is not in that their hub is still to be told of."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE outside_memberships ADD COLUMN tell_at bigint,"
        " ADD COLUMN tries integer NOT NULL DEFAULT 0"
    )
    op.execute(
        "CREATE INDEX outside_memberships_untold ON outside_memberships (tell_at) WHERE tell_at IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX outside_memberships_untold")
    op.execute("ALTER TABLE outside_memberships DROP COLUMN tries, DROP COLUMN tell_at")
