"""Knocks at and leaves of rooms we are not in: the make and send handshake (D04 §Knocks,
§Rejecting Invites and Leaves).

Of a template nothing but the room version is taken: what we sign is our own (attacks T1-T3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol.events import EventDraft
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import SUPPORTED, room_version
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms import stripped_state
from lmserver.rooms.declines import FIRST_PAUSE_MS, Answer, tell
from lmserver.rooms.outsiders import newest
from lmserver.storage import outside, room_state
from lmserver.storage.database import Connection, Database
from lmserver.storage.outside import OutsideMembership


class Handshakes:
    """Changes of our users' membership in rooms that have no list here."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        api: RoomApi,
        publish: Callable[[Iterable[str]], None],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._key = key
        self._api = api
        self._publish = publish
        self._clock = clock

    async def knock(self, server: str, draft: EventDraft) -> None:
        """Knock through `server`, which has to be the hub.

        Raises FederationError, UnknownRoomVersion or another ProtocolError.
        """
        version = room_version(
            await self._api.make_membership(server, "knock", draft.room_id, draft.sender, list(SUPPORTED))
        )
        lpdu = build_lpdu(draft, version, server, self._key)
        answer = await self._api.send_knock(server, version.id, lpdu.event_id, lpdu.fields)
        knock = OutsideMembership(
            user_id=draft.sender,
            room_id=draft.room_id,
            membership="knock",
            hub_server=server,
            sender=draft.sender,
            room_version=version.id,
            event=lpdu.canonical,
            event_id=answer.event_id,
            stripped_state=outside.encode_state(stripped_state.clean(answer.stripped_state)),
        )
        await self._db.run(lambda db: self._keep(db, knock))
        self._publish([draft.sender])

    async def leave(self, draft: EventDraft, known: OutsideMembership) -> None:
        """Tell the hub, now or when it can be reached; for our user the room is gone either way.

        A hub that refuses knows better than we do, but for an invite that we signed a moment ago and
        it has not placed yet: it is asked once more.
        """
        leave = build_lpdu(draft, room_version(known.room_version), known.hub_server, self._key)
        answer = await tell(self._api, leave)
        told = answer is Answer.SETTLED or (answer is Answer.REFUSED and known.membership != "invite")
        left = replace(
            known,
            membership="leave",
            sender=draft.sender,
            event=None if told else leave.canonical,
            # What the hub says of the time before the invite does not cancel the leave.
            event_id=None if told else known.event_id,
            stripped_state=outside.encode_state([]),
            tell_at=None if told else self._clock() + FIRST_PAUSE_MS,
        )
        await self._db.run(lambda db: self._keep(db, left))
        self._publish([draft.sender])

    async def not_invited(self, hub: str, user_id: str, room_id: str) -> None:
        """The hub lets every invited user join; so whom it refuses is not invited. It may never have
        placed an invite we signed, having changed its mind or died meanwhile."""
        known = await outside.get(self._db, user_id, room_id)
        if known is None or known.membership != "invite" or known.hub_server != hub:
            return
        left = replace(
            known, membership="leave", event=None, event_id=None, stripped_state=outside.encode_state([])
        )
        await self._db.run(lambda db: self._keep(db, left))
        self._publish([user_id])

    async def _keep(self, db: Connection, change: OutsideMembership) -> None:
        """Store it, unless our server came into the room meanwhile: then the list tells. Nor where the
        hub's own news was faster than its answer: it is newer than what the change was made of."""
        await outside.lock_room(db, change.room_id)
        if await room_state.has_joined_user(db, change.room_id, self._key.server_name):
            return
        known = await newest(db, change.user_id, change.room_id)
        if known is None or known.stream_xid == change.stream_xid or change.membership == "knock":
            await outside.store(db, change)
