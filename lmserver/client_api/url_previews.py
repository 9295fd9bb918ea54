"""Previews of web pages (CS API §GET preview_url); there only when the operator has turned them on."""

from __future__ import annotations

import re
from typing import Any

from lmserver.media import outcomes
from lmserver.media.url_previews import UrlPreviews
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param, missing_param

_LANGUAGE = re.compile(r"[A-Za-z0-9*;=.,\- ]{1,100}")


class UrlPreviewEndpoints:
    """What a client shows under a link."""

    def __init__(self, previews: UrlPreviews) -> None:
        self._previews = previews

    @endpoint("GET", "/_matrix/client/v1/media/preview_url", "/_matrix/media/v3/preview_url",
              "/_matrix/media/r0/preview_url", auth=Auth.USER, rate="url_preview", at_once=4)  # fmt: skip
    async def preview_url(self, request: Request) -> dict[str, Any]:
        """A page's title, description and image. `ts`, a point in time, is checked and not heeded."""
        url, ts = request.query.get("url"), request.query.get("ts", "0")
        if not url:
            raise missing_param("url is missing")
        if not (ts.isascii() and ts.isdigit() and len(ts) < 17):
            raise bad_param("ts is a number of milliseconds")
        language = request.headers.get("Accept-Language", "")
        try:
            return await self._previews.preview(url, language if _LANGUAGE.fullmatch(language) else None)
        except outcomes.NoPreview as error:
            raise ApiError(502, "M_UNKNOWN", str(error)) from None
