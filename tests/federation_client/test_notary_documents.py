"""What we do as a notary when somebody asks (D04 §Retrieving Server Keys; attack K9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lmserver.federation_client import notary_documents
from lmserver.federation_client.keyring import FETCH_INTERVAL, Keyring
from lmserver.federation_client.notary_documents import NotaryDocuments
from lmserver.storage.database import Database
from lmserver.web.limits import Rate
from tests.kit.key_documents import HOUR, NOW, OURS, PEER, SECOND, Millis, Peers, document, key
from tests.kit.waiting import HANGS, eventually


@pytest.fixture
async def keyring(db: Database, peers: Peers, millis: Millis) -> AsyncIterator[Keyring]:
    ring = Keyring(db, peers, OURS, millis)
    yield ring
    await ring.close()


@pytest.fixture
def notary(db: Database, keyring: Keyring, millis: Millis) -> NotaryDocuments:
    return NotaryDocuments(db, keyring, millis)


async def test_the_server_itself_is_asked_first_and_then_at_half_of_its_life(
    notary: NotaryDocuments, peers: Peers, millis: Millis
) -> None:
    first = peers.documents["peer.test"]
    assert await notary.documents({"peer.test": 0}) == {"peer.test": [first]}
    second = peers.documents["peer.test"] = document(SECOND, valid_until=NOW + 24 * HOUR)
    millis.now += 6 * HOUR - 1
    assert await notary.documents({"peer.test": 0}) == {"peer.test": [first]}
    assert len(peers.asked) == 1
    millis.now += 1
    assert await notary.documents({"peer.test": 0}) == {"peer.test": [second, first]}
    assert len(peers.asked) == 2


async def test_a_document_that_is_not_valid_for_long_enough_is_refreshed_or_left_out(
    notary: NotaryDocuments, peers: Peers, millis: Millis
) -> None:
    await notary.documents({"peer.test": 0})
    peers.documents["peer.test"] = renewed = document(PEER, valid_until=NOW + 20 * HOUR)
    millis.now += FETCH_INTERVAL
    assert await notary.documents({"peer.test": NOW + 13 * HOUR}) == {"peer.test": [renewed]}
    assert await notary.documents({"peer.test": NOW + 21 * HOUR}) == {"peer.test": []}
    assert len(peers.asked) == 2


async def test_the_last_answer_of_a_server_that_is_away_is_still_given(
    notary: NotaryDocuments, peers: Peers, millis: Millis
) -> None:
    last = peers.documents["peer.test"]
    await notary.documents({"peer.test": 0})
    del peers.documents["peer.test"]
    millis.now += 30 * 24 * HOUR
    assert await notary.documents({"peer.test": 0, "gone.test": 0}) == {"peer.test": [last], "gone.test": []}


async def test_a_hundred_questions_at_once_are_one(notary: NotaryDocuments, peers: Peers) -> None:
    peers.pause = 0.02
    answers = await asyncio.gather(*(notary.documents({"peer.test": 0}) for _ in range(100)))
    assert peers.asked == ["peer.test"]
    assert all(len(answer["peer.test"]) == 1 for answer in answers)


async def test_k9_names_are_fetched_so_many_and_then_no_more(
    db: Database, keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    """Also when many ask: the amplifier has one budget."""
    few = NotaryDocuments(db, keyring, millis, fetches=Rate(0.001, 5))
    names = {f"s{n}.test": 0 for n in range(40)}
    for name in names:
        peers.documents[name] = document(key(name))
    await asyncio.gather(*(few.documents(names) for _ in range(5)))
    assert len(peers.asked) == 5
    again = await few.documents(names)
    assert sorted(name for name, found in again.items() if found) == sorted(peers.asked)


async def test_k9_slow_names_hold_up_neither_the_answer_nor_our_own_fetches(
    db: Database, keyring: Keyring, peers: Peers, millis: Millis
) -> None:
    known = (await NotaryDocuments(db, keyring, millis).documents({"peer.test": 0}))["peer.test"]
    quick = NotaryDocuments(db, keyring, millis, seconds=1.0)
    peers.documents["other.test"] = document(key("other.test"))
    peers.slow = {f"s{n}.test" for n in range(60)}
    asking = asyncio.create_task(quick.documents(dict.fromkeys([*peers.slow, "peer.test"], 0)))
    await eventually(lambda: asking.done() or peers.slow & set(peers.asked))
    assert await keyring.keys_for_request("other.test", ["ed25519:1"])
    answer = await asyncio.wait_for(asking, HANGS)
    assert answer["peer.test"] == known
    assert len([name for name in peers.asked if name in peers.slow]) <= notary_documents.MAX_AT_ONCE


async def test_k9_strangers_do_not_fill_the_database(
    notary: NotaryDocuments, keyring: Keyring, db: Database, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notary_documents, "MAX_STRANGERS", 3)
    for n in range(10):
        peers.documents[f"s{n}.test"] = document(key(f"s{n}.test"))
        await notary.documents({f"s{n}.test": 0})
    assert len(peers.asked) == 3
    assert await keyring.keys_for_request("s9.test", ["ed25519:1"])
    assert len((await notary.documents({"s9.test": 0}))["s9.test"]) == 1


async def test_k9_an_answer_has_a_bound_and_the_newest_come_first(
    notary: NotaryDocuments, peers: Peers, millis: Millis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        peers.documents["peer.test"] = document(key("peer.test", f"ed25519:k{n}", n + 1))
        await notary.documents({"peer.test": NOW + 100 * HOUR})
        millis.now += FETCH_INTERVAL
    newest: Any = peers.documents["peer.test"]
    other = peers.documents["other.test"] = document(key("other.test"))
    both = {"peer.test": 0, "other.test": 0}
    assert len((await notary.documents(both))["peer.test"]) == 6
    monkeypatch.setattr(notary_documents, "MAX_DOCUMENTS", 2)
    assert await notary.documents(both) == {"peer.test": [newest], "other.test": [other]}
    monkeypatch.setattr(notary_documents, "MAX_BYTES", 500)
    found = await notary.documents(both)
    assert sum(map(len, found.values())) == 1


async def test_k9_what_is_no_name_is_never_asked(notary: NotaryDocuments, peers: Peers) -> None:
    with pytest.raises(Exception, match="not a server name"):
        await notary.documents({"127.0.0.1": 0})
    assert peers.asked == []
