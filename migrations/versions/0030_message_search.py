"""Full text search of messages; those that are there already are not found."""

from __future__ import annotations

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE message_search (
            room_id text NOT NULL,
            event_id text NOT NULL,
            position bigint NOT NULL,
            received_ts bigint NOT NULL,
            key text NOT NULL,
            words tsvector NOT NULL,
            PRIMARY KEY (room_id, event_id)
        )
        """
    )
    op.execute("CREATE INDEX message_search_words ON message_search USING gin (words)")
    op.execute("CREATE INDEX message_search_newest ON message_search (room_id, received_ts, event_id)")


def downgrade() -> None:
    op.execute("DROP TABLE message_search")
