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
    for room_id in {*newly_joined, *_rejoined(member_changes, user_id)}:
        came.update(await room_state.joined_users(db, room_id))
        went.update(await _known_at(db, room_id, user_id, since))
    for room_id, position in rooms_left.items():
        went.update(await room_reads.joined_at(db, room_id, position))
    keys_changed = await feeds.changed_device_lists(user_id, since, upto)
    candidates = (came | went | keys_changed) - {user_id}
    sharing = await room_reads.sharing_a_room(db, user_id, list(candidates)) if candidates else set()
    changed = (came | keys_changed) & (sharing | {user_id})
    if user_id not in keys_changed:
        changed.discard(user_id)
    return DeviceListChanges(changed, (came | went) - sharing - {user_id})


async def _known_at(db: Executor, room_id: str, user_id: str, since: int) -> list[str]:
    """Who was in a room with the user at a stream position: while the user was out of it since then,
    some may have left unseen."""
    before = await room_reads.membership_before(db, room_id, user_id, since)
    position = await room_reads.position_before(db, room_id, since)
    if before is None or before.membership != "join" or position is None:
        return []
    return await room_reads.joined_at(db, room_id, position + 1)


def _rejoined(changes: Iterable[MemberChange], user_id: str) -> set[str]:
    """Rooms the user came back to: a server that was out of a room was told of nobody's new keys."""
    return {c.room_id for c in changes if c.user_id == user_id and c.after == "join" and c.before != "join"}


def _comings_and_goings(changes: Iterable[MemberChange]) -> tuple[set[str], set[str]]:
    """Users who were out and came in, and users who were in and went out."""
    came = {c.user_id for c in changes if c.after == "join" and c.before != "join"}
    went = {c.user_id for c in changes if c.before == "join" and c.after != "join"}
    return came, went
