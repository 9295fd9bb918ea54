"""Which keys count (D04 §Retrieving Server Keys; attacks K1 to K4, K6, S5, S7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lmserver.config_notaries import Notary
from lmserver.federation_client.errors import BadResponse, KeysUnavailable
from lmserver.federation_client.keyring import (
    FETCH_INTERVAL,
    MAX_FETCHES,
    MAX_IN_LINE,
    MAX_NEW_FETCHES,
    Keyring,
    chunk_size,
)
from lmserver.federation_client.keys_fetch import CLOCK_SKEW, MAX_TRUST, read_document
from lmserver.federation_client.known_keys import Known
from lmserver.own_keys import OldKey
from lmserver.protocol.errors import SignatureError
from lmserver.protocol.events import Lpdu, Pdu, parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import sign_json
from lmserver.storage.database import Database
from tests.kit.key_documents import (
    BAD,
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
    through_hub,
)
from tests.kit.waiting import HANGS, eventually


@pytest.fixture
async def keyring(
    db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> AsyncIterator[Keyring]:
    ring = make(db, peers, millis, alerts)
    yield ring
    await ring.close()


def make(
    db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]], **options: Any
) -> Keyring:
    return Keyring(db, peers, OURS, millis, alert=lambda *alert: alerts.append(alert), **options)


async def test_a_key_is_fetched_once_and_then_known(keyring: Keyring, peers: Peers) -> None:
    for _ in range(3):
        found = await keyring.keys_for_request("peer.test", ["ed25519:1"])
        assert found == {"ed25519:1": PEER.verify_key}
    assert peers.asked == ["peer.test"]


async def test_keys_are_renewed_at_half_of_their_life_while_they_are_in_use(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    """In the background, so that neither a slow answer nor a short outage stops the server's requests."""
    current = {"ed25519:1": PEER.verify_key}
    assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == current
    millis.now += 6 * HOUR - 1
    assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == current
    assert len(peers.asked) == 1
    del peers.documents["peer.test"]
    millis.now += 1
    for _ in range(3):
        assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == current
        await _until(keyring, lambda known: known.failures == 1)
    assert len(peers.asked) == 2
    peers.documents["peer.test"] = document(PEER, valid_until=NOW + 100 * HOUR)
    peers.pause = 0.05
    millis.now += FETCH_INTERVAL
    for _ in range(3):
        assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == current
    await _until(keyring, lambda known: known.half_life > millis.now)
    assert len(peers.asked) == 3
    del peers.documents["peer.test"]
    millis.now += 40 * HOUR
    assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == current


async def _until(keyring: Keyring, true: Callable[[Known], bool]) -> None:
    async with asyncio.timeout(HANGS):
        while not true(await keyring.known("peer.test")):
            await asyncio.sleep(0.01)


async def test_keys_survive_a_restart(
    keyring: Keyring, db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> None:
    peers.documents["peer.test"] = document(PEER, linearized=True)
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    again = make(db, peers, millis, alerts)
    assert await again.keys_for_request("peer.test", ["ed25519:1"]) == {"ed25519:1": PEER.verify_key}
    assert await again.is_linearized("peer.test")
    assert peers.asked == ["peer.test"]
    await again.close()


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        document(key("evil.test")),
        {**document(PEER), "signatures": {}},
        {**document(PEER), "signatures": {"peer.test": {"ed25519:1": BAD}}},
        {**document(PEER), "signatures": []},
        {**document(PEER), "valid_until_ts": NOW + 1},
        {**document(PEER), "valid_until_ts": "1"},
        {**document(PEER), "valid_until_ts": True},
        {**document(PEER), "verify_keys": []},
        {**document(PEER), "verify_keys": {}},
        {**document(PEER), "old_verify_keys": 5},
        sign_json({**document(PEER), "verify_keys": {"ed25519:1": {"key": "AA"}}}, PEER),
        sign_json({**document(PEER), "verify_keys": {f"ed25519:{n}": {} for n in range(1000)}}, PEER),
        {**document(PEER), "server_name": "evil.test"},
        {**document(PEER), "server_name": "PEER.test"},
    ],
)
def test_k2_unbelievable_documents_are_discarded(broken: Any) -> None:
    with pytest.raises((BadResponse, SignatureError)):
        read_document(broken, "peer.test", NOW)


def test_s5_unusable_keys_are_skipped() -> None:
    body = document(PEER)
    body["verify_keys"] |= {
        "ed25519:": {"key": public(PEER)},
        "ed25519:a b": {"key": public(PEER)},
        "ed25519:1:2": {"key": public(PEER)},
        "rsa:1": {"key": public(PEER)},
        "ed25519:short": {"key": "AAAA"},
        "ed25519:number": {"key": 5},
        "ed25519:none": None,
    }
    read = read_document(sign_json(body, PEER), "peer.test", NOW)
    assert set(read.keys) == {"ed25519:1"}


def test_k5_an_expiry_in_the_future_is_soon() -> None:
    read = read_document(document(PEER, old={SECOND: NOW + HOUR}), "peer.test", NOW)
    assert read.old_keys == {"ed25519:2": (SECOND.verify_key, NOW + CLOCK_SKEW)}


async def test_k2_a_document_for_another_name_gives_no_keys(keyring: Keyring, peers: Peers) -> None:
    peers.documents["peer.test"] = document(key("evil.test"))  # K2
    with pytest.raises(KeysUnavailable):
        await keyring.keys_for_request("peer.test", ["ed25519:1"])


async def test_k3_trust_ends_after_seven_days(keyring: Keyring, peers: Peers, millis: Millis) -> None:
    peers.documents["peer.test"] = document(PEER, valid_until=253_402_300_799_000)  # K3: year 9999
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    millis.now += MAX_TRUST
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    assert len(peers.asked) == 1
    del peers.documents["peer.test"]
    millis.now += 1
    with pytest.raises(KeysUnavailable):
        await keyring.keys_for_request("peer.test", ["ed25519:1"])
    assert len(peers.asked) == 2


async def test_k4_k5_old_keys_are_for_events_of_their_time_only(keyring: Keyring, peers: Peers) -> None:
    peers.documents["peer.test"] = document(SECOND, old={PEER: NOW - HOUR})  # K4
    assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == {}
    before, after = event(PEER, ts=NOW - HOUR), event(PEER, ts=NOW - HOUR + 1)
    assert [type(e) for e in await keyring.verify_events([before, after])] == [type(None), SignatureError]
    assert [type(e) for e in await keyring.verify_events([before], current_keys_only=True)] == [
        SignatureError
    ]


async def test_k5_an_unlisted_key_ends_with_the_document_that_drops_it(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    peers.documents["peer.test"] = document(SECOND)
    millis.now += FETCH_INTERVAL
    assert await keyring.keys_for_request("peer.test", ["ed25519:1", "ed25519:2"]) == {
        "ed25519:2": SECOND.verify_key
    }
    assert await keyring.verify_events([event(PEER, ts=NOW)]) == [None]
    refused = await keyring.verify_events([event(PEER, ts=millis.now)])
    assert type(refused[0]) is SignatureError


async def test_k6_a_key_id_keeps_its_first_bytes(
    keyring: Keyring, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> None:
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    other = key("peer.test", "ed25519:1", 77)
    peers.documents["peer.test"] = document(other, SECOND)  # K6
    millis.now += FETCH_INTERVAL
    assert await keyring.keys_for_request("peer.test", ["ed25519:2"]) == {"ed25519:2": SECOND.verify_key}
    assert alerts == [("peer.test", "ed25519:1")]
    assert await keyring.keys_for_request("peer.test", ["ed25519:1"]) == {}
    results = await keyring.verify_events([event(PEER), event(other)])
    assert [type(r) for r in results] == [type(None), SignatureError]


async def test_s7_unknown_keys_cause_one_fetch_a_minute(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    for _ in range(5):
        assert await keyring.keys_for_request("peer.test", ["ed25519:x"]) == {}
    assert len(peers.asked) == 1
    millis.now += FETCH_INTERVAL - 1
    await keyring.keys_for_request("peer.test", ["ed25519:x"])
    assert len(peers.asked) == 1
    millis.now += 1
    await keyring.keys_for_request("peer.test", ["ed25519:x"])
    await keyring.keys_for_request("peer.test", ["ed25519:y"])
    assert len(peers.asked) == 2


async def test_s7_a_hundred_unknown_keys_cause_one_fetch(keyring: Keyring, peers: Peers) -> None:
    peers.pause = 0.02
    events = [event(key("peer.test", f"ed25519:k{n}", n + 1), body=str(n)) for n in range(100)]
    batches = await asyncio.gather(*(keyring.verify_events([e]) for e in events))
    assert {type(b[0]) for b in batches} == {SignatureError}
    assert peers.asked == ["peer.test"]


async def test_a_server_that_does_not_answer_is_left_alone_for_longer(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        before = len(peers.asked)
        for wait in (0, minutes * 60_000 - 1):
            millis.now += wait
            with pytest.raises(KeysUnavailable):
                await keyring.keys_for_request("gone.test", ["ed25519:1"])
        assert len(peers.asked) == before + 1
        millis.now += 1
    peers.documents["gone.test"] = document(key("gone.test"), valid_until=millis.now + HOUR)
    assert await keyring.keys_for_request("gone.test", ["ed25519:1"])


async def test_k9_made_up_servers_do_not_hold_up_the_keys_of_those_we_know(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    """Anybody may name servers in a header, and make them answer as slowly as they like."""
    await keyring.keys_for_request("peer.test", ["ed25519:1"])
    peers.slow = {f"s{n}.test" for n in range(MAX_FETCHES * 2)}
    asking = [asyncio.create_task(keyring.keys_for_request(name, ["ed25519:1"])) for name in peers.slow]
    async with asyncio.timeout(HANGS):
        while len(peers.asked) < 1 + MAX_NEW_FETCHES:
            await asyncio.sleep(0.01)
    millis.now += 13 * HOUR
    peers.documents["peer.test"] = document(PEER, valid_until=millis.now + HOUR)
    async with asyncio.timeout(HANGS):
        assert await keyring.keys_for_request("peer.test", ["ed25519:1"])
    assert len([name for name in peers.asked if name in peers.slow]) == MAX_NEW_FETCHES
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_k9_made_up_servers_do_not_pile_up(keyring: Keyring, peers: Peers) -> None:
    """Whoever has many addresses names servers faster than they can be found not to answer."""
    peers.slow = {f"s{n}.test" for n in range(MAX_IN_LINE + 50)}
    asking = [asyncio.create_task(keyring.keys_for_request(name, ["ed25519:1"])) for name in peers.slow]
    await eventually(lambda: len([task for task in asking if task.done()]) == 50)
    assert len(keyring._fetches) == MAX_IN_LINE
    assert all(isinstance(task.exception(), KeysUnavailable) for task in asking if task.done())
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_one_dead_server_fails_only_its_own_events(keyring: Keyring) -> None:
    results = await keyring.verify_events([event(PEER), event(key("gone.test")), event(PEER, body="2")])
    assert [type(r) for r in results] == [type(None), KeysUnavailable, type(None)]


async def test_known_keys_work_while_their_server_is_away(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    await keyring.verify_events([event(PEER)])
    del peers.documents["peer.test"]
    millis.now += 30 * 24 * HOUR
    results = await keyring.verify_events([event(PEER), event(PEER, ts=millis.now)])
    assert [type(r) for r in results] == [type(None), KeysUnavailable]


async def test_k5_a_time_in_the_future_is_judged_as_now(keyring: Keyring, peers: Peers) -> None:
    assert await keyring.verify_events([event(PEER, ts=2**53 - 1)]) == [None]
    assert len(peers.asked) == 1


async def test_s5_odd_key_ids_are_ignored(keyring: Keyring, peers: Peers) -> None:
    odd = {"ed25519:": BAD, "ed25519:a b": BAD, "rsa:1": BAD, "ed25519:1:2": BAD}  # S5
    assert await keyring.verify_events([event(PEER, signatures=odd)]) == [None]
    only_odd = event(PEER, signatures=odd).fields
    signatures = {"peer.test": {k: v for k, v in only_odd["signatures"]["peer.test"].items() if k in odd}}
    stripped = parse_pdu({**only_odd, "signatures": signatures}, LM_02)
    results = await keyring.verify_events([stripped])
    assert type(results[0]) is SignatureError
    assert len(peers.asked) == 1


async def test_s7_one_good_signature_is_enough(keyring: Keyring, peers: Peers) -> None:
    peers.documents["peer.test"] = document(PEER, SECOND)  # S7
    mixed = [event(PEER, signatures={"ed25519:2": BAD}), event(PEER, signatures={"ed25519:unknown": BAD})]
    assert await keyring.verify_events(mixed) == [None, None]
    assert len(peers.asked) == 1


async def test_a_bad_known_signature_does_not_hide_a_good_new_one(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    await keyring.verify_events([event(PEER)])
    peers.documents["peer.test"] = document(PEER, SECOND)
    millis.now += FETCH_INTERVAL
    assert await keyring.verify_events([event(SECOND, signatures={"ed25519:1": BAD})]) == [None]
    assert len(peers.asked) == 2
    results = await keyring.verify_events([event(SECOND, signatures={"ed25519:1": BAD, "ed25519:2": BAD})])
    assert type(results[0]) is SignatureError


async def test_s1_sender_and_hub_must_both_have_signed(keyring: Keyring, peers: Peers) -> None:
    hub = key("hub.test")
    peers.documents["hub.test"] = document(hub)
    good = through_hub(PEER, hub)
    half = {name: good.fields["signatures"][name] for name in ("hub.test",)}
    forged = through_hub(key("peer.test", "ed25519:1", 5), hub)
    events = [good, parse_pdu({**good.fields, "signatures": half}, LM_02), forged]
    results = await keyring.verify_events(events)
    assert [type(r) for r in results] == [type(None), SignatureError, SignatureError]
    assert sorted(peers.asked) == ["hub.test", "peer.test"]


async def test_k5_a_senders_clock_does_not_decide_about_the_hubs_key(
    keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    """An event dated far ahead is good for ever, also when the hub has another key at that time: else
    any participant could make a room that nobody can join any more."""
    hub, new = key("hub.test"), key("hub.test", "ed25519:2", 3)
    peers.documents["hub.test"] = document(new, old={hub: NOW - HOUR})
    peers.documents["peer.test"] = document(PEER, valid_until=NOW + 1000 * HOUR)
    ahead = through_hub(PEER, hub, ts=NOW + 100 * HOUR)
    forged = through_hub(PEER, key("hub.test", "ed25519:1", 5), ts=NOW + 100 * HOUR)
    for _ in range(2):
        results = await keyring.verify_events([ahead, forged])
        assert [type(r) for r in results] == [type(None), SignatureError]
        millis.now += 101 * HOUR
    peers.documents["peer.test"] = document(SECOND, old={PEER: NOW}, valid_until=NOW + 1000 * HOUR)
    results = await keyring.verify_events([through_hub(PEER, new, ts=millis.now)])
    assert [type(r) for r in results] == [SignatureError]


async def test_s2_signatures_of_others_cause_no_fetch(keyring: Keyring, peers: Peers) -> None:
    fields = event(PEER).fields
    extra = {**fields["signatures"], "evil.test": {"ed25519:1": BAD}}
    assert await keyring.verify_events([parse_pdu({**fields, "signatures": extra}, LM_02)]) == [None]
    assert peers.asked == ["peer.test"]


async def test_a_batch_from_a_known_server_asks_neither_database_nor_server(
    keyring: Keyring, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Pdu | Lpdu] = [event(PEER, body=str(n)) for n in range(50)]
    events[17] = event(key("peer.test", "ed25519:1", 5), body="forged")
    await keyring.verify_events(events[:1])
    monkeypatch.setattr(keyring, "_db", None)
    results = await keyring.verify_events(events)
    assert [i for i, r in enumerate(results) if r is not None] == [17]
    assert len(peers.asked) == 1


async def test_own_keys_need_nobody(
    db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> None:
    old = key("us.test", "ed25519:old", 8)
    ring = make(db, peers, millis, alerts, own_old_keys={"ed25519:old": OldKey(old.verify_key, NOW - HOUR)})
    assert await ring.keys_for_request("us.test", ["ed25519:us", "ed25519:old", "ed25519:x"]) == {
        "ed25519:us": OURS.verify_key
    }
    events = [event(OURS), event(old, ts=NOW - HOUR), event(old, ts=NOW), event(key("us.test", "ed25519:x"))]
    results = await ring.verify_events(events)
    assert [type(r) for r in results] == [type(None), type(None), SignatureError, SignatureError]
    assert not peers.asked
    await ring.close()


@pytest.mark.parametrize(("said", "expected"), [(True, True), (False, False), (1, False), (None, False)])
async def test_m_linearized(keyring: Keyring, peers: Peers, said: object, expected: bool) -> None:
    peers.documents["peer.test"] = document(PEER, linearized=said)
    assert await keyring.is_linearized("peer.test") is expected
    assert await keyring.is_linearized("peer.test") is expected
    assert len(peers.asked) == 1


async def test_k1_the_word_of_a_notary(
    db: Database, peers: Peers, millis: Millis, alerts: list[tuple[str, str]]
) -> None:
    """K1: only a configured notary is asked, only if the server is away, and never about a known key."""
    notary, gone = key("notary.test"), key("gone.test")
    peers.documents["notary.test"] = document(notary)
    attacker = key("gone.test", "ed25519:1", 66)
    not_self_signed = {**document(attacker), "signatures": {}}
    peers.notary["notary.test", "gone.test"] = [
        sign_json(not_self_signed, notary),
        document(attacker),  # the notary did not sign it
        sign_json(document(key("evil.test")), notary),
        sign_json(document(gone), notary),
    ]
    peers.notary["notary.test", "peer.test"] = [
        sign_json(document(key("peer.test", "ed25519:1", 66)), notary)
    ]
    ring = make(db, peers, millis, alerts, notaries=[Notary("notary.test")])
    await ring.verify_events([event(PEER)])
    results = await ring.verify_events([event(gone, ts=NOW - 1), event(attacker, ts=NOW - 1)])
    assert [type(r) for r in results] == [type(None), SignatureError]
    with pytest.raises(KeysUnavailable):
        await ring.keys_for_request("gone.test", ["ed25519:1"])
    assert not alerts
    del peers.documents["peer.test"]
    millis.now += FETCH_INTERVAL
    await ring.verify_events([event(SECOND)])
    assert alerts == [("peer.test", "ed25519:1")]
    assert await ring.keys_for_request("peer.test", ["ed25519:1"]) == {"ed25519:1": PEER.verify_key}
    await ring.close()


def test_all_threads_get_some_of_a_transaction() -> None:
    assert [chunk_size(n) for n in (8, 20, 50, 100, 1000)] == [16, 16, 25, 50, 64]
