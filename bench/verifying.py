"""Signature checks: what one costs on this machine, and what a second thread adds."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from lmserver.federation_client.keyring import VERIFY_THREADS, chunk_size
from lmserver.federation_client.known_keys import check_all
from lmserver.protocol import canonical_json
from lmserver.protocol.events import EventDraft, Lpdu, parse_lpdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import KeySet, SigningKey

EVENTS = 2_000
TRANSACTION = 50
ROUNDS = 9


@dataclass(frozen=True)
class Verifying:
    """Events a second on one and on all threads (each event redacted, encoded and checked once), the
    same for transactions of 50 one after the other, and microseconds of one bare Ed25519 verification.

    The ratios are those of each round: one half of it runs right after the other, while the machine's
    speed may differ by half from round to round."""

    one_thread: list[float]
    threads: list[float]
    transactions_one_thread: list[float]
    transactions: list[float]
    verify_us: list[float]

    @property
    def ratios(self) -> list[float]:
        return [two / one for two, one in zip(self.threads, self.one_thread, strict=True)]

    @property
    def transaction_ratios(self) -> list[float]:
        rounds = zip(self.transactions, self.transactions_one_thread, strict=True)
        return [two / one for two, one in rounds]


def measure() -> Verifying:
    key = SigningKey.from_seed("p.test", "ed25519:b1", secrets.token_bytes(32))
    keys: KeySet = {"p.test": {key.key_id: key.verify_key}}
    stored = [_event(number, key) for number in range(EVENTS)]
    found = Verifying([], [], [], [], [])
    for _ in range(ROUNDS):
        found.one_thread.append(_rate(stored, keys, 1, EVENTS))
        found.threads.append(_rate(stored, keys, VERIFY_THREADS, EVENTS))
        found.transactions_one_thread.append(_rate(stored, keys, 1, TRANSACTION))
        found.transactions.append(_rate(stored, keys, VERIFY_THREADS, TRANSACTION))
        found.verify_us.append(_bare(key))
    return found


def _event(number: int, key: SigningKey) -> bytes:
    user = f"@u{number}:p.test"
    content = {"membership": "join", "displayname": f"Member {number}"}
    draft = EventDraft("!r:h.test", "m.room.member", user, content, 1_700_000_000_000 + number, user)
    return build_lpdu(draft, LM_02, "h.test", key).canonical


def _rate(stored: list[bytes], keys: KeySet, threads: int, batch: int) -> float:
    """Batches of so many events, one after the other, each shared between the threads as by the keyring."""
    work: list[tuple[Lpdu, KeySet]] = [
        (parse_lpdu(canonical_json.parse_object(data), LM_02), keys) for data in stored
    ]
    wrong = 0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(abs, range(threads * 4)))
        started = time.perf_counter()
        for at in range(0, len(work), batch):
            events = work[at : at + batch]
            size = chunk_size(len(events))
            chunks = [events[i : i + size] for i in range(0, len(events), size)]
            wrong += sum(error is not None for done in pool.map(check_all, chunks) for error in done)
        seconds = time.perf_counter() - started
    if wrong:
        raise RuntimeError(f"{wrong} good signatures were refused")
    return len(work) / seconds


def _bare(key: SigningKey) -> float:
    message = secrets.token_bytes(300)
    signature = key.sign(message)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        key.verify_key.verify(message, signature)
        times.append((time.perf_counter() - started) * 1e6)
    return median(times)
