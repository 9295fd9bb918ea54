"""Proof from the stored bytes: every hash, signature, event ID, link and state entry of a room.

Nothing in memory and nothing derived is trusted: the bytes are parsed again, everything that
follows from them is computed again, and the columns that repeat it are compared. The first thing
wrong in each room is named with its position.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from lmserver.protocol import canonical_json, hashes, hub
from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import Pdu, parse_pdu
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import RoomVersion, room_version
from lmserver.protocol.room_view import RoomView, StateKey
from lmserver.protocol.signatures import VerifyKey, check_event_signatures, required_signers
from lmserver.storage import room_log, room_state, server_keys
from lmserver.storage.database import Executor
from lmserver.storage.history import UNVERIFIED
from lmserver.storage.room_log import IndexedEvent, RoomRow
from lmserver.storage.room_state import NewState

PAGE = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: `position` is None for an event without a place in the list."""

    room_id: str
    position: int | None
    event_id: str
    what: str

    def __str__(self) -> str:
        where = "outside the list" if self.position is None else f"at position {self.position}"
        return f"{self.room_id} {where} ({self.event_id}): {self.what}"


class Broken(Exception):
    """One event or state entry is not what it should be."""


@dataclass(slots=True)
class RoomReport:
    """What was checked in a room, and what was wrong."""

    room_id: str
    events: int = 0
    state_entries: int = 0
    problems: list[Problem] = field(default_factory=list)


class Verification:
    """Checks rooms of one database; keys come from what was stored when the events arrived."""

    def __init__(self, db: Executor, our_name: str, our_keys: Mapping[str, VerifyKey]) -> None:
        self.db = db
        self.our_name = our_name
        self._keys: dict[str, Mapping[str, VerifyKey]] = {our_name: our_keys}

    def trust(self, server: str, keys: Mapping[str, VerifyKey]) -> None:
        """Use these keys for a server instead of the stored ones."""
        self._keys[server] = keys

    async def rooms(self, progress: Callable[[str], None]) -> AsyncIterator[RoomReport]:
        """One report for each room, in the order of their IDs."""
        room_ids = await room_log.room_ids(self.db)
        for number, room_id in enumerate(room_ids, 1):
            report = await self.room(room_id)
            progress(f"{number}/{len(room_ids)} {room_id}: {report.events} events")
            yield report

    async def room(self, room_id: str) -> RoomReport:
        """Check one room from its stored bytes."""
        report = RoomReport(room_id)
        row = await room_log.room(self.db, room_id)
        if row is None:
            return report
        try:
            version = room_version(row.room_version)
        except ProtocolError as error:
            report.problems.append(Problem(room_id, None, row.create_event_id, str(error)))
            return report
        state = await room_state.all_entries(self.db, room_id)
        await _Replay(self, report, row, version, state).run()
        return report

    async def check_event(self, stored: IndexedEvent, version: RoomVersion, room_id: str) -> Pdu:
        """Bytes to event: canonical, schema, ID, columns, hashes, signatures. Raises Broken."""
        try:
            fields = canonical_json.parse_object(stored.pdu)
            if canonical_json.encode(fields) != stored.pdu:
                raise Broken("the stored bytes are not canonical")
            pdu = parse_pdu(fields, version)
        except ProtocolError as error:
            raise Broken(f"the stored bytes are not an event: {error}") from error
        if pdu.event_id != stored.event_id:
            raise Broken(f"the event ID of the stored bytes is {pdu.event_id}")
        _compare_columns(pdu, stored, room_id)
        if not hashes.check_hashes(pdu) and pdu.fields != redact(pdu.fields, version):
            raise Broken("a content hash is wrong and the event is not its redacted copy")
        if stored.soft_failed == UNVERIFIED:
            return pdu
        try:
            check_event_signatures(pdu, {s: await self._keys_of(s) for s in required_signers(pdu)})
        except ProtocolError as error:
            raise Broken(str(error)) from error
        return pdu

    async def _keys_of(self, server: str) -> Mapping[str, VerifyKey]:
        if server not in self._keys:
            stored = await server_keys.keys(self.db, server)
            self._keys[server] = {k.key_id: VerifyKey(k.key) for k in stored}
        return self._keys[server]


def _compare_columns(pdu: Pdu, stored: IndexedEvent, room_id: str) -> None:
    same = (
        pdu.room_id == room_id
        and pdu.type == stored.type
        and pdu.state_key == stored.state_key
        and pdu.sender == stored.sender
        and stored.lpdu_hash in (pdu.lpdu_hash, None)
    )
    if not same:
        raise Broken("the columns of the row differ from the event")
    if stored.lpdu_hash != pdu.lpdu_hash and stored.soft_failed is None and stored.position is not None:
        raise Broken("the LPDU hash is missing from the row")


class _Replay:
    """One room's list from its first event to its head, and its state beside it."""

    def __init__(
        self,
        verification: Verification,
        report: RoomReport,
        row: RoomRow,
        version: RoomVersion,
        state: list[NewState],
    ) -> None:
        self._check = verification
        self._db = verification.db
        self._report = report
        self._row = row
        self._version = version
        self._entries = state
        self._by_position: dict[int, list[NewState]] = {}
        for entry in state:
            self._by_position.setdefault(entry.from_position, []).append(entry)
        self._events: dict[str, Pdu] = {}
        self._view: RoomView | None = None

    async def run(self) -> None:
        self._report.state_entries = len(self._entries)
        for stored in await room_log.outliers(self._db, self._row.room_id):
            await self._outlier(stored)
        await self._list()
        self._lives()

    def _problem(self, position: int | None, event_id: str, what: str) -> None:
        self._report.problems.append(Problem(self._row.room_id, position, event_id, what))

    async def _outlier(self, stored: IndexedEvent) -> None:
        self._report.events += 1
        try:
            self._events[stored.event_id] = await self._check.check_event(
                stored, self._version, self._row.room_id
            )
        except Broken as error:
            self._problem(None, stored.event_id, str(error))

    async def _list(self) -> None:
        position, event_id = self._row.min_position - 1, ""
        while page := await room_log.indexed_events(self._db, self._row.room_id, position, PAGE):
            for stored in page:
                await self._placed(stored, position, event_id)
                position, event_id = stored.position or 0, stored.event_id
        if (position, event_id) != (self._row.head_position, self._row.head_event_id):
            self._problem(self._row.head_position, self._row.head_event_id, "the head is not the last event")

    async def _placed(self, stored: IndexedEvent, before: int, before_id: str) -> None:
        """One event of the list: the event itself, its link, its rights, its state entry."""
        position = stored.position or 0
        self._report.events += 1
        try:
            pdu = await self._check.check_event(stored, self._version, self._row.room_id)
            if pdu.state_key is not None:
                self._events[stored.event_id] = pdu
            self._check_link(pdu, stored, before, before_id)
            self._apply(pdu, stored, position)
        except Broken as error:
            self._problem(position, stored.event_id, str(error))

    def _check_link(self, pdu: Pdu, stored: IndexedEvent, before: int, before_id: str) -> None:
        position = stored.position or 0
        if pdu.type == "m.room.create":
            if before_id or not (position == 0 or stored.backfilled):
                raise Broken("m.room.create is not the first event")
            return
        if stored.prev_event_id != pdu.prev_events[0] or len(pdu.prev_events) != 1:
            raise Broken("the row's predecessor is not the event's")
        if position == before + 1 and before_id and pdu.prev_events[0] != before_id:
            raise Broken("prev_events does not name the event before it")
        if position != before + 1 and not (stored.backfilled or self._is_join(position)):
            raise Broken(f"positions {before + 1} to {position - 1} are missing")

    def _is_join(self, position: int) -> bool:
        """A participant's list may begin anew where state came along with a join."""
        we_are_hub = self._row.hub_server == self._check.our_name
        return not we_are_hub and bool(self._by_position.get(position - 1))

    def _apply(self, pdu: Pdu, stored: IndexedEvent, position: int) -> None:
        if stored.backfilled:
            # History is placed by its links; what it was judged by then came later with our join.
            self._view = None
            if stored.soft_failed is None:
                self._expect_entry(pdu, position)
            return
        if pdu.type == "m.room.create":
            self._view = hub.view_of_create(pdu)
            self._expect_entry(pdu, position)
            return
        if self._view is None or self._view.head_position != position - 1:
            self._view = self._view_of_join(pdu, position)
        applies = stored.soft_failed is None
        if applies:
            try:
                authorize(pdu, self._view)
            except ProtocolError as error:
                raise Broken(f"the auth rules forbid the event: {error}") from error
            self._expect_entry(pdu, position)
        self._view = hub.advance(self._view, pdu, position=position, applies=applies)

    def _view_of_join(self, pdu: Pdu, position: int) -> RoomView:
        """The state a join brought along, as the entries that begin just before it say."""
        state: dict[StateKey, Pdu] = {}
        for entry in self._by_position.get(position - 1, []):
            event = self._events.get(entry.event_id)
            if event is not None:
                state[entry.type, entry.state_key] = event
        return RoomView(
            room_id=self._row.room_id,
            version=self._version,
            hub=self._row.hub_server,
            head_event_id=pdu.prev_events[0],
            head_position=position - 1,
            state={key: hub.state_event(event) for key, event in state.items()},
        )

    def _expect_entry(self, pdu: Pdu, position: int) -> None:
        if pdu.state_key is None:
            return
        for entry in self._by_position.get(position, []):
            if (entry.type, entry.state_key, entry.event_id) == (pdu.type, pdu.state_key, pdu.event_id):
                return
        raise Broken("the event's state entry is missing")

    def _lives(self) -> None:
        """Every entry belongs to a state event, and the lives of a key follow each other."""
        for entry, following in zip(self._entries, [*self._entries[1:], None], strict=True):
            pdu = self._events.get(entry.event_id)
            if pdu is None or (pdu.type, pdu.state_key) != (entry.type, entry.state_key):
                self._problem(entry.from_position, entry.event_id, "a state entry without its event")
                continue
            if entry.membership != pdu.membership:
                self._problem(entry.from_position, entry.event_id, "a state entry with another membership")
            same_key = following is not None and (following.type, following.state_key) == (
                entry.type,
                entry.state_key,
            )
            if same_key and following is not None and entry.to_position is None:
                self._problem(entry.from_position, entry.event_id, "a replaced state entry is still current")
            if entry.to_position is None:
                continue
            ended = following.from_position if same_key and following is not None else None
            if entry.to_position != ended and not self._by_position.get(entry.to_position):
                self._problem(entry.from_position, entry.event_id, "a state entry ends where nothing began")
