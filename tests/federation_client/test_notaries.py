"""Keys of a server that is away, told by the notaries of the configuration (attack K1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lmserver.config_notaries import Notary, read_notaries
from lmserver.federation_client.errors import KeysUnavailable
from lmserver.federation_client.keyring import BY_A_NOTARY, FETCH_INTERVAL, MAX_BACKOFF, Keyring
from lmserver.federation_client.keys_fetch import MAX_TRUST
from lmserver.protocol.errors import SignatureError
from lmserver.protocol.signatures import SigningKey, sign_json
from lmserver.storage import key_conflicts
from lmserver.storage.database import Database
from tests.kit.key_documents import (
    HOUR,
    NOW,
    OURS,
    PEER,
    SECOND,
    Millis,
    Peers,
    document,
    event,
    key,
    public,
)

NOTARY = key("notary.test", seed=30)
OTHER_NOTARY = key("other-notary.test", seed=31)
GONE = key("gone.test", seed=32)
ATTACKER = key("gone.test", seed=33)

Make = Callable[..., Keyring]


@pytest.fixture
def peers() -> Peers:
    peers = Peers()
    for notary in (NOTARY, OTHER_NOTARY):
        peers.documents[notary.server_name] = document(notary, valid_until=NOW + 1000 * HOUR)
    return peers


@pytest.fixture
async def make(
    db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> AsyncIterator[Make]:
    rings = []

    def made(*notaries: Notary) -> Keyring:
        ring = Keyring(db, peers, OURS, millis, notaries=notaries, alert=lambda *a: alerts.append(a))
        rings.append(ring)
        return ring

    yield made
    for ring in rings:
        await ring.close()


def tell(peers: Peers, notary: SigningKey, *documents: dict[str, Any]) -> None:
    server = documents[0]["server_name"]
    peers.notary[notary.server_name, server] = [sign_json(d, notary) for d in documents]


async def verdicts(ring: Keyring, *events: Any, **options: Any) -> list[type]:
    return [type(result) for result in await ring.verify_events(events, **options)]


async def test_events_of_a_server_that_is_away_verify(make: Make, peers: Peers, millis: Millis) -> None:
    """Its requests do not: whoever can ask can tell us its keys."""
    tell(peers, NOTARY, document(GONE))
    ring = make(Notary("notary.test"))
    assert await verdicts(ring, event(GONE), event(ATTACKER)) == [type(None), SignatureError]
    assert await verdicts(ring, event(GONE), current_keys_only=True) == [type(None)]
    with pytest.raises(KeysUnavailable):
        await ring.keys_for_request("gone.test", ["ed25519:1"])
    with pytest.raises(KeysUnavailable):
        await ring.is_linearized("gone.test")
    millis.now += 12 * HOUR
    assert await verdicts(ring, event(GONE, ts=NOW + 12 * HOUR)) == [type(None)]
    millis.now += 1
    assert await verdicts(ring, event(GONE, ts=millis.now)) == [KeysUnavailable]


async def test_the_server_itself_is_asked_before_and_again_later(
    make: Make, peers: Peers, millis: Millis
) -> None:
    peers.documents["gone.test"] = document(GONE)
    tell(peers, NOTARY, document(key("gone.test", "ed25519:2", 40)))
    ring = make(Notary("notary.test"))
    assert await verdicts(ring, event(GONE)) == [type(None)]
    assert peers.asked == ["gone.test"] and peers.questions == []
    assert await ring.keys_for_request("gone.test", ["ed25519:1"])


async def test_what_a_notary_said_is_kept_over_a_restart_until_it_runs_out(
    make: Make, peers: Peers, millis: Millis
) -> None:
    tell(peers, NOTARY, document(GONE, valid_until=NOW + 10_000 * HOUR))
    await verdicts(make(Notary("notary.test")), event(GONE))
    again = make()
    millis.now += MAX_TRUST
    assert await verdicts(again, event(GONE, ts=millis.now)) == [type(None)]
    millis.now += 1
    assert await verdicts(again, event(GONE, ts=millis.now)) == [KeysUnavailable]
    assert len(peers.questions) == 1


async def test_a_known_key_is_good_for_longer_if_a_notary_has_seen_it_since(
    make: Make, peers: Peers, millis: Millis
) -> None:
    """The server cannot be reached by us but goes on elsewhere."""
    peers.documents["gone.test"] = document(GONE)
    ring = make(Notary("notary.test"))
    await verdicts(ring, event(GONE))
    del peers.documents["gone.test"]
    millis.now += 20 * HOUR
    tell(peers, NOTARY, document(GONE, valid_until=NOW + 24 * HOUR))
    assert await verdicts(ring, event(GONE, ts=millis.now)) == [type(None)]
    with pytest.raises(KeysUnavailable):
        await ring.keys_for_request("gone.test", ["ed25519:1"])
    peers.documents["gone.test"] = document(GONE, valid_until=millis.now + 12 * HOUR)
    millis.now += MAX_BACKOFF
    assert await ring.keys_for_request("gone.test", ["ed25519:1"])


async def test_a_key_that_its_server_forgot_to_list_counts_for_the_past_alone(
    make: Make, peers: Peers, millis: Millis
) -> None:
    peers.documents["peer.test"] = document(SECOND)
    tell(peers, NOTARY, document(PEER, valid_until=NOW + 100 * HOUR))
    ring = make(Notary("notary.test"))
    assert await verdicts(ring, event(PEER, ts=NOW - HOUR)) == [type(None)]
    assert await verdicts(ring, event(PEER, ts=NOW)) == [SignatureError]
    assert await verdicts(ring, event(PEER, ts=NOW - HOUR), current_keys_only=True) == [SignatureError]


@pytest.mark.parametrize(
    "answer",
    [
        [{**document(ATTACKER), "signatures": {}}],
        [document(key("evil.test"))],
        [{**document(GONE), "verify_keys": {"ed25519:1": {"key": public(ATTACKER)}}}],
        [{**document(GONE), "verify_keys": []}],
        [],
    ],
)
async def test_k1_a_notary_cannot_make_up_what_the_server_did_not_sign(
    make: Make, peers: Peers, answer: list[Any]
) -> None:
    peers.notary["notary.test", "gone.test"] = [sign_json(d, NOTARY) for d in answer]
    ring = make(Notary("notary.test"))
    assert await verdicts(ring, event(GONE), event(ATTACKER)) == [KeysUnavailable] * 2


@pytest.mark.parametrize("answer", [None, 5, {}, {"server_keys": {}}, {"server_keys": [None, 5, []]}])
async def test_k1_odd_answers_are_none(make: Make, peers: Peers, answer: Any) -> None:
    peers.odd["notary.test"] = answer
    assert await verdicts(make(Notary("notary.test")), event(GONE)) == [KeysUnavailable]


async def test_k1_a_document_without_the_notarys_signature_does_not_count(make: Make, peers: Peers) -> None:
    peers.notary["notary.test", "gone.test"] = [document(ATTACKER), sign_json(document(ATTACKER), OURS)]
    assert await verdicts(make(Notary("notary.test")), event(ATTACKER)) == [KeysUnavailable]


async def test_k1_with_pinned_keys_no_other_signature_counts(make: Make, peers: Peers) -> None:
    tell(peers, NOTARY, document(GONE))
    wrong = Notary("notary.test", {"ed25519:1": key("notary.test", seed=50).verify_key})
    assert await verdicts(make(wrong), event(GONE)) == [KeysUnavailable]
    assert peers.asked == ["gone.test"]
    right = Notary("notary.test", {"ed25519:1": NOTARY.verify_key})
    assert await verdicts(make(right), event(GONE)) == [type(None)]


async def test_k1_of_two_that_differ_the_first_is_believed_and_the_other_noted(
    make: Make, db: Database, peers: Peers, alerts: list[tuple[str, str]]
) -> None:
    tell(peers, NOTARY, document(GONE))
    tell(peers, OTHER_NOTARY, document(ATTACKER))
    ring = make(Notary("notary.test"), Notary("other-notary.test"))
    assert await verdicts(ring, event(GONE), event(ATTACKER)) == [type(None), SignatureError]
    assert alerts == [("gone.test", "ed25519:1")]
    [conflict] = await key_conflicts.all_conflicts(db, 10)
    assert (conflict.told_by, conflict.key) == ("other-notary.test", ATTACKER.verify_key.key_bytes)


async def test_k1_the_server_itself_corrects_what_a_notary_has_said(
    make: Make, db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> None:
    tell(peers, NOTARY, document(ATTACKER))
    ring = make(Notary("notary.test"))
    assert await verdicts(ring, event(ATTACKER)) == [type(None)]
    peers.documents["gone.test"] = document(GONE)
    millis.now += FETCH_INTERVAL
    assert await ring.keys_for_request("gone.test", ["ed25519:1"]) == {"ed25519:1": GONE.verify_key}
    assert await verdicts(ring, event(ATTACKER), event(GONE)) == [SignatureError, type(None)]
    assert alerts == [("gone.test", "ed25519:1")]
    [conflict] = await key_conflicts.all_conflicts(db, 10)
    assert (conflict.told_by, conflict.key) == (BY_A_NOTARY, ATTACKER.verify_key.key_bytes)


async def test_k6_a_conflict_is_told_once_counted_and_bounded(
    make: Make, db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> None:
    ring = make()
    peers.documents["gone.test"] = document(GONE)
    await ring.keys_for_request("gone.test", ["ed25519:1"])
    for _ in range(3):
        millis.now += FETCH_INTERVAL
        peers.documents["gone.test"] = document(ATTACKER, valid_until=millis.now + HOUR)
        await ring.keys_for_request("gone.test", ["ed25519:2"])
    assert alerts == [("gone.test", "ed25519:1")]
    [conflict] = await key_conflicts.all_conflicts(db, 10)
    assert (conflict.told_by, conflict.times, conflict.first_seen) == ("gone.test", 3, NOW + FETCH_INTERVAL)
    for n in range(key_conflicts.MAX_FOR_SERVER + 20):
        millis.now += FETCH_INTERVAL
        other = key("gone.test", "ed25519:1", 60 + n)
        peers.documents["gone.test"] = document(other, valid_until=millis.now + HOUR)
        await ring.keys_for_request("gone.test", ["ed25519:2"])
    assert len(alerts) == key_conflicts.MAX_FOR_SERVER
    assert len(await key_conflicts.all_conflicts(db, 1000)) == key_conflicts.MAX_FOR_SERVER


async def test_s7_notaries_are_asked_once_a_minute_and_less_when_they_know_nothing(
    make: Make, peers: Peers, millis: Millis
) -> None:
    """Whatever the number of events and of bad keys."""
    ring = make(Notary("notary.test"), Notary("other-notary.test"))
    peers.pause = 0.01
    many = [event(key("gone.test", f"ed25519:k{n}", n + 1)) for n in range(50)]
    await asyncio.gather(*(ring.verify_events([e]) for e in many))
    assert len(peers.questions) == 2
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        before = len(peers.questions)
        for wait in (minutes * 60_000 - 1, 1):
            assert len(peers.questions) == before
            millis.now += wait
            await ring.verify_events(many[:1])
        assert len(peers.questions) == before + 2


async def test_requests_do_not_wait_for_notaries(make: Make, peers: Peers) -> None:
    ring = make(Notary("notary.test"))
    with pytest.raises(KeysUnavailable):
        await ring.keys_for_request("gone.test", ["ed25519:1"])
    assert peers.questions == []


async def test_a_slow_notary_does_not_take_the_answer_of_another(
    make: Make, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserver.federation_client.notaries.MAX_SECONDS", 3.0)
    tell(peers, OTHER_NOTARY, document(GONE))
    peers.slow = {"notary.test"}
    ring = make(Notary("notary.test"), Notary("other-notary.test"))
    assert await verdicts(ring, event(GONE)) == [type(None)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        (["a.test"], (Notary("a.test"),)),
        ([{"name": "a.test"}], (Notary("a.test"),)),
        (
            [{"name": "a.test", "keys": {"ed25519:1": public(NOTARY)}}],
            (Notary("a.test", {"ed25519:1": NOTARY.verify_key}),),
        ),
        ("a.test", None),
        (["1.2.3.4"], None),
        ([5], None),
        ([{"keys": {}}], None),
        ([{"name": "a.test", "keys": {}}], None),
        ([{"name": "a.test", "keys": {"ed25519:1": "short"}}], None),
        ([{"name": "a.test", "keys": {"ed25519:1": 5}}], None),
        ([{"name": "a.test", "keys": ["x"]}], None),
        ([{"name": "a.test", "key": "x"}], None),
        (["a.test"] * 6, None),
    ],
)
def test_notaries_in_the_configuration(value: object, expected: tuple[Notary, ...] | None) -> None:
    problems: list[str] = []
    found = read_notaries(value, problems)
    assert bool(problems) == (expected is None)
    assert all("federation.notaries" in problem for problem in problems)
    if expected is not None:
        assert found == expected
