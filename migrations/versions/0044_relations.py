"""Which events relate to which, and how far each thread has come."""

from __future__ import annotations

from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

_RELATIONS = (
    "CREATE TABLE event_relations (room_id text NOT NULL, event_id text NOT NULL, position bigint NOT NULL,"
    " parent_id text NOT NULL, rel_type text NOT NULL, type text NOT NULL, sender text NOT NULL,"
    " ts bigint NOT NULL, key text, PRIMARY KEY (room_id, event_id))"
)
_THREADS = (
    "CREATE TABLE threads (room_id text NOT NULL, root_id text NOT NULL, replies bigint NOT NULL,"
    " last_position bigint NOT NULL, PRIMARY KEY (room_id, root_id))"
)
# json, not jsonb: it takes whatever an event may hold; only texts that no column takes are left out.
_FILL_RELATIONS = (
    "INSERT INTO event_relations SELECT room_id, event_id, position, relates ->> 'event_id',"
    " relates ->> 'rel_type', type, sender, ts, CASE WHEN json_typeof(relates -> 'key') = 'string'"
    " THEN left(relates ->> 'key', 255) END FROM (SELECT room_id, event_id,"
    " position, type, sender, content -> 'm.relates_to' AS relates, ts FROM (SELECT room_id, event_id,"
    " position, type, sender, convert_from(pdu, 'UTF8')::json -> 'content' AS content,"
    " (convert_from(pdu, 'UTF8')::json ->> 'origin_server_ts')::bigint AS ts FROM events"
    " WHERE position IS NOT NULL AND soft_failed IS NULL AND redacted_by IS NULL"
    " AND position(convert_to('\"m.relates_to\"', 'UTF8') IN pdu) > 0"
    " AND position(convert_to('\\u0000', 'UTF8') IN pdu) = 0) AS e) AS r"
    " WHERE json_typeof(relates) = 'object' AND left(relates ->> 'event_id', 1) = '$'"
    " AND json_typeof(relates -> 'rel_type') = 'string' AND json_typeof(relates -> 'event_id') = 'string'"
    " AND length(relates ->> 'event_id') <= 255 AND length(relates ->> 'rel_type') BETWEEN 1 AND 255"
)
_FILL_THREADS = (
    "INSERT INTO threads SELECT room_id, parent_id, count(*), max(position) FROM event_relations"
    " WHERE rel_type = 'm.thread' GROUP BY room_id, parent_id"
)
_INDEXES = (
    "CREATE INDEX event_relations_parent ON event_relations (room_id, parent_id, position)",
    "CREATE INDEX event_relations_type ON event_relations (room_id, parent_id, rel_type, position)",
    "CREATE INDEX event_relations_sender ON event_relations (room_id, parent_id, rel_type, sender, ts)",
    "CREATE INDEX threads_newest ON threads (room_id, last_position)",
)


def upgrade() -> None:
    for statement in (_RELATIONS, _THREADS, _FILL_RELATIONS, _FILL_THREADS, *_INDEXES):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    op.execute("DROP TABLE threads")
    op.execute("DROP TABLE event_relations")
