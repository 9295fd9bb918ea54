"""A hub with a real database, an engine and readers: rooms can be played and then looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from lmserver.accounts.push_rules import PushRules
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.access import Access, Reader
from lmserver.rooms.backfill import Backfill
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.gaps import GapFiller
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.outcomes import Accepted, ClientTxn, Outcome
from lmserver.rooms.own_lpdus import OwnLpdus
from lmserver.rooms.reading import Reading
from lmserver.rooms.receipts import Markers, Receipts
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.filters import SyncFilter, parse_sync_filter
from lmserver.rooms.sync.interval import SyncRequest
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.sync import SyncService
from lmserver.rooms.sync.tokens import parse_sync
from lmserver.rooms.turns import Turns
from lmserver.rooms.typing import Typing
from lmserver.rooms.unread import Unread
from lmserver.storage import room_reads
from lmserver.storage.database import Database
from tests.kit.engines import StaticVerifier
from tests.kit.rooms import ALICE, ROOM, draft, key_of, lpdu, member, message, now, opening

HUB = "hub.test"
CAROL = f"@carol:{HUB}"
DAVE = f"@dave:{HUB}"


class NoHistory:
    """A hub never asks another server for history."""

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[Any]:
        raise AssertionError("asked for history")


class Audience:
    """Local readers only."""

    def __init__(self, notifier: Notifier) -> None:
        self.publish = notifier.publish

    def wake(self, destinations: Iterable[str]) -> None:
        """Nobody is elsewhere."""


class NobodyElse:
    """Receipts concern no other server."""

    async def targets(self, room_id: str) -> list[str]:
        return []

    async def queue_receipt(self, db: Any, receipt: Any, servers: Any) -> None:
        raise AssertionError("told another server")

    def wake(self, servers: Iterable[str]) -> None:
        assert not list(servers)


class FakeDevices:
    """Device data whose answers the test sets."""

    def __init__(self) -> None:
        self.inbox: list[tuple[int, JsonObject]] = []
        self.key_changes: list[tuple[int, str]] = []
        self.counts: dict[str, int] = {}
        self.asked = 0

    async def messages(
        self, user_id: str, device_id: str, since: int, upto: int, most: int = 100
    ) -> tuple[list[JsonObject], int]:
        self.inbox = [(at, m) for at, m in self.inbox if at >= since]
        return [m for at, m in self.inbox if at < upto], upto

    async def key_counts(self, user_id: str, device_id: str) -> tuple[dict[str, int], list[str]]:
        self.asked += 1
        return dict(self.counts), []

    async def changed_users(self, user_id: str, since: int, upto: int) -> set[str]:
        return {user for at, user in self.key_changes if since <= at < upto}


class NobodyOnline:
    """Presence that is switched off."""

    async def changed(self, user_id: str, since: int | None) -> list[JsonObject]:
        return []

    async def syncing(self, user_id: str, presence: str) -> None:
        """Nobody sees it."""


class FakeAccountData:
    """Account data whose answers the test sets: (position, room ID, event)."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, JsonObject]] = []

    async def changed(self, user_id: str, since: int, upto: int) -> dict[str, list[JsonObject]]:
        found: dict[str, list[JsonObject]] = {}
        for at, room_id, event in self.rows:
            if since <= at < upto:
                found.setdefault(room_id, []).append(event)
        return found

    async def of_rooms(self, user_id: str, room_ids: Iterable[str]) -> dict[str, list[JsonObject]]:
        wanted = set(room_ids)
        found: dict[str, list[JsonObject]] = {}
        for _, room_id, event in self.rows:
            if room_id in wanted:
                found.setdefault(room_id, []).append(event)
        return found


async def nobody_is_refused(user_id: str, sender: str) -> bool:
    return False


class World:
    """Everything between the database and a client, without HTTP."""

    def __init__(self, db: Database, clock: Callable[[], int] = now) -> None:
        self.db = db
        self.clock = clock
        self.notifier = Notifier(lambda: self.journal.positions())
        answers = LpduAnswers()
        self.turns = Turns(db, key_of(HUB), Audience(self.notifier), answers, clock)
        own = OwnLpdus(db, key_of(HUB), answers, lambda destinations: None, clock)
        self.engine = RoomEngine(
            self.turns, own, GapFiller(db, self.turns, NoHistory(), EvidenceLog(db, clock), clock)
        )
        self.reading = Reading(db, clock)
        self.backfill = Backfill(db, HUB, NoHistory(), StaticVerifier(), EvidenceLog(db, clock), clock)
        self.typing = Typing(self.notifier.nudge)
        self.devices = FakeDevices()
        self.account_data = FakeAccountData()
        self.feeds = Feeds(db, self.devices, self.account_data, NobodyOnline())
        self.push_rules = PushRules(db, self.notifier.publish)
        self.restart()

    def restart(self) -> None:
        """Forget what /sync keeps in memory."""
        self.journal = Journal(self.db)
        self.unread = Unread(self.db, self.journal, self.engine, self.push_rules.compiled)
        self.service = SyncService(
            self.db,
            self.journal,
            self.notifier,
            self.reading,
            self.typing,
            self.feeds,
            nobody_is_refused,
            self.unread,
            self.clock,
        )

    def receipts(self, markers: Markers) -> Receipts:
        return Receipts(
            self.db, self.reading, markers, self.notifier.publish, NobodyElse(), lambda _: None, self.clock
        )

    # -- playing --------------------------------------------------------------------------------

    async def create(
        self, room_id: str = ROOM, *, join_rule: str = "public", visibility: str | None = None
    ) -> None:
        events = opening(room_id=room_id, join_rule=join_rule)
        if visibility is not None:
            events.append(visibility_event(visibility, room_id))
        await self.engine.create(LM_02, events)

    async def send(self, event: Any, txn: ClientTxn | None = None) -> str:
        outcome: Outcome
        if event.server == HUB:
            [outcome] = await self.engine.send([event], txn)
        else:
            [outcome] = await self.engine.accept_lpdus(event.room_id, [lpdu(event)])
        assert isinstance(outcome, Accepted), outcome
        return outcome.event_id

    async def say(self, *texts: str, sender: str = ALICE, room_id: str = ROOM) -> list[str]:
        return [await self.send(message(text, sender=sender, room_id=room_id)) for text in texts]

    async def member(self, membership: str, user: str, *, by: str | None = None, room_id: str = ROOM) -> str:
        return await self.send(member(membership, sender=by or user, target=user, room_id=room_id))

    async def state(
        self, type_: str, content: JsonObject, *, key: str = "", sender: str = ALICE, room_id: str = ROOM
    ) -> str:
        return await self.send(draft(type_, content, sender=sender, state_key=key, room_id=room_id))

    async def set_visibility(self, value: str, room_id: str = ROOM) -> str:
        return await self.send(visibility_event(value, room_id))

    # -- looking --------------------------------------------------------------------------------

    async def access(self, user: str, room_id: str = ROOM) -> Access:
        found = await self.reading.access(user, room_id)
        assert found is not None
        return found

    async def sync(
        self,
        user: str,
        since: str | None = None,
        *,
        device: str = "D",
        filter_: JsonObject | None = None,
        timeout: float = 0,
        full_state: bool = False,
        state_after: tuple[str, ...] = (),
    ) -> JsonObject:
        """The answer as it goes out, once all that was committed can be read."""
        await self.settle()
        return await self.sync_now(
            SyncRequest(
                user,
                device,
                None if since is None else parse_sync(since),
                SyncFilter() if filter_ is None else parse_sync_filter(filter_),
                timeout,
                full_state,
                state_after,
            )
        )

    async def sync_now(self, request: SyncRequest) -> JsonObject:
        """The answer as it goes out."""
        answer: JsonObject = orjson.loads(orjson.dumps(await self.service.sync(request)))
        return answer

    async def settle(self) -> None:
        """Until all that was committed can be read: another test's transaction may be open."""
        _, upcoming = await room_reads.stream_positions(self.db)
        while (await room_reads.stream_positions(self.db))[0] < upcoming:
            await asyncio.sleep(0.002)

    async def visible_texts(self, user: str, room_id: str = ROOM) -> list[str]:
        """Message texts /messages would show, oldest first."""
        access = await self.access(user, room_id)
        page = await self.reading.backwards(access, access.room.head_position, 1000, lambda e: True)
        return [e.content["body"] for e in reversed(page.events) if "body" in e.content]

    def reader(self, user: str, device: str = "D") -> Reader:
        return Reader(user, device)

    async def close(self) -> None:
        self.typing.close()
        await self.notifier.close()
        await self.engine.close()


def visibility_event(value: str, room_id: str = ROOM) -> Any:
    return draft("m.room.history_visibility", {"history_visibility": value}, state_key="", room_id=room_id)


def texts(section: JsonObject) -> list[str]:
    """Message texts of a /sync room section's timeline."""
    return [e["content"]["body"] for e in section["timeline"]["events"] if "body" in e["content"]]
