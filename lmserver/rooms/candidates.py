"""Which servers to ask about a room we are not in, in which order, and what their refusals mean.

The draft leaves open how a server finds the hub (D04 §Make and Send Handshake). Whoever told us of
the room comes first, then who must be the hub by the rules, then guesses of the client. A server
that is not the hub may name it; it is asked next. Known peers say "not the hub" in several ways,
so a refusal only ends the search when nobody is left to ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.protocol import ids
from lmserver.protocol.errors import ProtocolError, UnknownRoomVersion
from lmserver.rooms.outcomes import MembershipError
from lmserver.storage import outside
from lmserver.storage.outside import OutsideMembership

MAX_ASKED = 6
SEARCH_SECONDS = 90.0

Answer = TypeVar("Answer")


class Candidates:
    """Servers to ask, best first, each once and at most MAX_ASKED of them."""

    def __init__(self, our_name: str, servers: Iterable[str]) -> None:
        self._our_name = our_name
        self._asked: set[str] = set()
        self._waiting = [server for server in dict.fromkeys(servers) if self._usable(server)]

    def _usable(self, server: str) -> bool:
        return server != self._our_name and ids.is_server_name(server)

    def next(self) -> str | None:
        """The next server to ask; None when all were asked, or enough."""
        while self._waiting and len(self._asked) < MAX_ASKED:
            server = self._waiting.pop(0)
            if server not in self._asked:
                self._asked.add(server)
                return server
        return None

    def __bool__(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self._waiting)

    def named_as_hub(self, server: str) -> None:
        """Ask this one next: somebody says it is the hub."""
        if self._usable(server):
            self._waiting.insert(0, server)


def candidates(
    our_name: str,
    room_id: str,
    known: OutsideMembership | None,
    known_hub: str | None,
    via: Sequence[str],
) -> Candidates:
    """The hub as we knew it, who invited us, the create event's sender, the room ID's server, the
    inviter's server, then what the client was told."""
    found = [] if known_hub is None else [known_hub]
    if known is not None:
        found.append(known.hub_server)
        state = outside.decode_state(known.stripped_state)
        found += [ids.server_of(event["sender"]) for event in state if event["type"] == "m.room.create"]
    found.append(ids.server_of(room_id))
    if known is not None:
        found.append(ids.server_of(known.sender))
    return Candidates(our_name, [*found, *via])


async def ask(servers: Candidates, attempt: Callable[[str], Awaitable[Answer]]) -> Answer:
    """The first success of `attempt`; else MembershipError with the most telling refusal."""
    if not servers:
        raise MembershipError("M_NOT_FOUND", 404, "no server of this room is known")
    failure = MembershipError("M_UNKNOWN", 502, "no server of this room could be reached")
    try:
        async with asyncio.timeout(SEARCH_SECONDS):
            while (server := servers.next()) is not None:
                try:
                    return await attempt(server)
                except UnknownRoomVersion as unknown:
                    refusal = _incompatible(unknown.version)
                except RemoteError as error:
                    if error.errcode == "M_WRONG_SERVER" and error.hub is not None:
                        servers.named_as_hub(error.hub)
                    refusal = of_remote(error)
                except FederationError:
                    continue
                except ProtocolError as error:
                    refusal = MembershipError("M_UNKNOWN", 502, f"the room's server is not usable: {error}")
                failure = max(failure, refusal, key=_weight)
    except TimeoutError:
        pass
    raise failure


def of_remote(error: RemoteError) -> MembershipError:
    """A peer's refusal in words of ours; what it says in `error` is not trusted with more."""
    match error.errcode:
        case "M_FORBIDDEN" if error.status == 403:
            return MembershipError("M_FORBIDDEN", 403, "the other server does not allow it")
        case "M_INVITE_BLOCKED" if error.status == 403:
            return MembershipError("M_INVITE_BLOCKED", 403, "the user does not want to be invited")
        case "M_INCOMPATIBLE_ROOM_VERSION" | "M_UNSUPPORTED_ROOM_VERSION":
            return _incompatible(error.room_version)
        case "M_NOT_FOUND":
            return MembershipError("M_NOT_FOUND", 404, "the other server does not know it")
        case "M_LIMIT_EXCEEDED":
            return MembershipError(
                "M_LIMIT_EXCEEDED", 429, "the other server is asked too often", error.retry_after_ms
            )
        case _:
            return MembershipError("M_UNKNOWN", 502, "the other server refused")


def _incompatible(version: str | None) -> MembershipError:
    return MembershipError(
        "M_INCOMPATIBLE_ROOM_VERSION", 400, "room version not supported", room_version=version
    )


def _weight(error: MembershipError) -> int:
    """What the room's rules say means more than what a server says of itself."""
    return {403: 4, 400: 3, 429: 2, 404: 1}.get(error.status, 0)
