"""Signatures of users over devices and master keys, and a number for each change of a device list."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_CHANGES = """
CREATE TABLE key_signatures (
    target_user_id text NOT NULL,
    target_key text NOT NULL,
    signer_user_id text NOT NULL,
    signer_key_id text NOT NULL,
    signature text NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (target_user_id, target_key, signer_user_id, signer_key_id)
);
CREATE INDEX key_signatures_signer ON key_signatures (signer_user_id, stream_xid);
ALTER TABLE device_list_changes ADD COLUMN stream_id bigint NOT NULL DEFAULT 0;
"""


def upgrade() -> None:
    for statement in filter(str.strip, _CHANGES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE key_signatures")
    op.execute("ALTER TABLE device_list_changes DROP COLUMN stream_id")
