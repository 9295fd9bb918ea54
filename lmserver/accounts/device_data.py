"""Encryption keys of devices and messages between them; the content is opaque to us."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from lmserver.accounts import published_keys
from lmserver.accounts.device_lists import DeviceLists, Dropped, Reach, Tell
from lmserver.protocol import edus, ids
from lmserver.storage import cross_signing, e2e_keys, outbound, to_device
from lmserver.storage.database import Connection, Database
from lmserver.storage.e2e_keys import Claim, Claimed
from lmserver.storage.outbound import NewEdu
from lmserver.storage.to_device import RemoteMessage
from lmserver.storage.together import Together
from lmserver.web.limits import RateLimiter

MAX_MESSAGES = 100
MAX_ONE_TIME_KEYS = 500
"""Of one upload."""
MAX_STORED_KEYS = 1_000
"""One-time keys of one device."""
CLAIMS = "federation_claims"
KIND = "to_device"
DROPPED = "org.lmserver.dropped"


class KeyConflict(Exception):
    """A one-time key was uploaded again under its ID with another value."""


class TooManyKeys(Exception):
    """The device keeps more one-time keys here than anybody could use."""


class DeviceStore:
    """Keys of local users, and to-device messages to and from them."""

    def __init__(
        self,
        db: Database,
        our_name: str,
        device_lists: DeviceLists,
        publish: Tell,
        wake: Tell,
        dropped: Dropped,
        limiter: RateLimiter,
        clock: Callable[[], int],
    ) -> None:
        self._limiter = limiter
        self._db = db
        self._our_name = our_name
        self._device_lists = device_lists
        self._publish = publish
        self._wake = wake
        self._dropped = dropped
        self._clock = clock
        self._key_counts = Together(partial(e2e_keys.key_counts, db))

    # -- keys -----------------------------------------------------------------------------------

    async def upload(
        self,
        user_id: str,
        device_id: str,
        device_keys: dict[str, Any] | None,
        one_time_keys: Mapping[str, Any],
        fallback_keys: Mapping[str, Any],
    ) -> dict[str, int]:
        """Store what a device publishes and return how many one-time keys it has; the shapes have
        been checked. Raises KeyConflict, TooManyKeys."""

        async def work(db: Connection) -> Reach | None:
            return await self.store(db, user_id, device_id, device_keys, one_time_keys, fallback_keys)

        self._device_lists.tell(await self._db.run(work))
        return await e2e_keys.one_time_key_counts(self._db, user_id, device_id)

    async def store(
        self,
        db: Connection,
        user_id: str,
        device_id: str,
        device_keys: dict[str, Any] | None,
        one_time_keys: Mapping[str, Any],
        fallback_keys: Mapping[str, Any],
    ) -> Reach | None:
        """The same inside the caller's transaction: whom the change concerns."""
        reach = None
        if device_keys is not None:
            reach = await self._store_device_keys(db, user_id, device_id, device_keys)
        keys = [(key_id, key_id.split(":")[0], _sorted(key)) for key_id, key in one_time_keys.items()]
        if keys:
            await e2e_keys.add_one_time_keys(db, user_id, device_id, keys)
            stored = await e2e_keys.one_time_keys(db, user_id, device_id, [k for k, _, _ in keys])
            if any(stored.get(key_id, key) != key for key_id, _, key in keys):
                raise KeyConflict
            if sum((await e2e_keys.one_time_key_counts(db, user_id, device_id)).values()) > MAX_STORED_KEYS:
                raise TooManyKeys
        for key_id, key in fallback_keys.items():
            algorithm = key_id.split(":")[0]
            await e2e_keys.put_fallback_key(db, user_id, device_id, algorithm, key_id, orjson.dumps(key))
        return reach

    async def _store_device_keys(
        self, db: Connection, user_id: str, device_id: str, keys: dict[str, Any]
    ) -> Reach | None:
        """Other keys of the same device ID are another device: nothing of the old one fits it."""
        found = (await e2e_keys.device_keys(db, {user_id: [device_id]})).get(user_id, {}).get(device_id)
        if not await e2e_keys.put_device_keys(db, user_id, device_id, _sorted(keys)):
            return None
        if found is not None and orjson.loads(found[0]).get("keys") != keys["keys"]:
            await e2e_keys.drop_keys_of(db, user_id, device_id)
        await cross_signing.remove_signatures_on(db, user_id, [device_id])
        return await self._device_lists.record(db, user_id, changed=[keys])

    async def query(
        self, wanted: Mapping[str, Sequence[str]], *, names: bool = True
    ) -> dict[str, dict[str, Any]]:
        """User ID to device ID to device keys, of all devices where none is named; with `names` the
        display name under `unsigned`. Every user is in the answer."""
        return await published_keys.devices(self._db, wanted, names=names)

    async def cross_signing(
        self, user_ids: Iterable[str], asking: str | None
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Usage to user ID to key, as the asking user may see them; None is another server."""
        return await published_keys.cross_signing_keys(self._db, user_ids, asking)

    async def add_own_signatures(self, asking: str, masters: dict[str, Any]) -> None:
        """To master keys of users elsewhere what the asking user signed of them."""
        await published_keys.add_master_signatures(self._db, masters, asking)

    async def claim(self, claimant: str, claims: Sequence[Claim]) -> dict[str, dict[str, Any]]:
        """User ID to device ID to one key, never handed out again; a fallback key, which may be, where
        no other is left.

        A server or local user that claims one device's keys over and over gets its fallback key
        instead, so that nobody can take them all (attack R10).
        """
        spare = {c for c in claims if self._limiter.take(CLAIMS, f"{claimant} {c.user_id} {c.device_id}")}

        async def work(db: Connection) -> tuple[Claimed, Claimed]:
            taken = await e2e_keys.claim(db, [c for c in claims if c not in spare])
            rest = [c for c in claims if (c.user_id, c.device_id) not in taken]
            return taken, await e2e_keys.use_fallback(db, rest) if rest else {}

        taken, fallback = await self._db.run(work)
        answer: dict[str, dict[str, Any]] = {}
        for (user_id, device_id), (key_id, key) in [*taken.items(), *fallback.items()]:
            answer.setdefault(user_id, {})[device_id] = {key_id: orjson.loads(key)}
        self._publish(answer)
        return answer

    # -- messages -------------------------------------------------------------------------------

    async def send(
        self, sender: str, device_id: str, txn_id: str, type_: str, messages: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Queue messages for devices here and elsewhere, once for each transaction ID, all or nothing;
        "*" is every device. Messages have a canonical form, as the caller has checked."""
        here: list[tuple[str, str, bytes]] = []
        away: list[NewEdu] = []
        for user_id, target, content in _each(messages):
            server = ids.server_of(user_id)
            if server == self._our_name:
                data = orjson.dumps({"type": type_, "sender": sender, "content": content})
                here.append((user_id, target, data))
            else:
                message_id = edus.message_id(sender, device_id, txn_id, user_id, target)
                edu = edus.to_device(sender, user_id, target, type_, content, message_id)
                away.append(NewEdu(server, KIND, edu))

        async def work(db: Connection) -> tuple[set[tuple[str, str]], int, int] | None:
            if not await to_device.first_time(db, sender, device_id, txn_id, self._clock()):
                return None
            queued = await to_device.queue(db, here) if here else set()
            inbox = await to_device.trim(db, queued, _marker) if queued else 0
            return queued, inbox, await outbound.queue_edus(db, away, self._clock()) if away else 0

        sent = await self._db.run(work)
        if sent is not None:
            queued, inbox, outbox = sent
            self._note_dropped(inbox, outbox)
            self._publish({user for user, _ in queued})
            self._wake({edu.destination for edu in away})

    async def receive(self, origin: str, messages: Sequence[RemoteMessage]) -> None:
        """Messages of another server's users, in order; those that came before change nothing."""

        async def work(db: Connection) -> tuple[set[tuple[str, str]], int]:
            queued = await to_device.receive(db, origin, messages, self._clock())
            if not queued:
                return queued, 0
            await to_device.forget_received(db, origin)
            return queued, await to_device.trim(db, queued, _marker)

        queued, dropped = await self._db.run(work)
        self._note_dropped(dropped, 0)
        self._publish({user for user, _ in queued})

    def _note_dropped(self, inbox: int, outbox: int) -> None:
        self._dropped("inbox", inbox)
        self._dropped(KIND, outbox)

    # -- for /sync ------------------------------------------------------------------------------

    async def messages(
        self, user_id: str, device_id: str, since: int, upto: int, most: int = MAX_MESSAGES
    ) -> tuple[list[dict[str, Any]], int]:
        """Messages in [since, upto), about as many as wanted, and how far they go; those before `since`
        are deleted."""
        if since > 0:
            await to_device.acknowledge(self._db, user_id, device_id, since)
        return await self.waiting(user_id, device_id, since, upto, most)

    async def waiting(
        self, user_id: str, device_id: str, since: int, upto: int, most: int = MAX_MESSAGES
    ) -> tuple[list[dict[str, Any]], int]:
        """The same, and nothing is deleted."""
        found = await to_device.pending(self._db, user_id, device_id, since, upto, most + 1)
        if len(found) > most:
            # Whole transactions only: the answer ends before the one that did not fit.
            last = found[most].stream_xid
            fitting = [m for m in found if m.stream_xid < last]
            if fitting:
                found, upto = fitting, last
            else:
                first = found[0].stream_xid
                upto = first + 1
                limit = to_device.MAX_QUEUED
                found = await to_device.pending(self._db, user_id, device_id, first, upto, limit)
        return [orjson.loads(m.message) for m in found], upto

    async def key_counts(self, user_id: str, device_id: str) -> tuple[dict[str, int], list[str]]:
        """One-time keys left by algorithm, and algorithms with an unused fallback key."""
        counts = await self._key_counts.answer((user_id, device_id))
        return counts.one_time, counts.fallback

    async def list_number(self, user_id: str) -> int:
        """How many changes of the user's devices other servers were told of."""
        return await e2e_keys.device_list_number(self._db, user_id)

    async def changed_users(self, user_id: str, since: int, upto: int) -> set[str]:
        return await e2e_keys.changed_users(self._db, user_id, since, upto)


def _marker(user_id: str) -> bytes:
    """What a device finds where messages for it were dropped (attack R9); no specification has a word
    for it. It comes from the user's own server, and so in the user's name."""
    return orjson.dumps({"type": DROPPED, "sender": user_id, "content": {}})


def _sorted(value: Any) -> bytes:
    """The same bytes for the same value, by which it is known again."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _each(messages: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for user_id, by_device in messages.items():
        for target, content in by_device.items():
            yield user_id, target, content
