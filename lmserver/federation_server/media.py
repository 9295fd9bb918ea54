"""Media of our users for other servers (SS API §Content Repository): multipart/mixed, streamed."""

from __future__ import annotations

from collections.abc import Awaitable

from lmserver.federation_server.paths import STABLE
from lmserver.media import naming, outcomes
from lmserver.media.library import Library, Medium
from lmserver.media.local import DEFAULT_TIMEOUT_MS, wait_seconds
from lmserver.media.multipart import Writer
from lmserver.media.thumbnails import thumbnail_query
from lmserver.protocol import ids
from lmserver.web.endpoint import Auth, Request, Streamed, endpoint
from lmserver.web.errors import ApiError, bad_param, not_found

_RATE = "federation_media"
_ANSWERS: dict[type[Exception], tuple[int, str]] = {
    outcomes.NotFound: (404, "M_NOT_FOUND"),
    outcomes.NotYetUploaded: (504, "M_NOT_YET_UPLOADED"),
    outcomes.NoThumbnail: (400, "M_UNKNOWN"),
    outcomes.TooLarge: (413, "M_TOO_LARGE"),
}
DEADLINE = 1800.0


class MediaEndpoints:
    """Only media uploaded here: copies of other servers' are asked of those."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @endpoint("GET", STABLE + "/v1/media/download/{media_id}", auth=Auth.SERVER, rate=_RATE,
              deadline=DEADLINE, at_once=8)  # fmt: skip
    async def download(self, request: Request) -> Streamed:
        """SS API §GET media/download."""
        media_id, wait = _named(request)
        return _served(await _answered(self._library.open_local(media_id, wait)))

    @endpoint("GET", STABLE + "/v1/media/thumbnail/{media_id}", auth=Auth.SERVER, rate=_RATE,
              deadline=DEADLINE, at_once=8)  # fmt: skip
    async def thumbnail(self, request: Request) -> Streamed:
        """SS API §GET media/thumbnail."""
        media_id, wait = _named(request)
        try:
            size, animated = thumbnail_query(request.query)
        except ValueError as error:
            raise bad_param(str(error)) from None
        return _served(
            await _answered(self._library.local_thumbnail(media_id, wait, size, animated=animated))
        )


def _named(request: Request) -> tuple[str, float]:
    """The media ID, and the seconds its upload is waited for."""
    media_id = request.params["media_id"]
    if not ids.is_media_id(media_id):
        raise not_found("Media not found")
    try:
        return media_id, wait_seconds(request.query.get("timeout_ms", DEFAULT_TIMEOUT_MS))
    except ValueError as error:
        raise bad_param(str(error)) from None


async def _answered(work: Awaitable[Medium]) -> Medium:
    try:
        return await work
    except outcomes.MediaError as error:
        status, errcode = _ANSWERS[type(error)]
        raise ApiError(status, errcode, str(error)) from None


def _served(medium: Medium) -> Streamed:
    content = medium.content
    writer = Writer(content.content_type, naming.disposition(content.content_type, content.filename))
    return Streamed(
        writer.body(medium.body), writer.length(content.size), {"Content-Type": writer.content_type}
    )
