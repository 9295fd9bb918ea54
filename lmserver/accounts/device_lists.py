"""Who has to look at a user's devices again when they change (D04 §Device Info Publishing).

Local clients learn it by /sync, the servers of everybody the user shares a room with by an EDU that is
queued in the transaction that makes the change. We keep no copy of other servers' device lists: an
update only marks the user, and clients that ask are answered by the user's own server. So there is no
list that could miss an update, and nothing to bring up to date after a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lmserver.protocol import edus
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import e2e_keys, outbound, room_state
from lmserver.storage.database import Connection, Database
from lmserver.storage.outbound import NewEdu
from lmserver.web.limits import Rate, RateLimiter

KIND = "device_list"

WAKES = Rate(0.1, 10)
"""How often one user of another server may wake everybody they share a room with, and make their clients
ask for keys; what comes in between is seen with the next answer."""

Tell = Callable[[Iterable[str]], None]
Dropped = Callable[[str, int], None]
"""(queue, number): older entries had to give way to newer ones."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Whom a committed change concerns: /sync keys and other servers."""

    keys: tuple[str, ...]
    servers: tuple[str, ...]

    def and_(self, other: Reach) -> Reach:
        return Reach((*self.keys, *other.keys), (*self.servers, *other.servers))


class DeviceLists:
    """Records changes inside the caller's transaction and tells of them after it."""

    def __init__(
        self, our_name: str, publish: Tell, wake: Tell, dropped: Dropped, clock: Callable[[], int]
    ) -> None:
        self._our_name = our_name
        self._publish = publish
        self._wake = wake
        self._dropped = dropped
        self._clock = clock
        self._wakes = RateLimiter({"list": WAKES})

    async def record(
        self,
        db: Connection,
        user_id: str,
        changed: Sequence[JsonObject] = (),
        removed: Sequence[str] = (),
        cross_signing: Mapping[str, JsonObject] | None = None,
    ) -> Reach:
        """A local user's change; `changed` are whole device objects, `cross_signing` the user's public
        keys by usage, if it is of them. Other servers hear of what they may see. Raises InvalidJson for
        keys without canonical form."""
        devices = [(keys["device_id"], keys) for keys in changed] + [(name, None) for name in removed]
        last = await e2e_keys.device_list_changed(db, user_id, len(devices))
        told = [
            edus.device_list_update(user_id, device_id, keys, last - len(devices) + place)
            for place, (device_id, keys) in enumerate(devices, start=1)
        ]
        if cross_signing:
            told.append(edus.signing_key_update(user_id, cross_signing))
        rooms = await room_state.joined_rooms(db, user_id)
        servers = await self._servers(db, rooms) if told else []
        if servers:
            queued = [NewEdu(server, KIND, edu) for server in servers for edu in told]
            self._dropped(KIND, await outbound.queue_edus(db, queued, self._clock()))
        return Reach((user_id, *rooms), tuple(servers))

    async def _servers(self, db: Connection, rooms: Sequence[str]) -> list[str]:
        return sorted(await room_state.servers_of_rooms(db, rooms) - {self._our_name})

    def tell(self, reach: Reach | None) -> None:
        """After COMMIT; None is no change."""
        if reach is not None:
            self._publish(reach.keys)
            self._wake(reach.servers)

    async def changed_elsewhere(self, db: Database, user_ids: Iterable[str]) -> None:
        """Users of other servers; those in no room of ours are nobody's business here."""
        marked = await e2e_keys.remote_lists_changed(db, user_ids)
        waking = [user_id for user_id in marked if not self._wakes.take("list", user_id)]
        if waking:
            self._publish(
                {room_id for user_id in waking for room_id in await room_state.joined_rooms(db, user_id)}
            )
