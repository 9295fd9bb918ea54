"""Uploads and downloads (CS API §Content repository).

Only the authenticated endpoints of Matrix 1.11 serve media; the old ones, which anybody could ask,
are not offered.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from lmserver.client_api.serving_media import served
from lmserver.media import naming, outcomes
from lmserver.media.files import DiskFull
from lmserver.media.library import Library
from lmserver.media.local import DEFAULT_TIMEOUT_MS, LocalMedia, wait_seconds
from lmserver.media.thumbnails import thumbnail_query
from lmserver.protocol import ids
from lmserver.web.endpoint import Auth, Reply, Request, Streamed, endpoint
from lmserver.web.errors import ApiError, bad_param, forbidden, not_found

T = TypeVar("T")

DEADLINE = 1800.0

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

    @endpoint("GET", "/_matrix/client/v1/media/config", "/_matrix/media/v3/config",
              "/_matrix/media/r0/config", auth=Auth.USER)  # fmt: skip
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
    async def download(self, request: Request) -> Streamed | Reply:
        """Download, under the name it was uploaded with."""
        medium = await _answered(self._library.open(*self._named(request)))
        return served(request, medium, medium.content.filename)

    @endpoint("GET", "/_matrix/client/v1/media/download/{server_name}/{media_id}/{file_name}",
              auth=Auth.USER, rate="media_download", deadline=DEADLINE, at_once=16)  # fmt: skip
    async def download_as(self, request: Request) -> Streamed | Reply:
        """Download under a name the asker chooses."""
        medium = await _answered(self._library.open(*self._named(request)))
        return served(request, medium, naming.safe_name(request.params["file_name"]))

    @endpoint("GET", "/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}", auth=Auth.USER,
              rate="media_download", deadline=DEADLINE, at_once=16)  # fmt: skip
    async def thumbnail(self, request: Request) -> Streamed | Reply:
        """An image in about the size asked for; 400 for what is no image."""
        named = self._named(request)
        try:
            size, animated = thumbnail_query(request.query)
        except ValueError as error:
            raise bad_param(str(error)) from None
        try:
            medium = await self._library.thumbnail(*named, size, animated=animated)
        except outcomes.TooLarge as error:
            status = 413 if named[0] == self._our_name else 502
            raise ApiError(status, "M_TOO_LARGE", str(error)) from None
        except (outcomes.MediaError, DiskFull) as error:
            raise _api_error(error) from error
        return served(request, medium, medium.content.filename)

    def _named(self, request: Request) -> tuple[str, str, float]:
        """The medium asked for, by its server and ID, and the seconds its upload is waited for."""
        server = request.params["server_name"]
        if not ids.is_server_name(server):
            raise not_found("Media not found")
        try:
            wait = wait_seconds(request.query.get("timeout_ms", DEFAULT_TIMEOUT_MS))
        except ValueError as error:
            raise bad_param(str(error)) from None
        return server, _media_id(request), wait


def _api_error(error: Exception) -> ApiError:
    """What the specification answers; for MediaErrors and DiskFull."""
    if isinstance(error, DiskFull):
        return ApiError(507, "M_UNKNOWN", "The server has no room for media now")
    status, errcode = _ANSWERS[type(error)]
    return ApiError(status, errcode, str(error))


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
