"""Media of our users for other servers (SS API §Content Repository): multipart/mixed, streamed."""

from __future__ import annotations

from lmserver.federation_server.paths import STABLE
from lmserver.media import naming, outcomes
from lmserver.media.library import Library, Medium, as_thumbnail
from lmserver.media.local import DEFAULT_TIMEOUT_MS, wait_seconds
from lmserver.media.multipart import Writer
from lmserver.protocol import ids
from lmserver.web.endpoint import Auth, Request, Streamed, endpoint
from lmserver.web.errors import ApiError, bad_param, not_found

_RATE = "federation_media"
DEADLINE = 1800.0


class MediaEndpoints:
    """Only media uploaded here: copies of other servers' are asked of those."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @endpoint("GET", STABLE + "/v1/media/download/{media_id}", auth=Auth.SERVER, rate=_RATE,
              deadline=DEADLINE, at_once=8)  # fmt: skip
    async def download(self, request: Request) -> Streamed:
        """SS API §GET media/download."""
        return _served(await self._open(request))

    @endpoint("GET", STABLE + "/v1/media/thumbnail/{media_id}", auth=Auth.SERVER, rate=_RATE,
              deadline=DEADLINE, at_once=8)  # fmt: skip
    async def thumbnail(self, request: Request) -> Streamed:
        """SS API §GET media/thumbnail: the image itself where it is small."""
        medium = await self._open(request)
        try:
            return _served(as_thumbnail(medium, animated=request.query.get("animated", "true") != "false"))
        except outcomes.NoThumbnail as error:
            raise ApiError(400, "M_UNKNOWN", str(error)) from None
        except outcomes.TooLarge as error:
            raise ApiError(413, "M_TOO_LARGE", str(error)) from None

    async def _open(self, request: Request) -> Medium:
        media_id = request.params["media_id"]
        if not ids.is_media_id(media_id):
            raise not_found("Media not found")
        try:
            wait = wait_seconds(request.query.get("timeout_ms", DEFAULT_TIMEOUT_MS))
            return await self._library.open_local(media_id, wait)
        except ValueError as error:
            raise bad_param(str(error)) from None
        except outcomes.NotFound as error:
            raise not_found(str(error)) from None
        except outcomes.NotYetUploaded as error:
            raise ApiError(504, "M_NOT_YET_UPLOADED", str(error)) from None


def _served(medium: Medium) -> Streamed:
    content = medium.content
    writer = Writer(content.content_type, naming.disposition(content.content_type, content.filename))
    return Streamed(
        writer.body(medium.body), writer.length(content.size), {"Content-Type": writer.content_type}
    )
