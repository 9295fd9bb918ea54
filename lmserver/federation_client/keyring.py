"""Which keys of which server count, for requests now and for events of any age (D04 §Validity).

Every key ID ever seen is kept with the bytes it was first seen with. A server is asked at most once a minute
and once at a time, whatever the number of events that name keys of it, and only for signatures that count.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from lmserver.config_notaries import Notary
from lmserver.federation_client.errors import FederationError, KeysUnavailable
from lmserver.federation_client.keys_fetch import (
    KeyDocument,
    Requests,
    fetch_document,
)
from lmserver.federation_client.known_keys import (
    Key,
    Known,
    Need,
    check_all,
    grammatical,
    key_set,
    misses_any,
    needs_of,
    unavailable,
    unknown_ids,
)
from lmserver.federation_client.notaries import Notaries
from lmserver.federation_client.single_flight import SingleFlight
from lmserver.own_keys import OldKey
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import Lpdu, Pdu
from lmserver.protocol.ids import is_server_name
from lmserver.protocol.signatures import SigningKey, VerifyKey
from lmserver.storage import key_conflicts, server_keys
from lmserver.storage.database import Connection, Database
from lmserver.storage.server_keys import KeyServer, StoredDocument, StoredKey

FETCH_INTERVAL = 60_000
MAX_BACKOFF = 3_600_000
MAX_SERVERS = 5_000
MAX_FETCHES = 50
MAX_NEW_FETCHES = 20
"""Fetches at once from servers that we never had keys of: they may be anything somebody made up."""
MAX_IN_LINE = 100
"""Fetches, begun or waiting, beyond which no request of a stranger adds one: it would be answered too late,
and made-up names would pile up without end."""
VERIFY_THREADS = 2
VERIFY_INLINE = 8
MIN_CHUNK, MAX_CHUNK = 16, 64
FOREVER = 2**53 - 1
BY_A_NOTARY = "(notary)"
"""Who told us bytes that the server itself has corrected since."""

log = structlog.get_logger(__name__)


def log_conflict(server: str, key_id: str) -> None:
    """The default alert: somebody published other bytes under a key ID that we know."""
    log.warning("server_key_conflict", server=server, key_id=key_id)


def chunk_size(events: int) -> int:
    """Events a thread checks at once: all threads get some of a transaction, none a crumb."""
    return max(MIN_CHUNK, min(MAX_CHUNK, -(-events // VERIFY_THREADS)))


class Keyring:
    """The keys of every server; `clock` is milliseconds since the epoch.

    `notaries` are believed about keys that their server does not tell us, for events only; there are
    none by default.
    `own_old_keys` are those we signed with once; like the signing key they change when it is rotated.
    """

    def __init__(
        self,
        db: Database,
        client: Requests,
        signing_key: SigningKey,
        clock: Callable[[], int],
        *,
        own_old_keys: Mapping[str, OldKey] | None = None,
        notaries: Sequence[Notary] = (),
        alert: Callable[[str, str], None] = log_conflict,
    ) -> None:
        self._db = db
        self._client = client
        self._clock = clock
        self._alert = alert
        self._own_key = signing_key
        self._own_name = signing_key.server_name
        self._notaries = Notaries(client, notaries, self._own_name)
        self._own_old_keys = {} if own_old_keys is None else own_old_keys
        self._cache: OrderedDict[str, Known] = OrderedDict()
        self._loads: SingleFlight[Known] = SingleFlight()
        self._fetches: SingleFlight[None] = SingleFlight()
        self._questions: SingleFlight[None] = SingleFlight()
        self._slots = asyncio.Semaphore(MAX_FETCHES)
        self._new_slots = asyncio.Semaphore(MAX_NEW_FETCHES)
        self._pool = ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify")

    async def close(self) -> None:
        """Stop what is being fetched and the verifying threads."""
        await self._questions.close()
        await self._fetches.close()
        await self._loads.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def keys_for_request(self, server: str, key_ids: Iterable[str]) -> Mapping[str, VerifyKey]:
        """Those of `key_ids` that the server lists as current (D04 §Request Authentication).

        Raises KeysUnavailable when one is not known and the server does not answer, or is not asked because
        too many are.
        """
        wanted = grammatical(key_ids)
        known = await self._ensure(
            server, lambda k: all(k.current(key_id, self._clock()) for key_id in wanted), in_line=MAX_IN_LINE
        )
        now = self._clock()
        if known.half_life <= now and now >= known.next_fetch:
            # Asked for early and in the background, a server whose keys end is not cut off by a short outage.
            self._fetches.begin(server, lambda: self._refresh(server))
        return {key_id: known.keys[key_id].key for key_id in wanted if known.current(key_id, now)}

    async def is_linearized(self, server: str) -> bool:
        """Whether the server's own document says m.linearized. Raises KeysUnavailable."""
        known = await self._ensure(server, lambda k: k.linearized is not None)
        return bool(known.linearized)

    async def known(self, server: str) -> Known:
        """What is known of a server without asking it. Raises KeysUnavailable for what is no name."""
        if server == self._own_name:
            return self._own()
        known = self._cache.get(server)
        if known is None:
            if not is_server_name(server):
                raise KeysUnavailable("not a server name")
            return await self._loads.run(server, lambda: self._load(server))
        self._cache.move_to_end(server)
        return known

    async def met(self, server: str) -> bool:
        """Whether the server has ever told us its keys. Raises KeysUnavailable for what is no name."""
        return (await self.known(server)).linearized is not None

    async def refresh(self, server: str) -> None:
        """Ask another server now, unless it was asked lately. Raises KeysUnavailable for what is no name."""
        if self._clock() >= (await self.known(server)).next_fetch:
            await self._fetches.run(server, lambda: self._refresh(server))

    async def verify_events(
        self, events: Sequence[Lpdu | Pdu], *, current_keys_only: bool = False
    ) -> list[ProtocolError | None]:
        """For each event None or why it is refused; KeysUnavailable means that it may be tried again.

        `current_keys_only` is for a hub taking new events: a key that has expired by now does not count.
        A time in the future is judged as now: nobody can have signed later than that.
        """
        now = self._clock()
        needs = [
            needs_of(event, now if current_keys_only else min(event.origin_server_ts, now))
            for event in events
        ]
        known = await self._gather(needs, Known.lacks)
        results = await self._verify(events, needs, known)
        retry = [i for i, error in enumerate(results) if error is not None and unknown_ids(needs[i], known)]
        if retry:
            # Another key that the event names may be the good one.
            known = await self._gather([needs[i] for i in retry], misses_any)
            again = await self._verify([events[i] for i in retry], [needs[i] for i in retry], known)
            for i, error in zip(retry, again, strict=True):
                results[i] = error
        return results

    async def _gather(
        self, needs: Sequence[Sequence[Need]], lacks: Callable[[Known, Sequence[str], int], bool]
    ) -> dict[str, Known]:
        """What is known of every server in `needs`, after one fetch of each that `lacks` something."""
        by_server: defaultdict[str, set[tuple[tuple[str, ...], int]]] = defaultdict(set)
        for need in (need for of_event in needs for need in of_event):
            by_server[need.server].add((need.key_ids, need.at_ts))

        async def one(server: str) -> Known:
            wants = by_server[server]
            try:
                return await self._ensure(
                    server, lambda k: not any(lacks(k, ids, at) for ids, at in wants), notaries=True
                )
            except KeysUnavailable:
                return self._cache.get(server) or Known(failures=1)

        found = await asyncio.gather(*(one(server) for server in by_server))
        return dict(zip(by_server, found, strict=True))

    async def _verify(
        self, events: Sequence[Lpdu | Pdu], needs: Sequence[Sequence[Need]], known: Mapping[str, Known]
    ) -> list[ProtocolError | None]:
        work = [(event, key_set(of_event, known)) for event, of_event in zip(events, needs, strict=True)]
        if len(work) < VERIFY_INLINE:
            results = check_all(work)
        else:
            loop = asyncio.get_running_loop()
            size = chunk_size(len(work))
            chunks = [work[i : i + size] for i in range(0, len(work), size)]
            done = await asyncio.gather(*(loop.run_in_executor(self._pool, check_all, c) for c in chunks))
            results = [result for chunk in done for result in chunk]
        for i, error in enumerate(results):
            if error is not None and unavailable(needs[i], known):
                results[i] = KeysUnavailable("keys of a signing server are not available")
        return results

    async def _ensure(
        self,
        server: str,
        good: Callable[[Known], bool],
        *,
        notaries: bool = False,
        in_line: int | None = None,
    ) -> Known:
        """What is known of a server, refreshed at most once if it is not `good`: by the server itself, unless
        we never met it and `in_line` others are being asked; then with `notaries` by those. Raises
        KeysUnavailable."""
        known = await self.known(server)
        if good(known):
            return known
        if self._clock() >= known.next_fetch:
            if in_line is not None and known.linearized is None and len(self._fetches) >= in_line:
                raise KeysUnavailable("too many servers are being asked for their keys")
            await self._fetches.run(server, lambda: self._refresh(server))
            known = self._cache.get(server, known)
        if notaries and not good(known) and self._clock() >= known.next_notary:
            await self._questions.run(server, lambda: self._ask_notaries(server))
            known = self._cache.get(server, known)
        if not good(known) and known.failures:
            raise KeysUnavailable("keys of the server are not available")
        return known

    async def _load(self, server: str) -> Known:
        """What earlier runs and other processes stored; a name that is new takes no place of others."""
        info = await server_keys.server(self._db, server)
        stored = await server_keys.keys(self._db, server)
        valid_until = max((k.valid_until_ts for k in stored if k.expired_ts is None), default=0)
        known = Known(
            {k.key_id: Key(VerifyKey(k.key), k.valid_until_ts, k.expired_ts, k.told_until) for k in stored},
            info.linearized if info else None,
            (info.fetched_ts + valid_until) // 2 if info else 0,
            min(info.fetched_ts, self._clock()) + FETCH_INTERVAL if info else 0,
        )
        if info is not None or stored:
            self._remember(server, known)
        return known

    def _remember(self, server: str, known: Known) -> None:
        self._cache[server] = known
        self._cache.move_to_end(server)
        if len(self._cache) > MAX_SERVERS:
            self._cache.popitem(last=False)

    def _own(self) -> Known:
        keys = {i: Key(old.key, old.expired_ts, old.expired_ts) for i, old in self._own_old_keys.items()}
        keys[self._own_key.key_id] = Key(self._own_key.verify_key, FOREVER, None)
        return Known(keys, True, half_life=FOREVER, next_fetch=FOREVER, next_notary=FOREVER)

    async def _refresh(self, server: str) -> None:
        """Fetch and store; afterwards the cache says how it went."""
        before = self._cache.get(server, Known())
        document = await self._fetch(server)
        if document is not None:
            await self._store(document)
        known = await self._load(server)
        known.next_notary, known.notary_failures = before.next_notary, before.notary_failures
        if document is None:
            known.failures = before.failures + 1
            known.next_fetch = self._clock() + _backoff(before.failures)
        self._remember(server, known)

    async def _fetch(self, server: str) -> KeyDocument | None:
        async with self._slots if await self.met(server) else self._new_slots:
            try:
                return await fetch_document(self._client, server, self._clock())
            except (FederationError, ProtocolError) as error:
                detail = error.detail if isinstance(error, FederationError) else ""
                log.info("server_keys_not_fetched", server=server, reason=str(error), detail=detail)
                return None

    async def _store(self, document: KeyDocument) -> None:
        now = self._clock()
        server = document.server
        found = [StoredKey(i, k.key_bytes, document.valid_until_ts, None) for i, k in document.keys.items()]
        found += [StoredKey(i, k.key_bytes, ts, ts) for i, (k, ts) in document.old_keys.items()]

        async def work(connection: Connection) -> list[str]:
            conflicts, kept = await _put_keys(connection, server, found, server, now)
            await server_keys.end_unlisted(connection, server, kept, now - 1)
            await server_keys.store_server(connection, KeyServer(server, document.linearized, now))
            stored = StoredDocument(server, document.key_set, document.canonical, document.valid_until_ts)
            await server_keys.store_document(connection, stored, now)
            return conflicts

        for key_id in await self._db.run(work):
            self._alert(server, key_id)

    async def _ask_notaries(self, server: str) -> None:
        """What notaries tell counts for events, never for requests; for the past alone while the server
        itself answers, and never against what it said itself."""
        before = self._cache.get(server, Known())
        now = self._clock()
        told = await self._notaries.told(server, now, self._current_keys)
        for notary, document in told:
            until = document.valid_until_ts if before.failures else min(document.valid_until_ts, now - 1)
            found = [StoredKey(i, k.key_bytes, 0, None, False, until) for i, k in document.keys.items()]
            found += [StoredKey(i, k.key_bytes, 0, ts, False) for i, (k, ts) in document.old_keys.items()]
            conflicts, _ = await self._db.run(
                partial(_put_keys, server=server, found=found, told_by=notary, now=now)
            )
            for key_id in conflicts:
                self._alert(server, key_id)
        known = await self._load(server)
        known.failures, known.next_fetch = before.failures, before.next_fetch
        known.notary_failures = 0 if told else before.notary_failures + 1
        known.next_notary = self._clock() + _backoff(before.notary_failures)
        self._remember(server, known)

    async def _current_keys(self, server: str) -> Mapping[str, VerifyKey]:
        known = await self._ensure(server, lambda k: k.any_current(self._clock()))
        return {i: key.key for i, key in known.keys.items() if known.current(i, self._clock())}


def _backoff(failures: int) -> int:
    return min(FETCH_INTERVAL << min(failures, 10), MAX_BACKOFF)


async def _put_keys(
    db: Connection, server: str, found: Sequence[StoredKey], told_by: str, now: int
) -> tuple[list[str], list[str]]:
    """Store keys; the key IDs that are told with other bytes for the first time, and those now in use."""
    before = {k.key_id: k.key for k in await server_keys.keys(db, server)}
    await server_keys.store_keys(db, server, found, now)
    after = {k.key_id: k.key for k in await server_keys.keys(db, server)}
    refused = [(k.key_id, k.key) for k in found if after.get(k.key_id, k.key) != k.key]
    replaced = [(key_id, key) for key_id, key in before.items() if after[key_id] != key]
    new = await key_conflicts.add(db, server, refused, told_by, now) if refused else []
    new += await key_conflicts.add(db, server, replaced, BY_A_NOTARY, now) if replaced else []
    return new, [k.key_id for k in found if after.get(k.key_id) == k.key]
