"""What a participant needs to receive whole: proof against its hub, echoes watched, gaps, history."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_CHANGES = """
ALTER TABLE evidence ADD COLUMN related bytea;

ALTER TABLE events ADD COLUMN backfilled boolean NOT NULL DEFAULT false;

ALTER TABLE outbound_lpdus ADD COLUMN checks integer NOT NULL DEFAULT 0;
ALTER TABLE outbound_lpdus ADD COLUMN check_at bigint NOT NULL DEFAULT 0;
UPDATE outbound_lpdus AS o SET status = 'placed' WHERE status = 'accepted' AND EXISTS
    (SELECT 1 FROM events AS e WHERE e.room_id = o.room_id AND e.lpdu_hash = o.lpdu_hash);
CREATE INDEX outbound_lpdus_watched ON outbound_lpdus (check_at) WHERE status IN ('pending', 'accepted');

CREATE TABLE room_gaps (
    room_id text PRIMARY KEY,
    target_event_id text NOT NULL,
    boundaries text[] NOT NULL DEFAULT '{}',
    attempts integer NOT NULL DEFAULT 0,
    retry_at bigint NOT NULL
);
CREATE INDEX room_gaps_due ON room_gaps (retry_at)
"""


def upgrade() -> None:
    for statement in filter(str.strip, _CHANGES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE room_gaps")
    op.execute("DROP INDEX outbound_lpdus_watched")
    op.execute("UPDATE outbound_lpdus SET status = 'accepted' WHERE status = 'placed'")
    op.execute("ALTER TABLE outbound_lpdus DROP COLUMN checks, DROP COLUMN check_at")
    op.execute("ALTER TABLE events DROP COLUMN backfilled")
    op.execute("ALTER TABLE evidence DROP COLUMN related")
