"""What a message is found by stands in its own row, and what its transaction is known by is short: with
tables and keys of their own the two took more than the message."""

from __future__ import annotations

from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE events ADD COLUMN words tsvector")
    op.execute(
        "UPDATE events AS e SET words = s.words FROM message_search AS s"
        " WHERE s.room_id = e.room_id AND s.event_id = e.event_id"
    )
    op.execute("DROP TABLE message_search")
    op.execute("CREATE INDEX events_words ON events USING gin (words) WHERE words IS NOT NULL")
    op.execute("ALTER TABLE client_transactions RENAME TO old_transactions")
    op.execute("ALTER INDEX client_transactions_pkey RENAME TO old_transactions_pkey")
    op.execute("DROP INDEX client_transactions_age")
    op.execute("DROP INDEX client_transactions_lpdu")
    op.execute(
        """
        CREATE TABLE client_transactions (
            scope bytea NOT NULL,
            txn_id text NOT NULL,
            event_id text,
            lpdu_id text,
            created_ts bigint NOT NULL,
            PRIMARY KEY (scope, txn_id)
        )
        """
    )
    # As storage/client_transactions.py makes it: the beginning of the SHA-256 of a JSON list.
    op.execute(
        "INSERT INTO client_transactions SELECT substring(sha256(convert_to('[' || to_json(user_id)::text"
        " || ',' || to_json(device_id)::text || ',' || to_json(room_id)::text || ']', 'UTF8')) FOR 12),"
        " txn_id, event_id, lpdu_id, created_ts FROM old_transactions"
    )
    op.execute("DROP TABLE old_transactions")
    op.execute("CREATE INDEX client_transactions_age ON client_transactions (created_ts)")
    op.execute(
        "CREATE INDEX client_transactions_lpdu ON client_transactions (lpdu_id) WHERE lpdu_id IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DROP TABLE client_transactions")
    op.execute(
        """
        CREATE TABLE client_transactions (
            user_id text NOT NULL,
            device_id text NOT NULL,
            room_id text NOT NULL,
            txn_id text NOT NULL,
            event_id text,
            lpdu_id text,
            created_ts bigint NOT NULL,
            PRIMARY KEY (user_id, device_id, room_id, txn_id)
        )
        """
    )
    op.execute("CREATE INDEX client_transactions_age ON client_transactions (created_ts)")
    op.execute(
        "CREATE INDEX client_transactions_lpdu ON client_transactions (room_id, lpdu_id)"
        " WHERE lpdu_id IS NOT NULL"
    )
    op.execute("DROP INDEX events_words")
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
    op.execute(
        "INSERT INTO message_search SELECT room_id, event_id, position, received_ts, CASE type"
        " WHEN 'm.room.message' THEN 'content.body' WHEN 'm.room.name' THEN 'content.name'"
        " ELSE 'content.topic' END, words FROM events WHERE words IS NOT NULL"
    )
    op.execute("CREATE INDEX message_search_words ON message_search USING gin (words)")
    op.execute("CREATE INDEX message_search_newest ON message_search (room_id, received_ts, event_id)")
    op.execute("ALTER TABLE events DROP COLUMN words")
