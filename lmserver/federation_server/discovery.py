"""What federation testers and peers ask first."""

from __future__ import annotations

from typing import Any

from lmserver import __version__
from lmserver.federation_server.paths import STABLE
from lmserver.web.endpoint import Auth, Request, endpoint


class DiscoveryEndpoints:
    """Unauthenticated facts about this server."""

    @endpoint("GET", STABLE + "/v1/version", auth=Auth.NONE)
    async def version(self, request: Request) -> dict[str, Any]:
        """Name and version of the implementation (D04 §Open Questions)."""
        return {"server": {"name": "lmserver", "version": __version__}}
