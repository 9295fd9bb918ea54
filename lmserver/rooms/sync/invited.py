"""Rooms a user is invited to or knocks at: stripped state, from our own list or the hub's word."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.client_format import shown, stripped
from lmserver.rooms.stripped_state import SHOWN
from lmserver.storage import invites, room_log, room_reads, room_state
from lmserver.storage.database import Executor
from lmserver.storage.invites import PendingInvite
from lmserver.storage.room_reads import MemberEntry

_SECTION = {"invite": "invite_state", "knock": "knock_state"}
_ANSWERED: JsonObject = {
    "timeline": {"events": [], "limited": False},
    "state": {"events": []},
}


class InviteSections:
    """The `invite` and `knock` parts of a /sync answer, and invites that ended."""

    def __init__(self, db: Executor) -> None:
        self._db = db

    async def known_room(self, user_id: str, entry: MemberEntry) -> JsonObject | None:
        """An invite to, or a knock at, a room whose list we have."""
        room = await room_log.room(self._db, entry.room_id)
        if room is None:
            return None
        version = room_version(room.room_version)
        at = entry.from_position + 1
        events = []
        for type_ in SHOWN:
            stored = await room_state.state_entry(self._db, entry.room_id, at, type_, "")
            if stored is not None:
                events.append(stripped(shown(stored, version)))
        own = await room_reads.member_events(self._db, entry.room_id, at, [user_id])
        members = [shown(stored, version) for stored in own]
        senders = [m.sender for m in members if m.sender != user_id]
        if senders:
            inviters = await room_reads.member_events(self._db, entry.room_id, at, senders)
            members = [shown(stored, version) for stored in inviters] + members
        events += [stripped(m) for m in members]
        return {_SECTION[entry.membership]: {"events": events}}

    async def elsewhere(
        self, user_id: str, since: int | None, upto: int, known: Mapping[str, MemberEntry]
    ) -> list[tuple[str, str, JsonObject]]:
        """(section, room ID, content) of invites to rooms we are not in.

        An answered or withdrawn invite is told once, as a room left, so that clients drop it.
        """
        found: list[tuple[str, str, JsonObject]] = []
        for invite in await invites.of_user(self._db, user_id):
            if invite.stream_xid >= upto or (since is not None and invite.stream_xid < since):
                continue
            member = known.get(invite.room_id)
            if not invite.retired:
                found.append(("invite", invite.room_id, _invite_section(invite)))
            elif since is not None and (member is None or member.stream_xid < since) and not _is_in(member):
                found.append(("leave", invite.room_id, dict(_ANSWERED)))
        return found


def _is_in(member: MemberEntry | None) -> bool:
    return member is not None and member.membership in ("join", "invite")


def _invite_section(invite: PendingInvite) -> JsonObject:
    fields = orjson.loads(invite.invite)
    own = {key: fields[key] for key in ("type", "state_key", "sender", "content")}
    others = [
        event
        for event in invites.decode_state(invite.stripped_state)
        if (event["type"], event["state_key"]) != ("m.room.member", invite.user_id)
    ]
    return {"invite_state": {"events": [*others, own]}}
