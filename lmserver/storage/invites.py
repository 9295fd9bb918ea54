"""Invites of local users to rooms we are not in: the signed event and what the hub told of the room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.protocol import canonical_json
from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class PendingInvite:
    """`invite` is the PDU's canonical bytes, `stripped_state` a JSON list; a retired one was
    answered or withdrawn and stays so that /sync can tell the client."""

    user_id: str
    room_id: str
    hub_server: str
    sender: str
    room_version: str
    invite: bytes
    stripped_state: bytes
    retired: bool
    stream_xid: int


def _invite(row: Any) -> PendingInvite:
    return PendingInvite(*(row[name] for name in PendingInvite.__slots__))


def encode_state(events: list[dict[str, Any]]) -> bytes:
    """Stripped state as it is stored; `decode_state` gives it back."""
    return canonical_json.encode(events)


def decode_state(data: bytes) -> list[dict[str, Any]]:
    state: list[dict[str, Any]] = canonical_json.parse(data)
    return state


async def store(db: Executor, invite: PendingInvite) -> None:
    """Keep the newest invite of a user to a room."""
    await db.execute(
        "INSERT INTO pending_invites"
        " (user_id, room_id, hub_server, sender, room_version, invite, stripped_state)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (user_id, room_id) DO UPDATE SET"
        " hub_server = excluded.hub_server, sender = excluded.sender,"
        " room_version = excluded.room_version, invite = excluded.invite,"
        " stripped_state = excluded.stripped_state, retired = false, stream_xid = pg_current_xact_id()",
        invite.user_id,
        invite.room_id,
        invite.hub_server,
        invite.sender,
        invite.room_version,
        invite.invite,
        invite.stripped_state,
    )


async def get(db: Executor, user_id: str, room_id: str) -> PendingInvite | None:
    """The invite, retired or not."""
    row = await db.fetchrow(
        "SELECT user_id, room_id, hub_server, sender, room_version, invite, stripped_state, retired,"
        " stream_xid::text::bigint AS stream_xid FROM pending_invites"
        " WHERE user_id = $1 AND room_id = $2",
        user_id,
        room_id,
    )
    return None if row is None else _invite(row)


async def of_user(db: Executor, user_id: str) -> list[PendingInvite]:
    """Every invite of the user, retired ones included."""
    rows = await db.fetch(
        "SELECT user_id, room_id, hub_server, sender, room_version, invite, stripped_state, retired,"
        " stream_xid::text::bigint AS stream_xid FROM pending_invites"
        " WHERE user_id = $1 ORDER BY room_id",
        user_id,
    )
    return [_invite(r) for r in rows]


async def retire(db: Executor, user_id: str, room_id: str) -> None:
    """The invite was accepted, rejected or withdrawn."""
    await db.execute(
        "UPDATE pending_invites SET retired = true, stream_xid = pg_current_xact_id()"
        " WHERE user_id = $1 AND room_id = $2 AND NOT retired",
        user_id,
        room_id,
    )
