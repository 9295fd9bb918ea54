"""What is asked of the server as a whole."""

from __future__ import annotations

from lmserver import __version__
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.protocol.canonical_json import JsonObject
from lmserver.web.endpoint import Auth, Request, endpoint


class ServerEndpoints:
    """Its version."""

    @endpoint("GET", SYNAPSE + "/v1/server_version", auth=Auth.ADMIN)
    async def version(self, request: Request) -> JsonObject:
        """Which server this is."""
        return {"server_version": f"lmserver {__version__}"}
