"""Other servers' lists of public rooms (SS API §Public Room Directory)."""

from __future__ import annotations

from typing import Any

from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.rooms.public_list import MAX_PAGE, cleaned

PATH = "/_matrix/federation/v1/publicRooms"
TIMEOUT = 15.0
MAX_LIST = 2 * 1024 * 1024
MAX_TOKEN = 1_000


class NoList(Exception):
    """The server gave no list; a short reason of ours."""


class RemoteLists:
    """Asks other servers for their lists."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def page(
        self, server: str, limit: int, since: str | None, wanted: dict[str, Any] | None
    ) -> dict[str, Any]:
        """One page, with nothing in it that is not as specified. Raises NoList."""
        try:
            answer = await self._ask(server, limit, since, wanted)
        except RemoteError as error:
            if error.status == 403:
                raise NoList("the server shows its list to nobody else") from None
            raise NoList("the server gave no list") from None
        except FederationError:
            raise NoList("the server could not be reached") from None
        found: dict[str, Any] = {"chunk": cleaned(answer.get("chunk"), MAX_PAGE)}
        for name in ("next_batch", "prev_batch"):
            token = answer.get(name)
            if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN:
                found[name] = token
        total = answer.get("total_room_count_estimate")
        found["total_room_count_estimate"] = (
            total if type(total) is int and total >= 0 else len(found["chunk"])
        )
        return found

    async def _ask(
        self, server: str, limit: int, since: str | None, wanted: dict[str, Any] | None
    ) -> dict[str, Any]:
        if wanted:
            body: dict[str, Any] = {"limit": limit, "filter": wanted}
            body |= {} if since is None else {"since": since}
            return await self._client.send_json(
                "POST", server, PATH, content=body, timeout=TIMEOUT, max_response=MAX_LIST
            )
        query = [("limit", str(limit))] + ([] if since is None else [("since", since)])
        return await self._client.send_json(
            "GET", server, PATH, query=query, timeout=TIMEOUT, max_response=MAX_LIST
        )
