"""Media: what users upload here, and copies of what other servers' users uploaded."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE local_media (
    media_id text PRIMARY KEY,
    user_id text NOT NULL,
    created_ts bigint NOT NULL,
    sha256 bytea,
    size bigint,
    content_type text,
    filename text
);
CREATE INDEX local_media_user ON local_media (user_id);
CREATE INDEX local_media_pending ON local_media (created_ts) WHERE sha256 IS NULL;

CREATE TABLE remote_media (
    server text NOT NULL,
    media_id text NOT NULL,
    sha256 bytea NOT NULL,
    size bigint NOT NULL,
    content_type text NOT NULL,
    filename text,
    used_ts bigint NOT NULL,
    PRIMARY KEY (server, media_id)
);
CREATE INDEX remote_media_used ON remote_media (used_ts);
CREATE INDEX remote_media_sha256 ON remote_media (sha256);
"""


def upgrade() -> None:
    for statement in filter(str.strip, _TABLES.split(";")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE remote_media, local_media")
