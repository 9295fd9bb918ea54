"""News of our users from hubs of rooms we are not in: kicks, bans and withdrawn invites.

Such a room has no list here, so its rules cannot be applied. What stands for them: the event comes
from the hub that our user's membership came from, every signature and hash is right, and it cites
the membership it ends (D04 §Auth Events Selection names the target's member event), so that an
event delivered late does not undo an invite that overtook it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from lmserver.protocol import canonical_json, ids
from lmserver.protocol.events import Pdu, parse_pdu
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.invites import Policy, is_same_invite
from lmserver.rooms.push.outside_invites import OutsideInvites
from lmserver.rooms.visible_ranges import FOREVER
from lmserver.storage import outside, room_log, room_state
from lmserver.storage.database import Connection, Database, Executor
from lmserver.storage.outside import OutsideMembership
from lmserver.storage.pushers import NewNotification

News = Mapping[str, NewNotification | None]
"""What invites are worth to who is invited, by event ID."""


class Outsiders:
    """Keeps our users' memberships in rooms we are not in."""

    def __init__(
        self,
        db: Database,
        server_name: str,
        policy: Policy,
        pushes: OutsideInvites,
        publish: Callable[[Iterable[str]], None],
    ) -> None:
        self._db = db
        self._server_name = server_name
        self._policy = policy
        self._pushes = pushes
        self._publish = publish

    async def version_told_by(self, room_id: str, origin: str) -> str | None:
        """The version of a room without a list, if `origin` is the hub of one of our users there."""
        return await outside.version_told_by(self._db, room_id, origin)

    async def receive(self, origin: str, room_id: str, pdus: Sequence[Pdu]) -> set[str]:
        """Store what concerns our users; signatures checked and hashes enforced before.

        Returns the IDs of events that are now known; the others are none of our business.
        """
        wanted = [pdu for pdu in pdus if self._concerns_us(pdu, origin) and await self._welcome(pdu)]
        if not wanted:
            return set()
        invites = [pdu for pdu in wanted if pdu.membership == "invite"]
        news = {pdu.event_id: await self._pushes.news(pdu) for pdu in invites}
        told = await self._db.run(lambda db: self._apply(db, origin, room_id, wanted, news))
        users = {pdu.state_key or "" for pdu in told}
        self._publish(users)
        self._pushes.wake(users)
        return {pdu.event_id for pdu in told}

    def _concerns_us(self, pdu: Pdu, origin: str) -> bool:
        """A change of one of our users' membership by another server's user, or a leave that our own
        user sent when we were still in the room, through its hub."""
        if pdu.type != "m.room.member" or not ids.is_user_id(pdu.state_key):
            return False
        hub = pdu.hub_server if pdu.hub_server is not None else pdu.server
        return (
            pdu.membership in ("leave", "ban", "invite")
            and ids.server_of(pdu.state_key or "") == self._server_name
            and (pdu.server != self._server_name or (pdu.sender, pdu.membership) == (pdu.state_key, "leave"))
            and hub == origin
        )

    async def _welcome(self, pdu: Pdu) -> bool:
        """An invite that was placed without asking us, our last user having left meanwhile, is
        taken like one that we are asked for."""
        if pdu.membership != "invite":
            return True
        return await self._policy.refusal(pdu.state_key or "", pdu.sender) is None

    async def _apply(
        self, db: Connection, origin: str, room_id: str, pdus: Sequence[Pdu], news: News
    ) -> list[Pdu]:
        await outside.lock_room(db, room_id)
        if await room_state.has_joined_user(db, room_id, self._server_name):
            return []
        return [pdu for pdu in pdus if await self._take(db, origin, pdu, news)]

    async def _take(self, db: Connection, origin: str, pdu: Pdu, news: News) -> bool:
        known = await newest(db, pdu.state_key or "", pdu.room_id)
        if known is None or known.hub_server != origin:
            return False
        if known.event_id == pdu.event_id:
            return True
        if pdu.membership == "invite" and await _settle_invite(db, known, pdu):
            return True
        if not _follows(pdu, known):
            return False
        if known.event is None and (known.membership, known.sender) == (pdu.membership, pdu.sender):
            # The leave that clients were told of when the hub had taken it. Under a new number it would be
            # hidden for as long as that is not settled, and the invite before it would show again.
            await outside.replace_event(db, known, pdu.canonical, pdu.event_id)
            return True
        await outside.store(db, _changed(known, pdu))
        notification = news.get(pdu.event_id)
        if notification is not None:
            await self._pushes.queue(db, notification)
        return True


async def newest(db: Executor, user_id: str, room_id: str) -> OutsideMembership | None:
    """A user's membership in a room we are not in: told from outside or, in a room we have left,
    what stood at the end of its list. None when nothing is known."""
    told = await outside.get(db, user_id, room_id)
    room = await room_log.room(db, room_id)
    entry = None
    if room is not None:
        entry = await room_state.state_entry(db, room_id, FOREVER, "m.room.member", user_id)
    if room is None or entry is None or (told is not None and told.stream_xid > entry.stream_xid):
        return told
    pdu = parse_pdu(canonical_json.parse_object(entry.pdu), room_version(room.room_version))
    return OutsideMembership(
        user_id, room_id, pdu.membership or "leave", room.hub_server, pdu.sender, pdu.version.id,
        pdu.canonical, entry.event_id, outside.encode_state([]), None, entry.stream_xid,
    )  # fmt: skip


def _follows(pdu: Pdu, known: OutsideMembership) -> bool:
    """Whether an event of the hub's list comes after the membership we know of: it cites it, or
    shows that the invite we signed never came into the list.

    Had the invite a place before the event, the event would cite it; after it, the invite would cite
    the event or one still later. Neither is so when both cite the same: then the user was banned
    while we were asked. The invite alone cites the join rule, if there is one.
    """
    if known.event_id is None or known.event_id in pdu.auth_events:
        return True
    if known.membership != "invite" or known.event is None:
        return False
    cited = set(parse_pdu(canonical_json.parse_object(known.event), pdu.version).auth_events)
    rules = [e for e in outside.decode_state(known.stripped_state) if e["type"] == "m.room.join_rules"]
    return (
        pdu.event_id not in cited
        and cited >= set(pdu.auth_events)
        and (len(cited) - len(set(pdu.auth_events)) == len(rules[:1]))
    )


def _changed(known: OutsideMembership, pdu: Pdu) -> OutsideMembership:
    return replace(
        known,
        membership=pdu.membership or "leave",
        sender=pdu.sender,
        event=pdu.canonical,
        event_id=pdu.event_id,
        stripped_state=outside.encode_state([]),
        tell_at=None,
    )


async def _settle_invite(db: Connection, known: OutsideMembership, pdu: Pdu) -> bool:
    """The invite we signed, completed anew because its room had moved on meanwhile: its event ID
    is the one that the hub's next event about the user will cite."""
    same = is_same_invite(known, pdu)
    if same:
        await outside.replace_event(db, known, pdu.canonical, pdu.event_id)
    return same
