"""What was committed since a stream position is found without going room by room or user by user.

/sync reads it once for all clients that keep up. Nobody asked the index of events it replaces.
"""

from __future__ import annotations

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP INDEX events_stream")
    op.execute("CREATE INDEX events_stream ON events (stream_xid)")
    op.execute("CREATE INDEX receipts_changes ON receipts (stream_xid)")
    op.execute("CREATE INDEX account_data_changes ON account_data (stream_xid)")
    op.execute("CREATE INDEX outside_memberships_changes ON outside_memberships (stream_xid)")
    op.execute("CREATE INDEX to_device_messages_changes ON to_device_messages (stream_xid)")
    op.execute("CREATE INDEX push_rules_changes ON push_rules (stream_xid)")
    op.execute("CREATE INDEX key_signatures_changes ON key_signatures (stream_xid)")


def downgrade() -> None:
    op.execute("DROP INDEX key_signatures_changes")
    op.execute("DROP INDEX push_rules_changes")
    op.execute("DROP INDEX to_device_messages_changes")
    op.execute("DROP INDEX outside_memberships_changes")
    op.execute("DROP INDEX account_data_changes")
    op.execute("DROP INDEX receipts_changes")
    op.execute("DROP INDEX events_stream")
    op.execute("CREATE INDEX events_stream ON events (room_id, stream_xid)")
