"""What is known of a server's keys, and what follows from it for an event: pure, without fetching.

Kept apart from the keyring so that the decision "is this key good at that time" stands in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lmserver.protocol.errors import InvalidIdentifier, ProtocolError
from lmserver.protocol.events import Lpdu, Pdu
from lmserver.protocol.ids import check_key_id
from lmserver.protocol.signatures import KeySet, VerifyKey, check_event_signatures, required_signers

MAX_SIGNATURES = 8


@dataclass(frozen=True, slots=True)
class Key:
    """`valid_until_ts` is the server's own word, `told_until` a notary's: good for events only."""

    key: VerifyKey
    valid_until_ts: int
    expired_ts: int | None
    told_until: int = 0

    def usable(self, at_ts: int) -> bool:
        if self.expired_ts is not None:
            return at_ts <= self.expired_ts
        return at_ts <= max(self.valid_until_ts, self.told_until)


@dataclass(slots=True)
class Known:
    """What we know of one server; `linearized` is None when it was never asked with success.

    `half_life` is when half of the time that its document is good for is over, `next_fetch` when it
    may be asked again, `next_notary` when notaries may be asked about it.
    """

    keys: Mapping[str, Key] = field(default_factory=dict)
    linearized: bool | None = None
    half_life: int = 0
    next_fetch: int = 0
    failures: int = 0
    next_notary: int = 0
    notary_failures: int = 0

    def current(self, key_id: str, now: int) -> bool:
        key = self.keys.get(key_id)
        return key is not None and key.expired_ts is None and now <= key.valid_until_ts

    def serves(self, now: int, until: int) -> bool:
        """Good enough for a notary: young, and valid as long as is asked for (D04 §Validity)."""
        return now < self.half_life and self.any_current(max(now, until))

    def any_current(self, now: int) -> bool:
        return any(self.current(key_id, now) for key_id in self.keys)

    def lacks(self, key_ids: Sequence[str], at_ts: int) -> bool:
        """No usable key, and the server could still tell us of one."""
        known = [self.keys.get(key_id) for key_id in key_ids]
        if any(key is not None and key.usable(at_ts) for key in known):
            return False
        return any(key is None or key.expired_ts is None for key in known)


@dataclass(frozen=True, slots=True)
class Need:
    """The signature keys that one event names of one server that has to sign it."""

    server: str
    key_ids: tuple[str, ...]
    at_ts: int


def grammatical(key_ids: Iterable[str]) -> tuple[str, ...]:
    """The Ed25519 key IDs among what somebody else wrote."""
    good = []
    for key_id in key_ids:
        try:
            if check_key_id(key_id).startswith("ed25519:"):
                good.append(key_id)
        except InvalidIdentifier:
            continue
    return tuple(good)


def needs_of(event: Lpdu | Pdu, at_ts: int) -> list[Need]:
    """The sender's keys are judged at `at_ts`. The hub's are not when it is another server: the event
    has only its sender's time, and one that is ahead of the hub's must not make the room unverifiable
    once the hub's key has expired. A hub's old key is of use to nobody else: events come from the hub
    alone, with a request or over a connection that its current keys prove (attack K5)."""
    signatures = event.fields.get("signatures")
    needs = []
    for server in required_signers(event):
        of_server = signatures.get(server) if isinstance(signatures, dict) else None
        named = grammatical(of_server) if isinstance(of_server, dict) else ()
        needs.append(Need(server, named, at_ts if server == event.server else 0))
    return needs


def usable(known: Known, key_ids: Sequence[str], at_ts: int) -> dict[str, VerifyKey]:
    found = ((key_id, known.keys.get(key_id)) for key_id in key_ids)
    good = [(key_id, key.key) for key_id, key in found if key is not None and key.usable(at_ts)]
    return dict(good[:MAX_SIGNATURES])


def key_set(needs: Iterable[Need], known: Mapping[str, Known]) -> KeySet:
    return {need.server: usable(known[need.server], need.key_ids, need.at_ts) for need in needs}


def misses_any(known: Known, key_ids: Sequence[str], _at_ts: int) -> bool:
    return any(key_id not in known.keys for key_id in key_ids)


def unknown_ids(needs: Iterable[Need], known: Mapping[str, Known]) -> bool:
    """Some key was usable, others were never seen: then the first look did not ask for those."""
    return any(
        misses_any(known[n.server], n.key_ids, n.at_ts) and usable(known[n.server], n.key_ids, n.at_ts)
        for n in needs
    )


def unavailable(needs: Iterable[Need], known: Mapping[str, Known]) -> bool:
    """The event failed only because a server that might have helped did not answer."""
    return any(
        known[n.server].failures > 0
        and n.key_ids
        and (known[n.server].lacks(n.key_ids, n.at_ts) or misses_any(known[n.server], n.key_ids, n.at_ts))
        for n in needs
    )


def check_all(work: Sequence[tuple[Lpdu | Pdu, KeySet]]) -> list[ProtocolError | None]:
    return [_check(event, keys) for event, keys in work]


def _check(event: Lpdu | Pdu, keys: KeySet) -> ProtocolError | None:
    try:
        check_event_signatures(event, keys)
    except ProtocolError as error:
        return error
    return None
