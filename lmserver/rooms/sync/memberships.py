"""In which rooms a user is and whom they ignore, kept for as long as the journal shows no change of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lmserver.rooms.sync.journal import Journal
from lmserver.storage import account_data, room_reads
from lmserver.storage.database import Executor
from lmserver.storage.room_reads import MemberEntry

MAX_ENTRIES: Final = 200_000
"""Memberships kept over all users."""


@dataclass(frozen=True, slots=True)
class UserRooms:
    """A user's membership in every room, those that are joins by room ID, and whom the user ignores."""

    entries: Sequence[MemberEntry]
    joined: Mapping[str, MemberEntry]
    joined_ids: frozenset[str]
    ignored: frozenset[str]


@dataclass(slots=True)
class _Known:
    at: int
    rooms: UserRooms


class Memberships:
    """The memberships of users at stream positions."""

    def __init__(self, db: Executor, journal: Journal) -> None:
        self._db = db
        self._journal = journal
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._count = 0
        journal.on_another_database(self._forget)

    def _forget(self) -> None:
        self._known.clear()
        self._count = 0

    async def at(self, user_id: str, upto: int) -> UserRooms:
        """As they were before a stream position that is settled."""
        known = self._known.get(user_id)
        if known is not None and self._still_true(user_id, known, upto):
            known.at = upto
            self._known.move_to_end(user_id)
            return known.rooms
        entries = await room_reads.memberships_at(self._db, user_id, upto)
        joined = {e.room_id: e for e in entries if e.membership == "join"}
        ignored = await account_data.ignored_users(self._db, user_id)
        rooms = UserRooms(entries, joined, frozenset(joined), ignored)
        self._keep(user_id, _Known(upto, rooms))
        return rooms

    def _still_true(self, user_id: str, known: _Known, upto: int) -> bool:
        return (
            self._journal.covers(known.at)
            and known.at <= upto <= self._journal.end
            and not self._journal.membership_changed(user_id, known.at)
            and not self._journal.changed("account_data", user_id, known.at)
        )

    def _keep(self, user_id: str, known: _Known) -> None:
        old = self._known.pop(user_id, None)
        if old is not None:
            self._count -= len(old.rooms.entries)
        self._known[user_id] = known
        self._count += len(known.rooms.entries)
        while self._count > MAX_ENTRIES and len(self._known) > 1:
            _, evicted = self._known.popitem(last=False)
            self._count -= len(evicted.rooms.entries)
