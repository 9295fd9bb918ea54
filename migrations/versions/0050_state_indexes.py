"""Changes of state no longer grow two indexes by a whole key each.

A wide key that rises within its room, but not at the end of the index, leaves every page half full. Keys
that repeat are stored once: the lives of an entry, and what began within 256 positions of a room, which
is read as a whole and filtered. At most one current life of an entry is still what the database holds to.

Two things keep plans that were made with few rows from reading more than they need. The index of changes
is so small that one would take it to find an entry, and read the room: as an expression it is there for
those who name it. And of indexes that seem equal the youngest is taken: that of current entries is made last.
"""

from __future__ import annotations

from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE room_state DROP CONSTRAINT room_state_pkey")
    op.execute("CREATE INDEX room_state_all ON room_state (room_id, type, state_key)")
    op.execute("DROP INDEX room_state_changes")
    op.execute("CREATE INDEX room_state_changes ON room_state ((room_id || ''), (from_position >> 8))")
    _make_current_anew()


def _make_current_anew() -> None:
    op.execute("DROP INDEX room_state_current")
    op.execute(
        "CREATE UNIQUE INDEX room_state_current ON room_state (room_id, type, state_key)"
        " WHERE to_position IS NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX room_state_changes")
    op.execute("CREATE INDEX room_state_changes ON room_state (room_id, from_position)")
    op.execute("DROP INDEX room_state_all")
    op.execute("ALTER TABLE room_state ADD PRIMARY KEY (room_id, type, state_key, from_position)")
    _make_current_anew()
