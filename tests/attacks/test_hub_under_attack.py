"""A hostile participant with real keys against a hub, over HTTP: rows of the attack list by their id.

After every attack the room is what it was, an honest event sent in the same breath stands, the
stored bytes verify, and nothing was answered with 5xx.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lmserver.protocol import hub
from lmserver.protocol.events import Lpdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import SigningKey
from tests.evilpeer.arena import Arena
from tests.evilpeer.forging import Fields, evil, resigned
from tests.evilpeer.peer import UNSTABLE
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    MALLORY,
    ROOM,
    draft,
    key_of,
    lpdu,
    member,
    message,
    now,
    opening,
)  # fmt: skip

MALFORMED: dict[str, Callable[[Fields], Any]] = {
    "j7_nul_in_type": lambda f: resigned(f, type="a\0b"),
    "j7_nul_in_state_key": lambda f: resigned(f, state_key="a\0b"),
    "j10_type_of_256": lambda f: resigned(f, type="x" * 256),
    "j14_content_text": lambda f: resigned(f, content="x"),
    "j14_content_list": lambda f: resigned(f, content=[]),
    "j14_hashes_null": lambda f: {**f, "hashes": None},
    "j14_hashes_list": lambda f: {**f, "hashes": []},
    "j14_signatures_list": lambda f: {**f, "signatures": []},
    "j14_signatures_of_lists": lambda f: {**f, "signatures": {EVIL: []}},
    "j14_signature_number": lambda f: {**f, "signatures": {EVIL: {"ed25519:t1": 5}}},
    "j14_timestamp_bool": lambda f: resigned(f, origin_server_ts=True),
    "j14_timestamp_text": lambda f: resigned(f, origin_server_ts="5"),
    "j14_sender_number": lambda f: {**f, "sender": 5},
    "j14_room_number": lambda f: {**f, "room_id": 5},
    "j14_auth_events_object": lambda f: {**f, "auth_events": {}},
    "j14_item_text": lambda f: "event",
    "j14_item_list": lambda f: [f],
    "h4_no_lpdu_hash": lambda f: resigned(f, hashes={"sha256": "x"}),
    "h4_only_md5": lambda f: resigned(f, hashes={"md5": "x"}),
    "h4_both_hashes": lambda f: {**f, "hashes": {**f["hashes"], "sha256": f["hashes"]["lpdu"]["sha256"]}},
    "h4_hash_of_wrong_length": lambda f: resigned(f, hashes={"lpdu": {"sha256": "AAAA"}}),
    "h4_hash_without_hub_server": lambda f: {k: v for k, v in f.items() if k != "hub_server"},
    "s1_no_signature": lambda f: {**f, "signatures": {}},
    "s1_only_the_hubs_name": lambda f: {**f, "signatures": {HUB: f["signatures"][EVIL]}},
    "s5_unknown_algorithm": lambda f: {
        **f,
        "signatures": {EVIL: {"rsa:1": f["signatures"][EVIL]["ed25519:t1"]}},
    },
    "s10_case": lambda f: {**f, "signatures": {EVIL.upper(): f["signatures"][EVIL]}},
    "b14_unknown_room": lambda f: resigned(f, room_id=f"!unknown:{HUB}"),
}


@pytest.mark.parametrize("name", list(MALFORMED))
async def test_malformed_events_are_dropped(arena: Arena, name: str) -> None:
    assert await arena.unharmed([MALFORMED[name](evil())]) == {}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("j1_duplicate_key", b'{"pdus":[{"sender":"@a:evil.test","sender":"@v:hub.test"}]}'),
        ("j2_nan", b'{"pdus":[{"content":{"x":NaN}}]}'),
        ("j3_float", b'{"pdus":[{"content":{"users":{"@a:e":100.0}}}]}'),
        ("j3_exponent", b'{"pdus":[{"content":{"x":1e2}}]}'),
        ("j4_integer_of_2_53", b'{"pdus":[{"origin_server_ts":9007199254740992}]}'),
        ("j4_integer_of_2_63", b'{"pdus":[{"origin_server_ts":9223372036854775808}]}'),
        ("j4_integer_of_5000_digits", b'{"pdus":[' + b"9" * 5000 + b"]}"),
        ("j8_brackets", b"[" * 100_000),
        ("j8_thousand_levels", b'{"pdus":[' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"]}"),
        ("j12_not_json", b"pdus"),
        ("j15_trailing_comma", b'{"pdus":[],}'),
        ("j15_comment", b'{"pdus":[]/**/}'),
        ("j15_control_character", b'{"pdus":["\x01"]}'),
        ("j15_bom", b'\xef\xbb\xbf{"pdus":[]}'),
        ("j15_utf16", '{"pdus":[]}'.encode("utf-16")),
        ("j15_surrogate", b'{"pdus":["\\ud800"]}'),
    ],
)
async def test_bodies_that_are_not_our_json(arena: Arena, name: str, body: bytes) -> None:
    """Refused whether the very bytes are signed or what another parser makes of them."""
    path = f"{UNSTABLE}/send/{name}"
    for signed in (body, b'{"pdus":[]}'):
        header = arena.evil.authorization("PUT", path, HUB, signed)
        status, answer = await arena.evil.ask_raw(HUB, "PUT", path, body, header)
        assert (status, answer["errcode"]) == (400, "M_NOT_JSON")
    assert await arena.unharmed([]) == {}


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b"1"])
async def test_j12_bodies_that_are_no_object(arena: Arena, body: bytes) -> None:
    path = f"{UNSTABLE}/send/x"
    header = arena.evil.authorization("PUT", path, HUB, body)
    status, answer = await arena.evil.ask_raw(HUB, "PUT", path, body, header)
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")


async def test_j7_nul_in_content_is_stored_and_comes_back_byte_for_byte(arena: Arena) -> None:
    odd = lpdu(draft("m.room.message", {"body": "a\0b", "\0": 1}, sender=MALLORY))
    status, answer = await arena.send("nul", [odd.fields])
    assert status == 200
    event_id = answer["org.lmserver.accepted"][odd.event_id]
    status, event = await arena.ask("GET", f"{UNSTABLE}/event/{event_id}")
    assert (status, event["content"]) == (200, {"body": "a\0b", "\0": 1})
    assert await arena.problems() == []


async def test_h1_altered_content_is_kept_redacted(arena: Arena) -> None:
    """The signature holds over the redacted event, so the copy without content is all there is."""
    altered = {**evil("signed"), "content": {"body": "changed on the way"}}
    status, answer = await arena.send("h1", [altered])
    [event_id] = answer["org.lmserver.accepted"].values()
    status, event = await arena.ask("GET", f"{UNSTABLE}/event/{event_id}")
    assert (status, event["content"]) == (200, {})
    assert await arena.problems() == []


async def test_s2_b4_another_servers_event_is_refused_whoever_signed_it(arena: Arena) -> None:
    victim = lpdu(message(sender=BOB))
    forged = {**victim.fields, "signatures": {EVIL: {"ed25519:t1": key_of(EVIL).sign_base64(b"")}}}
    for stolen in (victim.fields, forged):
        failed = await arena.unharmed([stolen])
        assert set(failed) == {victim.event_id}


async def test_s4_a_signature_over_the_full_pdu_is_none_over_the_lpdu(arena: Arena) -> None:
    fields = evil()
    view = await arena.engine.view(ROOM)
    assert view is not None
    pdu = hub.complete_lpdu(Lpdu(fields, LM_02), view, key_of(HUB))
    wrong = {EVIL: {"ed25519:t1": key_of(EVIL).sign_base64(pdu.reference_bytes)}}
    assert await arena.unharmed([{**fields, "signatures": wrong}]) == {}


async def test_b1_b2_full_pdus_of_a_participant_are_dropped(arena: Arena) -> None:
    view = await arena.engine.view(ROOM)
    assert view is not None
    own = hub.complete_draft(message(sender=MALLORY), view, key_of(EVIL))
    through = hub.complete_lpdu(lpdu(message(sender=MALLORY), hub_server=EVIL), view, key_of(EVIL))
    assert await arena.unharmed([own.fields, through.fields]) == {}


async def test_b3_s9_another_hub_is_refused(arena: Arena) -> None:
    foreign = lpdu(message(sender=MALLORY), hub_server="other.test")
    assert set(await arena.unharmed([foreign.fields])) == {foreign.event_id}


@pytest.mark.parametrize(
    "event",
    [
        draft("m.room.power_levels", {"users": {MALLORY: 100}}, sender=MALLORY, state_key=""),
        draft("m.room.create", {"room_version": LM_02.id}, sender=MALLORY, state_key=""),
        draft("custom.state", {}, sender=MALLORY, state_key=ALICE),
        member("ban", sender=MALLORY, target=ALICE),
        member("leave", sender=MALLORY, target=BOB),
        member("join", sender=MALLORY, target=BOB),
        member("invite", sender=MALLORY, target=BOB),
        draft("m.room.power_levels", {"ban": "50"}, sender=MALLORY, state_key=""),
        draft("m.room.power_levels", {"users": {"a": 50}}, sender=MALLORY, state_key=""),
    ],
    ids=[
        "a5_raise",
        "a8_create",
        "a17_key",
        "a14_ban",
        "a14_kick",
        "a12_join",
        "a15_invite",
        "a1_text",
        "a2_user",
    ],
)
async def test_what_the_rules_forbid_is_refused_by_the_lpdus_id(arena: Arena, event: Any) -> None:
    sent = lpdu(event)
    failed = await arena.unharmed([sent.fields])
    assert set(failed) == {sent.event_id}
    assert failed[sent.event_id]["error"]


async def test_k5_an_expired_key_signs_nothing_new_however_old_it_says_it_is(arena: Arena) -> None:
    leaked = SigningKey.from_seed(EVIL, "ed25519:old", bytes([7] * 32))
    arena.evil.old_keys["ed25519:old"] = (leaked, now())
    backdated = draft("m.room.message", {"body": "of long ago"}, sender=MALLORY)
    backdated = replace(backdated, origin_server_ts=backdated.origin_server_ts - 86_400_000)
    assert await arena.unharmed([build_lpdu(backdated, LM_02, HUB, leaked).fields]) == {}


async def test_b6_the_same_lpdu_in_many_transactions_is_one_event(arena: Arena) -> None:
    sent = lpdu(message("once", sender=MALLORY))
    answers = [await arena.send(f"b6-{n}", [sent.fields, sent.fields]) for n in range(3)]
    assert len({a["org.lmserver.accepted"][sent.event_id] for _, a in answers}) == 1
    view = await arena.engine.view(ROOM)
    assert view is not None
    assert view.head_position == 6


async def test_b20_limits_refuse_the_whole_transaction(arena: Arena) -> None:
    before = await arena.engine.view(ROOM)
    many = [lpdu(message(str(n), sender=MALLORY)).fields for n in range(51)]
    for pdus, more in ((many, {}), ([], {"edus": [{}] * 101}), ({}, {}), ("x", {}), (None, {})):
        status, answer = await arena.send("b20", pdus, **more)
        assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
    assert await arena.engine.view(ROOM) == before


async def test_b15_ids_of_other_rooms_do_not_exist(arena: Arena) -> None:
    other = f"!other:{HUB}"
    await arena.engine.create(LM_02, opening(room_id=other))
    there = await arena.engine.view(other)
    assert there is not None
    quoted = there.head_event_id
    for uri in (
        f"/_matrix/federation/v1/state/{ROOM}?event_id={quoted}",
        f"/_matrix/federation/v1/state_ids/{ROOM}?event_id={quoted}",
        f"{UNSTABLE}/backfill/{ROOM}?v={quoted}&limit=5",
        f"{UNSTABLE}/event/{quoted}",
        f"{UNSTABLE}/backfill/{other}?v={quoted}&limit=5",
    ):
        status, answer = await arena.ask("GET", uri)
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), uri
