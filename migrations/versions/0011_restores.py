"""What tells a restored database from the one it was, and rooms that wait for their newest events."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE restore_guard (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    beat bigint NOT NULL,
    beaten_at timestamp with time zone NOT NULL DEFAULT now()
);

ALTER TABLE rooms ADD COLUMN hold text;
CREATE INDEX rooms_hold ON rooms (room_id) WHERE hold IS NOT NULL;
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE rooms DROP COLUMN hold")
    op.execute("DROP TABLE restore_guard")
