"""Memberships of our users in rooms we are not in: what the room's hub told, and nothing else.

A room we are in has a list, and the list alone counts there; joining it deletes these rows. Of
several things known about a user and a room, the one committed last is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.protocol import canonical_json
from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class OutsideMembership:
    """`event` holds the canonical bytes of the member event: a PDU of the hub, or our own LPDU of
    a knock; None when the user left. `event_id` is the PDU's, None when only the hub knows it.
    `stripped_state` is a JSON list. `tell_at` is when (ms) the hub is told of a leave, whose LPDU
    `event` is then, and `event_id` the one it ends; None when there is nothing to tell."""

    user_id: str
    room_id: str
    membership: str
    hub_server: str
    sender: str
    room_version: str
    event: bytes | None
    event_id: str | None
    stripped_state: bytes
    tell_at: int | None = None
    stream_xid: int = 0

    @property
    def seen_event(self) -> bytes | None:
        """The member event a client may see: not a leave of which its hub has not heard."""
        return None if self.tell_at is not None else self.event

    @property
    def pending(self) -> bool:
        """Whether the user waits for something: an answer to a knock, or to answer an invite."""
        return self.membership in ("invite", "knock")


@dataclass(frozen=True, slots=True)
class Untold:
    """A leave its hub has not heard of; `lpdu` are canonical bytes, `tries` how often it was away."""

    user_id: str
    room_id: str
    hub_server: str
    room_version: str
    lpdu: bytes
    tries: int
    stream_xid: int


def _outside(row: Any) -> OutsideMembership:
    return OutsideMembership(*(row[name] for name in OutsideMembership.__slots__))


def encode_state(events: list[dict[str, Any]]) -> bytes:
    """Stripped state as it is stored; `decode_state` gives it back."""
    return canonical_json.encode(events)


def decode_state(data: bytes) -> list[dict[str, Any]]:
    state: list[dict[str, Any]] = canonical_json.parse(data)
    return state


async def lock_room(db: Executor, room_id: str) -> None:
    """Keep joins of a room and news from outside it apart until the transaction ends: a room we
    know nothing of has no other row that could be locked."""
    await db.execute(
        "INSERT INTO outside_rooms (room_id) VALUES ($1)"
        " ON CONFLICT (room_id) DO UPDATE SET room_id = excluded.room_id",
        room_id,
    )


async def store(db: Executor, known: OutsideMembership) -> None:
    """Keep the newest membership of a user in a room."""
    await db.execute(
        "INSERT INTO outside_memberships (user_id, room_id, membership, hub_server, sender, room_version,"
        " event, event_id, stripped_state, tell_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        " ON CONFLICT (user_id, room_id) DO UPDATE SET membership = excluded.membership,"
        " hub_server = excluded.hub_server, sender = excluded.sender,"
        " room_version = excluded.room_version, event = excluded.event, event_id = excluded.event_id,"
        " stripped_state = excluded.stripped_state, tell_at = excluded.tell_at, tries = 0,"
        " stream_xid = pg_current_xact_id()",
        known.user_id,
        known.room_id,
        known.membership,
        known.hub_server,
        known.sender,
        known.room_version,
        known.event,
        known.event_id,
        known.stripped_state,
        known.tell_at,
    )


async def replace_event(db: Executor, known: OutsideMembership, event: bytes, event_id: str) -> None:
    """The same membership in the form the room's list has; nothing that a client would see."""
    await db.execute(
        "UPDATE outside_memberships SET event = $3, event_id = $4 WHERE user_id = $1 AND room_id = $2",
        known.user_id,
        known.room_id,
        event,
        event_id,
    )


async def get(db: Executor, user_id: str, room_id: str) -> OutsideMembership | None:
    row = await db.fetchrow(
        "SELECT user_id, room_id, membership, hub_server, sender, room_version, event, event_id,"
        " stripped_state, tell_at, stream_xid::text::bigint AS stream_xid FROM outside_memberships"
        " WHERE user_id = $1 AND room_id = $2",
        user_id,
        room_id,
    )
    return None if row is None else _outside(row)


async def of_user(db: Executor, user_id: str, since: int, upto: int) -> list[OutsideMembership]:
    """The user's memberships that changed in the stream interval [since, upto)."""
    rows = await db.fetch(
        "SELECT user_id, room_id, membership, hub_server, sender, room_version, event, event_id,"
        " stripped_state, tell_at, stream_xid::text::bigint AS stream_xid FROM outside_memberships"
        " WHERE user_id = $1"
        " AND stream_xid >= $2::text::xid8 AND stream_xid < $3::text::xid8 ORDER BY room_id",
        user_id,
        str(since),
        str(upto),
    )
    return [_outside(r) for r in rows]


async def version_told_by(db: Executor, room_id: str, hub_server: str) -> str | None:
    """The version of a room we are not in, if this server is the hub of one of our users' memberships."""
    version: str | None = await db.fetchval(
        "SELECT room_version FROM outside_memberships WHERE room_id = $1 AND hub_server = $2 LIMIT 1",
        room_id,
        hub_server,
    )
    return version


async def claim_untold(db: Executor, now_ms: int, until_ms: int, limit: int) -> list[Untold]:
    """Leaves that are due, longest first; nobody else gets them before `until_ms`."""
    rows = await db.fetch(
        "UPDATE outside_memberships AS o SET tell_at = $2 FROM (SELECT user_id, room_id"
        " FROM outside_memberships WHERE tell_at <= $1 AND event IS NOT NULL ORDER BY tell_at LIMIT $3"
        " FOR UPDATE SKIP LOCKED) AS due WHERE o.user_id = due.user_id AND o.room_id = due.room_id"
        " RETURNING o.user_id, o.room_id, o.hub_server, o.room_version, o.event, o.tries,"
        " o.stream_xid::text::bigint AS stream_xid",
        now_ms,
        until_ms,
        limit,
    )
    return [Untold(*r.values()) for r in rows]


async def tell_later(db: Executor, leave: Untold, at_ms: int) -> None:
    """The hub was away; nothing happens if the membership is another by now."""
    await db.execute(
        "UPDATE outside_memberships SET tell_at = $4, tries = tries + 1"
        " WHERE user_id = $1 AND room_id = $2 AND stream_xid = $3::text::xid8",
        leave.user_id,
        leave.room_id,
        str(leave.stream_xid),
        at_ms,
    )


async def told(db: Executor, leave: Untold) -> None:
    """The hub has heard of it, or will not."""
    await db.execute(
        "UPDATE outside_memberships SET tell_at = NULL, event = NULL, event_id = NULL"
        " WHERE user_id = $1 AND room_id = $2 AND stream_xid = $3::text::xid8",
        leave.user_id,
        leave.room_id,
        str(leave.stream_xid),
    )


async def pending_invites(db: Executor, user_id: str, most: int) -> int:
    """How many invites wait for the user's answer, counted up to `most`."""
    count: int = await db.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM outside_memberships"
        " WHERE user_id = $1 AND membership = 'invite' LIMIT $2) AS waiting",
        user_id,
        most,
    )
    return count


async def forget(db: Executor, user_id: str, room_id: str) -> None:
    """Delete what is known of a membership that ended."""
    await db.execute(
        "DELETE FROM outside_memberships WHERE user_id = $1 AND room_id = $2"
        " AND membership NOT IN ('invite', 'knock')",
        user_id,
        room_id,
    )


async def forget_room(db: Executor, room_id: str) -> None:
    """We are in the room from now on: its list tells everything."""
    await db.execute("DELETE FROM outside_memberships WHERE room_id = $1", room_id)
    await db.execute("DELETE FROM outside_rooms WHERE room_id = $1", room_id)
