"""`device_lists` of /sync: whose devices a client must look up again, and whose it may forget.

A client encrypts for the devices it knows, so a user missing here reads nothing or reads on:
besides key changes, everybody who came to share a room counts as changed, and everybody with
whom no room is shared any more as left (CS API §Tracking the device list for a user).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lmserver.rooms.sync.feeds import Feeds
from lmserver.storage import room_reads, room_state
from lmserver.storage.database import Executor
from lmserver.storage.room_reads import MemberChange


@dataclass(frozen=True, slots=True)
class DeviceListChanges:
    changed: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)


async def device_list_changes(
    db: Executor,
    feeds: Feeds,
    user_id: str,
    since: int | None,
    upto: int,
    member_changes: Sequence[MemberChange],
    newly_joined: Iterable[str],
    rooms_left: Mapping[str, int],
) -> DeviceListChanges:
    """Changes for one user in the stream interval [since, upto); none on an initial sync, where
    the client knows nothing yet."""
    if since is None or since >= upto:
        return DeviceListChanges()
    came, went = _comings_and_goings(member_changes)
    for room_id in newly_joined:
        came.update(await room_state.joined_users(db, room_id))
    for room_id, position in rooms_left.items():
        went.update(await room_reads.joined_at(db, room_id, position))
    keys_changed = await feeds.changed_device_lists(user_id, since, upto)
    candidates = (came | went | keys_changed) - {user_id}
    sharing = await room_reads.sharing_a_room(db, user_id, list(candidates)) if candidates else set()
    changed = (came | keys_changed) & (sharing | {user_id})
    if user_id not in keys_changed:
        changed.discard(user_id)
    return DeviceListChanges(changed, (came | went) - sharing - {user_id})


def _comings_and_goings(changes: Iterable[MemberChange]) -> tuple[set[str], set[str]]:
    """Users who were out and came in, and users who were in and went out."""
    came = {c.user_id for c in changes if c.after == "join" and c.before != "join"}
    went = {c.user_id for c in changes if c.before == "join" and c.after != "join"}
    return came, went
