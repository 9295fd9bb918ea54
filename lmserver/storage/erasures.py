"""Users of ours who were erased, in the rooms they have been in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lmserver.storage.database import Connection, Executor


async def add(db: Connection, user_id: str) -> None:
    """Erase a user: `position` is where each room's list ends now. A second time changes nothing."""
    await db.execute("UPDATE accounts SET erased = true WHERE user_id = $1", user_id)
    await db.execute(
        "INSERT INTO erasures (room_id, user_id, position) SELECT r.room_id, $1, r.head_position"
        " FROM rooms AS r WHERE EXISTS (SELECT FROM room_state AS s WHERE s.room_id = r.room_id"
        " AND s.type = 'm.room.member' AND s.state_key = $1) ON CONFLICT DO NOTHING",
        user_id,
    )


async def remove(db: Connection, user_id: str) -> None:
    """The user is back."""
    await db.execute("UPDATE accounts SET erased = false WHERE user_id = $1", user_id)
    await db.execute("DELETE FROM erasures WHERE user_id = $1", user_id)


async def in_rooms(db: Executor, room_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """By room the users erased, and the position its list ended at when they were."""
    rows = await db.fetch(
        "SELECT room_id, user_id, position FROM erasures WHERE room_id = ANY($1::text[])", list(room_ids)
    )
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        found[row["room_id"]][row["user_id"]] = row["position"]
    return dict(found)
