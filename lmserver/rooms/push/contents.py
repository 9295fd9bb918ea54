"""What a push gateway is told of an event (Push Gateway API), if its user may see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.access import Access
from lmserver.rooms.client_format import Shown
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.other_rooms import own_event_of, stripped_events
from lmserver.storage import outside, room_log
from lmserver.storage.database import Executor
from lmserver.storage.pushers import Queued

_ENTRIES: Final = {
    "room_name": ("m.room.name", "name"),
    "room_alias": ("m.room.canonical_alias", "alias"),
    "sender_display_name": ("m.room.member", "displayname"),
}
"""What is told of the state: the entry and the member of its content."""

State = Mapping[tuple[str, str], Mapping[str, Any]]
"""Contents by type and state key."""


@dataclass(frozen=True, slots=True)
class Told:
    """`details` are what a phone shows without asking us."""

    event_id: str
    type: str
    details: JsonObject


class Contents:
    """Reads what is queued as its user may see it now."""

    def __init__(self, db: Executor, reading: Reading) -> None:
        self._db = db
        self._reading = reading

    async def of(self, user_id: str, queued: Queued) -> Told | None:
        """None for what is redacted, or no longer the user's to see."""
        access = await self._reading.access(user_id, queued.room_id)
        event = None if access is None else await self._event(access, queued.event_id, user_id)
        if access is None or event is None:
            return await self._outside(user_id, queued)
        if event.redacted_by is not None:
            return None
        return _told(event, user_id, await self._state(access, event.sender))

    async def _event(self, access: Access, event_id: str, user_id: str) -> Shown | None:
        """As the user may see it; of a room they are only invited to, the invite."""
        event = await self._reading.event(access, event_id)
        if event is None and access.membership == "invite":
            stored = await room_log.event(self._db, event_id, access.room_id)
            found = [] if stored is None else self._reading.shown_all([stored], access)
            event = next((e for e in found if (e.type, e.state_key) == ("m.room.member", user_id)), None)
        return event

    async def _state(self, access: Access, sender: str) -> State:
        keys = [(type_, _key(type_, sender)) for type_, _ in _ENTRIES.values()]
        entries = {key: await self._reading.state_entry(access, *key) for key in keys}
        return {key: entry.content for key, entry in entries.items() if entry is not None}

    async def _outside(self, user_id: str, queued: Queued) -> Told | None:
        """An invite to a room that has no list here, or one that ended before."""
        known = await outside.get(self._db, user_id, queued.room_id)
        event = None if known is None or known.membership != "invite" else own_event_of(known)
        if known is None or event is None:
            return None
        if await room_log.event(self._db, queued.event_id, queued.room_id) is not None:
            return None  # it stands in the list, and the user may not see it
        state = {(e["type"], e["state_key"]): e["content"] for e in stripped_events(known)}
        return _told(event, user_id, state)


def _key(type_: str, sender: str) -> str:
    return sender if type_ == "m.room.member" else ""


def _told(event: Shown, user_id: str, state: State) -> Told:
    found: JsonObject = {"type": event.type, "sender": event.sender, "content": event.content}
    if event.state_key is not None:
        found["user_is_target"] = event.type == "m.room.member" and event.state_key == user_id
    for name, (type_, member) in _ENTRIES.items():
        value = state.get((type_, _key(type_, event.sender)), {}).get(member)
        if isinstance(value, str):
            found[name] = value
    return Told(event.event_id, event.type, found)
