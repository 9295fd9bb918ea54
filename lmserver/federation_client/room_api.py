"""The room endpoints of D04's Transport chapter, asked of another server.

Each call knows both forms of its path: rooms of the .02 version are asked under the unstable
prefix first, because the peers that know only that version know only those paths, and a peer
that does not recognise one form is asked in the other. Bodies are returned unchecked: events are
verified by whoever asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.federation_client.client import DEFAULT_TIMEOUT, MAX_RESPONSE, FederationClient, quote_path
from lmserver.federation_client.errors import BadResponse, RemoteError
from lmserver.protocol import ids
from lmserver.protocol.room_versions import LM_02_ID

STABLE = "/_matrix/federation"
UNSTABLE = f"/_matrix/federation/unstable/{LM_02_ID}"
RECOVERY = "/_matrix/federation/unstable/org.lmserver"

RECOVERY_SECONDS = 10.0

_OTHER_VERSION = ("M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION")
MAX_JOIN_RESPONSE = 64 * 1024 * 1024
"""A join brings the whole state: about 1.5 KB for each member."""


JOIN_SECONDS = 80.0
INVITE_SECONDS = 45.0
"""A hub that is asked to invite asks the target's server in its turn."""


@dataclass(frozen=True, slots=True)
class JoinResponse:
    """The hub's answer to send_join, as sent: nothing in it is checked."""

    event: dict[str, Any]
    state: list[Any]
    auth_chain: list[Any]


@dataclass(frozen=True, slots=True)
class KnockResponse:
    """The hub's answer to send_knock: unchecked stripped state, and the event's ID if it told."""

    stripped_state: object
    event_id: str | None


class RoomApi:
    """One method for each endpoint; every one raises FederationError on failure."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def make_membership(
        self, server: str, change: str, room_id: str, user_id: str, versions: Sequence[str]
    ) -> str:
        """GET make_join, make_leave or make_knock: the room version, the one thing we take of a
        template (D04 §Make and Send Handshake; attacks T1-T3)."""
        version = await self._template_version(server, change, room_id, user_id, versions)
        if version is not None:
            return version
        # A bare template, as the draft has it, does not say which of the versions it is for.
        for one in versions:
            try:
                return await self._template_version(server, change, room_id, user_id, [one]) or one
            except RemoteError as error:
                if error.errcode not in _OTHER_VERSION:
                    raise
        raise BadResponse("the template names no room version")

    async def _template_version(
        self, server: str, change: str, room_id: str, user_id: str, versions: Sequence[str]
    ) -> str | None:
        path = f"{STABLE}/v1/make_{change}" + quote_path(room_id, user_id)
        query = [("ver", version) for version in versions]
        body = await self._client.send_json("GET", server, path, query=query)
        version = body.get("room_version")
        if version is not None and not isinstance(version, str):
            raise BadResponse("the template's room version is no string")
        if version is None and not isinstance(body.get("type"), str):
            raise BadResponse("the answer is no template")
        return version

    async def send_join(self, server: str, version: str, lpdu_id: str, lpdu: dict[str, Any]) -> JoinResponse:
        """POST send_join (D04 §Joins)."""
        body = await self._send(
            "POST",
            server,
            version,
            "v3",
            "send_join",
            lpdu_id,
            lpdu,
            timeout=JOIN_SECONDS,
            max_response=MAX_JOIN_RESPONSE,
        )
        event, state, chain = body.get("event"), body.get("state"), body.get("auth_chain", [])
        if not isinstance(event, dict) or not isinstance(state, list) or not isinstance(chain, list):
            raise BadResponse("send_join answered without event, state or auth_chain")
        return JoinResponse(event, state, chain)

    async def send_leave(self, server: str, version: str, lpdu_id: str, lpdu: dict[str, Any]) -> None:
        """POST send_leave (D04 §Rejecting Invites and Leaves)."""
        await self._send("POST", server, version, "v3", "send_leave", lpdu_id, lpdu)

    async def send_knock(
        self, server: str, version: str, lpdu_id: str, lpdu: dict[str, Any]
    ) -> KnockResponse:
        """POST send_knock (D04 §Knocks; one peer says knock_room_state)."""
        body = await self._send("POST", server, version, "v3", "send_knock", lpdu_id, lpdu)
        event_id = body.get("org.lmserver.event_id")
        return KnockResponse(
            body.get("stripped_state", body.get("knock_room_state")),
            event_id if ids.is_event_id(event_id) else None,
        )

    async def invite(
        self, server: str, version: str, event_id: str, event: dict[str, Any], stripped: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """POST invite: the event as the target's server returned it (D04 §Invites)."""
        content = {"event": event, "invite_room_state": stripped, "room_version": version}
        body = await self._send(
            "POST", server, version, "v3", "invite", event_id, content, timeout=INVITE_SECONDS
        )
        pdu = body.get("pdu", body.get("event"))
        if not isinstance(pdu, dict):
            raise BadResponse("invite answered without an event")
        return pdu

    async def backfill(self, server: str, version: str, room_id: str, event_id: str, limit: int) -> list[Any]:
        """GET backfill: events up to and including `event_id`."""
        query = [("v", event_id), ("limit", str(limit))]
        body = await self._get(server, version, "v2", "backfill", room_id, query)
        pdus = body.get("pdus")
        if not isinstance(pdus, list) or len(pdus) > limit:
            raise BadResponse("backfill answered without a list of events")
        return pdus

    async def event(self, server: str, version: str, event_id: str) -> dict[str, Any]:
        """GET event."""
        return await self._get(server, version, "v2", "event", event_id, None)

    async def heads(self, server: str, after: str) -> tuple[dict[str, str], str | None]:
        """Rooms whose hub we are and `server`'s head of each, from beyond the room `after`; and from
        where to go on (our own extension: what a restored hub asks)."""
        body = await self._client.send_json(
            "GET", server, f"{RECOVERY}/heads", query=[("from", after)], timeout=RECOVERY_SECONDS
        )
        heads, following = body.get("heads"), body.get("next")
        if not isinstance(heads, dict) or not all(isinstance(head, str) for head in heads.values()):
            raise BadResponse("heads answered without heads")
        return heads, following if isinstance(following, str) and following > after else None

    async def tail(self, server: str, room_id: str, after: Sequence[str], limit: int) -> list[Any]:
        """What `server` has of the room behind the newest of the events `after` (our own extension)."""
        query = [*(("after", event_id) for event_id in after), ("limit", str(limit))]
        path = f"{RECOVERY}/tail" + quote_path(room_id)
        body = await self._client.send_json("GET", server, path, query=query, timeout=RECOVERY_SECONDS)
        pdus = body.get("pdus")
        if not isinstance(pdus, list) or len(pdus) > limit:
            raise BadResponse("tail answered without a list of events")
        return pdus

    async def _get(
        self, server: str, version: str, api: str, name: str, id_: str, query: list[tuple[str, str]] | None
    ) -> dict[str, Any]:
        for prefix in _prefixes(version, api)[:-1]:
            try:
                return await self._client.send_json(
                    "GET", server, f"{prefix}/{name}" + quote_path(id_), query=query
                )
            except RemoteError as error:
                if not error.unknown_endpoint:
                    raise
        last = _prefixes(version, api)[-1]
        return await self._client.send_json("GET", server, f"{last}/{name}" + quote_path(id_), query=query)

    async def _send(
        self,
        method: str,
        server: str,
        version: str,
        api: str,
        name: str,
        txn_id: str,
        content: dict[str, Any],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_response: int = MAX_RESPONSE,
    ) -> dict[str, Any]:
        first, second = _prefixes(version, api)

        async def send(prefix: str) -> dict[str, Any]:
            return await self._client.send_json(
                method,
                server,
                f"{prefix}/{name}" + quote_path(txn_id),
                content=content,
                max_response=max_response,
                timeout=timeout,
            )

        try:
            return await send(first)
        except RemoteError as error:
            if not error.unknown_endpoint:
                raise
        return await send(second)


def _prefixes(version: str, api: str) -> tuple[str, str]:
    stable = f"{STABLE}/{api}"
    return (UNSTABLE, stable) if version == LM_02_ID else (stable, UNSTABLE)
