"""Media: what an operator hides, when ours was used last, and what thumbnails take."""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

_CHANGES = """
ALTER TABLE local_media
    ADD COLUMN used_ts bigint NOT NULL DEFAULT 0,
    ADD COLUMN quarantined boolean NOT NULL DEFAULT false;
UPDATE local_media SET used_ts = created_ts;
ALTER TABLE remote_media
    ADD COLUMN thumbnails_size bigint NOT NULL DEFAULT 0,
    ADD COLUMN quarantined boolean NOT NULL DEFAULT false;
CREATE INDEX local_media_sha256 ON local_media (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX local_media_used ON local_media (used_ts) WHERE sha256 IS NOT NULL;
"""


def upgrade() -> None:
    for statement in filter(str.strip, _CHANGES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX local_media_sha256")
    op.execute("ALTER TABLE local_media DROP COLUMN used_ts, DROP COLUMN quarantined")
    op.execute("ALTER TABLE remote_media DROP COLUMN thumbnails_size, DROP COLUMN quarantined")
