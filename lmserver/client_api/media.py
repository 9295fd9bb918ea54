"""Uploads and downloads (CS API §Content repository).

Only the authenticated endpoints of Matrix 1.11 serve media; the old ones, which anybody could ask,
are not offered. Images are not resized: a small one is its own thumbnail.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from lmserver.media import naming, outcomes
from lmserver.media.files import DiskFull
from lmserver.media.library import Library, Medium, as_thumbnail
from lmserver.media.local import DEFAULT_TIMEOUT_MS, LocalMedia, wait_seconds
from lmserver.protocol import ids
from lmserver.web.endpoint import Auth, Request, Streamed, endpoint
from lmserver.web.errors import ApiError, bad_param, forbidden, not_found

T = TypeVar("T")

DEADLINE = 1800.0
MAX_PIXELS = 1 << 16

SAFE_HEADERS = {
    # CS API §Content repository, §Security considerations; a sandbox runs nothing.
    "Content-Security-Policy": "sandbox; default-src 'none'; script-src 'none'; style-src 'unsafe-inline';"
    " object-src 'self'; media-src 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "private, max-age=86400, immutable",
}

_ANSWERS: dict[type[Exception], tuple[int, str]] = {
    outcomes.NotFound: (404, "M_NOT_FOUND"),
    outcomes.NotYetUploaded: (504, "M_NOT_YET_UPLOADED"),
    outcomes.TooLarge: (502, "M_TOO_LARGE"),
    outcomes.Unavailable: (502, "M_UNKNOWN"),
    outcomes.NoThumbnail: (400, "M_UNKNOWN"),
    outcomes.NotYours: (403, "M_FORBIDDEN"),
    outcomes.AlreadyUploaded: (409, "M_CANNOT_OVERWRITE_MEDIA"),
    outcomes.QuotaReached: (403, "M_FORBIDDEN"),
}


class MediaEndpoints:
    """`max_upload` is bytes."""

    def __init__(self, our_name: str, local: LocalMedia, library: Library, max_upload: int) -> None:
        self._our_name = our_name
        self._local = local
        self._library = library
        self._max_upload = max_upload

    @endpoint("GET", "/_matrix/client/v1/media/config", "/_matrix/media/v3/config", auth=Auth.USER)
    async def config(self, request: Request) -> dict[str, Any]:
        """How large an upload may be."""
        return {"m.upload.size": self._max_upload}

    @endpoint("POST", "/_matrix/media/v3/upload", "/_matrix/media/r0/upload", auth=Auth.USER,
              rate="media_upload", deadline=DEADLINE, at_once=4)  # fmt: skip
    async def upload(self, request: Request) -> dict[str, Any]:
        """Upload; answered when the file is durable."""
        media_id = await _answered(
            self._local.upload(
                request.requester.user_id,
                request.stream(self._max_upload),
                request.headers.get("Content-Type"),
                request.query.get("filename"),
            )
        )
        return {"content_uri": f"mxc://{self._our_name}/{media_id}"}

    @endpoint("POST", "/_matrix/media/v1/create", auth=Auth.USER, rate="media_upload")
    async def create(self, request: Request) -> dict[str, Any]:
        """A media ID to upload to within a day."""
        try:
            media_id, expires = await self._local.announce(request.requester.user_id)
        except outcomes.TooManyPending as error:
            raise ApiError(429, "M_LIMIT_EXCEEDED", str(error), {"retry_after_ms": 60_000}) from None
        return {"content_uri": f"mxc://{self._our_name}/{media_id}", "unused_expires_at": expires}

    @endpoint("PUT", "/_matrix/media/v3/upload/{server_name}/{media_id}", auth=Auth.USER,
              rate="media_upload", deadline=DEADLINE, at_once=4)  # fmt: skip
    async def upload_to(self, request: Request) -> dict[str, Any]:
        """Upload what was announced by `create`; never twice."""
        if request.params["server_name"] != self._our_name:
            raise forbidden("The media is another server's")
        await _answered(
            self._local.upload_to(
                _media_id(request),
                request.requester.user_id,
                request.stream(self._max_upload),
                request.headers.get("Content-Type"),
                request.query.get("filename"),
            )
        )
        return {}

    @endpoint("GET", "/_matrix/client/v1/media/download/{server_name}/{media_id}", auth=Auth.USER,
              rate="media_download", deadline=DEADLINE, at_once=16)  # fmt: skip
    async def download(self, request: Request) -> Streamed:
        """Download, under the name it was uploaded with."""
        medium = await self._open(request)
        return _served(medium, medium.content.filename)

    @endpoint("GET", "/_matrix/client/v1/media/download/{server_name}/{media_id}/{file_name}",
              auth=Auth.USER, rate="media_download", deadline=DEADLINE, at_once=16)  # fmt: skip
    async def download_as(self, request: Request) -> Streamed:
        """Download under a name the asker chooses."""
        return _served(await self._open(request), naming.safe_name(request.params["file_name"]))

    @endpoint("GET", "/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}", auth=Auth.USER,
              rate="media_download", deadline=DEADLINE, at_once=16)  # fmt: skip
    async def thumbnail(self, request: Request) -> Streamed:
        """The image itself where it is small; 400 for what is no image."""
        animated = _wants_moving(request)
        medium = await self._open(request)
        try:
            return _served(as_thumbnail(medium, animated=animated), medium.content.filename)
        except outcomes.TooLarge as error:
            status = 413 if request.params["server_name"] == self._our_name else 502
            raise ApiError(status, "M_TOO_LARGE", str(error)) from None
        except outcomes.NoThumbnail as error:
            raise _api_error(error) from None

    async def _open(self, request: Request) -> Medium:
        server = request.params["server_name"]
        if not ids.is_server_name(server):
            raise not_found("Media not found")
        try:
            wait = wait_seconds(request.query.get("timeout_ms", DEFAULT_TIMEOUT_MS))
        except ValueError as error:
            raise bad_param(str(error)) from None
        return await _answered(self._library.open(server, _media_id(request), wait))


def _api_error(error: Exception) -> ApiError:
    """What the specification answers; for MediaErrors and DiskFull."""
    if isinstance(error, DiskFull):
        return ApiError(507, "M_UNKNOWN", "The server has no room for media now")
    status, errcode = _ANSWERS[type(error)]
    return ApiError(status, errcode, str(error))


def _wants_moving(request: Request) -> bool:
    """Checks a thumbnail's parameters; False when a moving image must not be the answer."""
    for name in ("width", "height"):
        value = request.query.get(name, "")
        if not (value.isascii() and value.isdigit() and len(value) < 8 and 0 < int(value) <= MAX_PIXELS):
            raise bad_param(f"{name} is a number of pixels")
    if request.query.get("method", "scale") not in ("scale", "crop"):
        raise bad_param("method is scale or crop")
    return bool(request.query.get("animated", "true") != "false")


def _media_id(request: Request) -> str:
    media_id = request.params["media_id"]
    if not ids.is_media_id(media_id):
        raise not_found("Media not found")
    return media_id


async def _answered(work: Awaitable[T]) -> T:
    try:
        return await work
    except (outcomes.MediaError, DiskFull) as error:
        raise _api_error(error) from error


def _served(medium: Medium, filename: str | None) -> Streamed:
    content = medium.content
    headers = {
        **SAFE_HEADERS,
        "Content-Type": content.content_type,
        "Content-Disposition": naming.disposition(content.content_type, filename),
    }
    return Streamed(medium.body, content.size, headers)
