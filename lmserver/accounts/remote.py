"""Users of other servers: their keys, profiles and devices, asked of their own server.

Whatever another server says counts for its own users only; a server that cannot be reached is
`None` here and a failure to the client, never an error of ours.
"""

from __future__ import annotations

from typing import Any

from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.errors import FederationError
from lmserver.protocol import ids
from lmserver.protocol.errors import InvalidJson

V1 = "/_matrix/federation/v1"
TIMEOUT = 10.0


class RemoteUsers:
    """Questions to other servers about their users."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def query(self, server: str, users: dict[str, list[str]]) -> dict[str, Any] | None:
        """POST user/keys/query."""
        return await self._post(server, f"{V1}/user/keys/query", {"device_keys": users})

    async def claim(self, server: str, users: dict[str, dict[str, str]]) -> dict[str, Any] | None:
        """POST user/keys/claim (D04 §One Time Key Claiming)."""
        return await self._post(server, f"{V1}/user/keys/claim", {"one_time_keys": users})

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        """GET query/profile: display name and avatar, if they are text."""
        try:
            found = await self._client.send_json(
                "GET",
                ids.server_of(user_id),
                f"{V1}/query/profile",
                query=[("user_id", user_id)],
                timeout=TIMEOUT,
            )
        except FederationError:
            return None
        return {k: found[k] for k in ("displayname", "avatar_url") if isinstance(found.get(k), str)}

    async def alias(self, alias: str) -> tuple[str, list[str]] | None:
        """GET query/directory: the room ID and servers to join through."""
        try:
            found = await self._client.send_json(
                "GET",
                ids.server_of(alias),
                f"{V1}/query/directory",
                query=[("room_alias", alias)],
                timeout=TIMEOUT,
            )
        except FederationError:
            return None
        room_id, servers = found.get("room_id"), found.get("servers")
        if not isinstance(room_id, str) or not ids.is_room_id(room_id) or not isinstance(servers, list):
            return None
        return room_id, [s for s in servers if isinstance(s, str) and ids.is_server_name(s)][:20]

    async def _post(self, server: str, path: str, content: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return await self._client.send_json("POST", server, path, content=content, timeout=TIMEOUT)
        except (FederationError, InvalidJson):
            return None
