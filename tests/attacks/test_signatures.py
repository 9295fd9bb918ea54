"""Attacks H and S by a hub: events that lack what would make them events are not followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmserver.protocol import hub
from lmserver.protocol.events import Pdu
from lmserver.protocol.hashes import pdu_content_hash
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import SigningKey, sign_json
from lmserver.storage import room_log
from tests.evilpeer.prey import Prey
from tests.kit.rooms import ALICE, BOB, EVIL, HUB, PARTICIPANT, ROOM, key_of, lpdu, message

Fields = dict[str, Any]


def through(prey: Prey, sender: str = BOB) -> Pdu:
    """What a user of another server said, as the hub completes it."""
    return hub.complete_lpdu(lpdu(message("said", sender=sender)), prey.hub.room.view, key_of(HUB))


def own(prey: Prey) -> Pdu:
    return hub.complete_draft(message("said", sender=ALICE), prey.hub.room.view, key_of(HUB))


def signed_by(fields: Fields, key: SigningKey, name: str | None = None) -> str:
    signatures = sign_json(redact({**fields, "signatures": {}}, LM_02), key)["signatures"]
    text: str = signatures[name or key.server_name][key.key_id]
    return text


def rehashed(fields: Fields, **hashes: Any) -> Fields:
    """The hub makes its own hash and signature anew, as it can."""
    changed = {**fields, "hashes": {**fields["hashes"], **hashes}}
    changed["hashes"] = {k: v for k, v in changed["hashes"].items() if v is not None}
    if "sha256" not in hashes:
        changed["hashes"]["sha256"] = pdu_content_hash(changed)
    signature = {key_of(HUB).key_id: signed_by(changed, key_of(HUB))}
    return {**changed, "signatures": {**changed["signatures"], HUB: signature}}


def with_signatures(pdu: Pdu, **changes: Any) -> Fields:
    kept = dict(pdu.fields["signatures"].items())
    for name, value in changes.items():
        kept[{"hub": HUB, "sender": PARTICIPANT, "evil": EVIL}[name]] = value
    return {**pdu.fields, "signatures": {name: value for name, value in kept.items() if value is not None}}


def of_evil(fields: Fields, key_id: str = "ed25519:t1") -> dict[str, str]:
    return {key_id: signed_by(fields, key_of(EVIL))}


def moved(pdu: Pdu, key_id: str) -> Fields:
    """The sender's good signature under another key ID."""
    [text] = pdu.fields["signatures"][PARTICIPANT].values()
    return with_signatures(pdu, sender={key_id: text})


def renamed(pdu: Pdu, name: str) -> Fields:
    """The sender's good signature under another server name."""
    fields = with_signatures(pdu, sender=None)
    return {**fields, "signatures": {**fields["signatures"], name: pdu.fields["signatures"][PARTICIPANT]}}


def over_the_pdu(pdu: Pdu) -> Fields:
    return with_signatures(pdu, sender={"ed25519:t1": signed_by(pdu.fields, key_of(PARTICIPANT))})


def without(fields: Fields, key: str) -> Fields:
    return {name: value for name, value in fields.items() if name != key}


DROPPED: dict[str, Callable[[Prey], Fields]] = {
    "h4_hub_server_without_lpdu_hash": lambda p: rehashed(through(p).fields, lpdu=None),
    "h4_lpdu_hash_without_hub_server": lambda p: rehashed(without(through(p).fields, "hub_server")),
    "h4_only_md5": lambda p: rehashed(own(p).fields, sha256=None, md5="rL0Y20zC+Fzt72VPzMSk2A"),
    "h4_no_hash": lambda p: rehashed(own(p).fields, sha256=None),
    "s1_only_the_hub_signed": lambda p: with_signatures(through(p), sender=None),
    "s1_only_the_sender_signed": lambda p: with_signatures(through(p), hub=None),
    "s1_nobody_signed": lambda p: with_signatures(through(p), sender=None, hub=None),
    "s1_empty": lambda p: with_signatures(through(p), sender={}, hub={}),
    "s2_another_server_signed_for_the_sender": lambda p: with_signatures(
        through(p), sender=None, evil=of_evil(through(p).fields)
    ),
    "s2_another_servers_signature_under_the_senders_name": lambda p: with_signatures(
        through(p), sender=of_evil(through(p).fields)
    ),
    "s2_another_servers_signature_under_the_hubs_name": lambda p: with_signatures(
        own(p), hub=of_evil(own(p).fields)
    ),
    "s4_the_senders_signature_is_over_the_pdu": lambda p: over_the_pdu(through(p)),
    "s4_the_hubs_signature_is_over_the_lpdu": lambda p: with_signatures(
        through(p),
        hub={
            "ed25519:t1": signed_by(lpdu(message(sender=BOB)).fields, key_of(HUB)),
        },
    ),
    "s5_no_version": lambda p: moved(through(p), "ed25519:"),
    "s5_space": lambda p: moved(through(p), "ed25519:a b"),
    "s5_algorithm": lambda p: moved(through(p), "rsa:1"),
    "s5_two_colons": lambda p: moved(through(p), "ed25519:t1:2"),
    "s9_hub_server_is_another": lambda p: rehashed({**through(p).fields, "hub_server": EVIL}),
    "s10_upper_case": lambda p: renamed(through(p), PARTICIPANT.upper()),
    "s10_port": lambda p: renamed(through(p), PARTICIPANT + ":8448"),
    "s10_dot": lambda p: renamed(through(p), PARTICIPANT + "."),
}


@pytest.mark.parametrize("name", list(DROPPED))
async def test_h4_s1_s2_s4_s5_s9_s10_what_is_not_signed_and_hashed_as_it_must_be_is_dropped(
    prey: Prey, name: str
) -> None:
    """The honest event at the same place is taken afterwards: the false one has left no trace."""
    await prey.join()
    fields = DROPPED[name](prey)
    before = await room_log.room(prey.db, ROOM)
    status, _ = await prey.hub.send(PARTICIPANT, "attack", [fields])
    assert status == 200
    assert await room_log.room(prey.db, ROOM) == before
    honest = prey.hub.room.add(message("honest", sender=ALICE))
    assert await prey.hub.deliver(PARTICIPANT, "after", honest) == {}
    after = await room_log.room(prey.db, ROOM)
    assert after is not None and after.head_event_id == honest.event_id
    assert await prey.victim.problems(ROOM) == []


async def test_s7_one_good_signature_among_bad_ones_is_enough(prey: Prey) -> None:
    await prey.join()
    said = prey.hub.room.add(lpdu(message("said", sender=BOB)))
    [good] = said.fields["signatures"][PARTICIPANT].values()
    bad = {"ed25519:t0": good, "ed25519:t1": good, "ed25519:t2": "AAAA", "rsa:1": good}
    status, answer = await prey.hub.send(PARTICIPANT, "s7", [with_signatures(said, sender=bad)])
    assert (status, answer["failed_pdus"]) == (200, {})
    row = await room_log.room(prey.db, ROOM)
    assert row is not None and row.head_event_id == said.event_id
    assert await prey.victim.problems(ROOM) == []
