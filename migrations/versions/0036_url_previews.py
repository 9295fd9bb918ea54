"""Previews of web pages that users link to, for a while."""

from __future__ import annotations

from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE TABLE url_previews (key bytea PRIMARY KEY, content text, media_id text,"
        " image_size bigint NOT NULL, expires_ts bigint NOT NULL)"
    )
    op.execute("CREATE INDEX url_previews_expires ON url_previews (expires_ts)")
    op.execute("CREATE INDEX url_previews_media ON url_previews (media_id)")


def downgrade() -> None:
    op.execute("DROP TABLE url_previews")
