"""Signature checks: what one costs on this machine, and what a second thread adds."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from lmserver.federation_client.keyring import VERIFY_CHUNK, VERIFY_THREADS
from lmserver.federation_client.known_keys import check_all
from lmserver.protocol import canonical_json
from lmserver.protocol.events import EventDraft, Lpdu, parse_lpdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import KeySet, SigningKey

EVENTS = 2_000
ROUNDS = 5


@dataclass(frozen=True)
class Verifying:
    """Events a second on one and on all threads (each event redacted, encoded and checked once), and
    microseconds of one bare Ed25519 verification."""

    one_thread: list[float]
    threads: list[float]
    verify_us: list[float]


def measure() -> Verifying:
    key = SigningKey.from_seed("p.test", "ed25519:b1", secrets.token_bytes(32))
    keys: KeySet = {"p.test": {key.key_id: key.verify_key}}
    stored = [_event(number, key) for number in range(EVENTS)]
    found = Verifying([], [], [])
    for _ in range(ROUNDS):
        found.one_thread.append(_rate(stored, keys, 1))
        found.threads.append(_rate(stored, keys, VERIFY_THREADS))
        found.verify_us.append(_bare(key))
    return found


def _event(number: int, key: SigningKey) -> bytes:
    user = f"@u{number}:p.test"
    content = {"membership": "join", "displayname": f"Member {number}"}
    draft = EventDraft("!r:h.test", "m.room.member", user, content, 1_700_000_000_000 + number, user)
    return build_lpdu(draft, LM_02, "h.test", key).canonical


def _rate(stored: list[bytes], keys: KeySet, threads: int) -> float:
    work: list[tuple[Lpdu, KeySet]] = [
        (parse_lpdu(canonical_json.parse_object(data), LM_02), keys) for data in stored
    ]
    chunks = [work[i : i + VERIFY_CHUNK] for i in range(0, len(work), VERIFY_CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(abs, range(threads * 4)))
        started = time.perf_counter()
        wrong = [error for done in pool.map(check_all, chunks) for error in done if error is not None]
        seconds = time.perf_counter() - started
    if wrong:
        raise RuntimeError(f"a good signature was refused: {wrong[0]}")
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
