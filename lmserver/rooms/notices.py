"""What the operator has to say to users (CS API §Server Notices): a room for each, made when first needed
by a user of its own that nobody logs in as."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from lmserver.protocol.events import EventDraft
from lmserver.protocol.room_versions import room_version
from lmserver.rooms import presets
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import Accepted, Rejected
from lmserver.rooms.presets import NewRoom
from lmserver.storage import accounts, notices
from lmserver.storage.database import Database, UniqueViolation

TAG: Final = "m.server_notice"
NO_PASSWORD: Final = ""
PAGE: Final = 500

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """`localpart` of the user that speaks, and its name, which the rooms have too. `can_be_declined`:
    users may leave these rooms."""

    localpart: str = "notices"
    name: str = "Server notices"
    can_be_declined: bool = False


class Tags(Protocol):
    """Account data of our users, to be changed as a whole."""

    async def change(
        self,
        user_id: str,
        room_id: str,
        type_: str,
        changed: Callable[[JsonObject | None], JsonObject | None],
    ) -> None: ...


class NotSent(Exception):
    """The notice did not come into a room; the text says why."""


class Notices:
    """Sends notices, and knows the rooms they are in."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        tags: Tags,
        profile_of: Callable[[str], Awaitable[JsonObject]],
        settings: NoticeSettings,
        default_version: str,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._tags = tags
        self._profile_of = profile_of
        self._settings = settings
        self._default_version = default_version
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def speaker(self) -> str:
        """Who sends notices."""
        return f"@{self._settings.localpart}:{self._engine.our_name}"

    async def send(self, user_id: str, text: str) -> str:
        """Tell a user of this server something; the event's ID. Raises NotSent for somebody who cannot
        be told, HubSilent or RoomBusy."""
        account = await accounts.get(self._db, user_id)
        if account is None or account.deactivated or user_id == self.speaker:
            raise NotSent(f"{user_id} is no user who can be told anything")
        async with self._locks.setdefault(user_id, asyncio.Lock()):
            room_id = await self._room(user_id)
        content = {"msgtype": "m.text", "body": text}
        return await self._append(EventDraft(room_id, "m.room.message", self.speaker, content, self._clock()))

    async def send_to_all(self, text: str) -> int:
        """Tell every user; how many were told."""
        told, last = 0, ""
        while page := await notices.recipients(self._db, last, PAGE):
            for user_id in page:
                if user_id != self.speaker:
                    await self.send(user_id, text)
                    told += 1
            last = page[-1]
        return told

    async def may_leave(self, user_id: str, room_id: str) -> bool:
        """Whether the user may leave a room, or decline the invite: not where the server speaks."""
        return self._settings.can_be_declined or await notices.room_of(self._db, user_id) != room_id

    # -- the room -------------------------------------------------------------------------------

    async def _room(self, user_id: str) -> str:
        """The user's room of notices, made or entered again by invite where that is needed."""
        room_id = await notices.room_of(self._db, user_id)
        view = None if room_id is None else await self._engine.view(room_id)
        if room_id is None or view is None or view.membership(self.speaker) != "join":
            room_id = await self._create(user_id)
            view = await self._engine.view(room_id)
        if view is None or view.membership(user_id) not in ("join", "invite"):
            await self._invite(room_id, user_id)
        await self._tags.change(user_id, room_id, "m.tag", _tagged)
        return room_id

    async def _create(self, user_id: str) -> str:
        await self._make_speaker()
        version = room_version(self._default_version)
        # Users read here; they do not answer.
        new = NewRoom(version, "private_chat", False, name=self._settings.name,
                      power_override={"users_default": -10})  # fmt: skip
        room_id = f"!{secrets.token_urlsafe(18)}:{self._engine.our_name}"
        profile = {"displayname": self._settings.name}
        drafts = presets.drafts(new, room_id, self.speaker, profile, None, self._clock())
        await self._engine.create(version, drafts)
        await notices.set_room(self._db, user_id, room_id)
        return room_id

    async def _make_speaker(self) -> None:
        """An account without a password, so that nobody else is given the name."""
        if await accounts.get(self._db, self.speaker) is not None:
            return
        with contextlib.suppress(UniqueViolation):  # somebody was faster
            await accounts.create(
                self._db, self.speaker, NO_PASSWORD, self._settings.name, False, self._clock()
            )

    async def _invite(self, room_id: str, user_id: str) -> None:
        content = {"membership": "invite", **await self._profile_of(user_id)}
        now = self._clock()
        await self._append(EventDraft(room_id, "m.room.member", self.speaker, content, now, user_id))

    async def _append(self, draft: EventDraft) -> str:
        [outcome] = await self._engine.send([draft])
        match outcome:
            case Accepted(event_id=event_id):
                return event_id
            case Rejected(reason=reason):
                raise NotSent(reason)


def _tagged(stored: JsonObject | None) -> JsonObject | None:
    tags = (stored or {}).get("tags")
    known = tags if isinstance(tags, dict) else {}
    return None if TAG in known else {"tags": {**known, TAG: {}}}
