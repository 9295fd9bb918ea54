"""Where we are and what we run: delegation and the version for federation testers."""

from __future__ import annotations

from typing import Any

from lmserver import __version__
from lmserver.federation_server.paths import STABLE
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import not_found


class WellKnownEndpoints:
    """`delegated_to` is host and port of this server, if its name alone does not lead here."""

    def __init__(self, delegated_to: str | None) -> None:
        self._delegated_to = delegated_to

    @endpoint("GET", "/.well-known/matrix/server", auth=Auth.NONE)
    async def well_known(self, request: Request) -> dict[str, Any]:
        """D04 §GET /.well-known/matrix/server."""
        if self._delegated_to is None:
            raise not_found("No delegation")
        return {"m.server": self._delegated_to}


class VersionEndpoints:
    """For federation testers."""

    @endpoint("GET", STABLE + "/v1/version", auth=Auth.NONE)
    async def version(self, request: Request) -> dict[str, Any]:
        """SS API §Server implementation version."""
        return {"server": {"name": "lmserver", "version": __version__}}
