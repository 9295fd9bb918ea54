"""Hostile hubs, participants and strangers against membership: rows of the attack list by their id."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lmserver.protocol import canonical_json, hub
from lmserver.protocol.events import EventDraft, Lpdu, Pdu, parse_lpdu
from lmserver.protocol.room_versions import LM_02, LM_02_ID
from lmserver.protocol.signatures import check_event_signatures
from lmserver.rooms import declines
from lmserver.rooms.outcomes import MembershipError, Rejected
from lmserver.rooms.outsiders import newest
from lmserver.storage import outside
from lmserver.storage.database import Database
from tests.evilpeer.arena import Arena
from tests.evilpeer.hub import JoinAnswer
from tests.evilpeer.peer import UNSTABLE, Received
from tests.evilpeer.prey import Prey
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    KEYS,
    MALLORY,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    draft,
    key_of,
    lpdu,
    member,
    message,
    now,
    opening,
)  # fmt: skip
from tests.kit.waiting import HANGS, eventually

V1, V3 = "/_matrix/federation/v1", "/_matrix/federation/v3"


@pytest.fixture
async def prey(db: Database, tmp_path: Path) -> AsyncIterator[Prey]:
    async with Prey(db, tmp_path) as made:
        yield made


# -- a hostile hub: templates and answers ---------------------------------------------------------

TEMPLATES: dict[str, Any] = {
    "t1_type": {"type": "m.room.power_levels", "state_key": "", "content": {"users": {MALLORY: 100}}},
    "t1_sender_and_room": {"sender": f"@victim:{PARTICIPANT}", "room_id": f"!other:{HUB}"},
    "t2_content": {"content": {"membership": "join", "join_authorised_via_users_server": ALICE}, "x": 1},
    "t3_hub_and_hashes": {"hub_server": EVIL, "hashes": {"lpdu": {"sha256": "A"}}, "signatures": {},
                          "origin_server_ts": 1, "prev_events": ["$x"], "auth_events": []},
}  # fmt: skip


def _ours(sent: Lpdu, membership: str) -> None:
    """Everything in it is what our server would have said without any template."""
    assert (sent.type, sent.sender, sent.state_key, sent.room_id) == ("m.room.member", BOB, BOB, ROOM)
    assert (sent.membership, sent.hub_server) == (membership, HUB)
    assert set(sent.content) <= {"membership", "displayname", "reason"}
    assert set(sent.fields) == {"content", "hashes", "hub_server", "origin_server_ts", "room_id", "sender",
                                "signatures", "state_key", "type"}  # fmt: skip
    check_event_signatures(sent, KEYS)


async def invited(prey: Prey, room: RoomBuilder | None = None) -> Pdu:
    """Bob is invited by the hub; the invite stands in the hub's room."""
    builder = prey.hub.room if room is None else room
    pdu = builder.add(member("invite", target=BOB))
    status, answer = await prey.hub.invite(PARTICIPANT, f"i{now()}", pdu.fields)
    assert status == 200, answer
    return pdu


@pytest.mark.parametrize("name", list(TEMPLATES))
async def test_t1_t2_t3_we_sign_our_own_leave_whatever_the_template_says(prey: Prey, name: str) -> None:
    """The hole of CVE-2026-24471: a template that makes a server sign any event."""
    await invited(prey)
    prey.hub.template["event"] = TEMPLATES[name]
    await prey.victim.server.membership.leave(BOB, ROOM)
    [request] = prey.hub.requests("send_leave")
    _ours(parse_lpdu(request.json, LM_02), "leave")


@pytest.mark.parametrize("name", list(TEMPLATES))
async def test_t1_t2_t3_we_sign_our_own_knock_whatever_the_template_says(prey: Prey, name: str) -> None:
    prey.hub.template["event"] = TEMPLATES[name]
    await prey.victim.server.membership.knock(BOB, ROOM, [HUB])
    [request] = prey.hub.requests("send_knock")
    _ours(parse_lpdu(request.json, LM_02), "knock")


@pytest.mark.parametrize("version", ["11", "I.2", "", 5, None, ["I.1"]])
async def test_t9_a_knock_at_an_unknown_room_version_is_not_signed(prey: Prey, version: Any) -> None:
    prey.hub.template["room_version"] = version
    with pytest.raises(MembershipError):
        await prey.victim.server.membership.knock(BOB, ROOM, [HUB])
    assert prey.hub.requests("send_knock") == []


@pytest.mark.parametrize("bare", [True, False])
async def test_templates_of_both_forms_are_understood(prey: Prey, bare: bool) -> None:
    """The draft's bare template names no version: each is asked for alone until one is taken."""

    async def make(request: Received) -> web.StreamResponse:
        template = {"type": "m.room.member", "state_key": BOB, "sender": BOB, "content": {}}
        if not bare:
            return web.json_response({"event": template, "room_version": LM_02_ID})
        if "ver=I.1" in request.path and LM_02_ID not in request.path:
            body = {"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "no"}
            return web.json_response(body, status=400)
        return web.json_response(template)

    prey.hub.answers["make_join"] = make
    await prey.join()
    assert await prey.victim.problems(ROOM) == []


JUNK_STATE: dict[str, Any] = {
    "null": None,
    "object": {},
    "text": "x" * 1000,
    "entries_of_no_kind": [None, 5, "x", [], {}, True],
    "wrong_types": [
        {"type": 5, "state_key": "", "sender": ALICE, "content": {}},
        {"type": "m.room.name", "state_key": 5, "sender": ALICE, "content": {}},
        {"type": "m.room.name", "state_key": "", "sender": "alice", "content": {}},
        {"type": "m.room.name", "state_key": "", "sender": ALICE, "content": []},
        {"type": "m.room.name", "sender": ALICE, "content": {}},
    ],
    "many": [{"type": "m.room.name", "state_key": str(n), "sender": ALICE, "content": {}} for n in range(10_000)],
    "huge": [
        {"type": "m.room.topic", "state_key": "", "sender": ALICE, "content": {"topic": "x" * 3_000_000}},
        {"type": "m.room.name", "state_key": "", "sender": ALICE, "content": {"name": "kept"}},
    ],
    "odd_content": [
        {"type": "m.room.avatar", "state_key": "", "sender": ALICE, "content": {"url": "javascript:alert(1)"},
         "unsigned": {"age": 1}, "event_id": "$x", "signatures": {}},
        {"type": "m.room.create", "state_key": "", "sender": ALICE, "content": {"__proto__": {"x": [None]}}},
        {"type": "m.room.member", "state_key": BOB, "sender": ALICE, "content": {"membership": "join"}},
    ],
}  # fmt: skip


async def rooms_of_bob(prey: Prey) -> Any:
    """What a client of Bob's sees that has just logged in."""
    server = prey.victim.server
    login = await server.accounts.log_in(BOB, None, None)
    async with TestClient(TestServer(server.client_app)) as http:
        headers = {"Authorization": f"Bearer {login.access_token}"}
        async with http.get("/_matrix/client/v3/sync?timeout=0", headers=headers) as response:
            assert response.status == 200
            return (await response.json())["rooms"]


def _is_clean(events: list[dict[str, Any]]) -> None:
    assert len(events) <= 33  # 32 and the member event we have checked ourselves
    assert len(canonical_json.encode(events)) < 70_000
    assert all(set(e) == {"type", "state_key", "sender", "content"} for e in events)
    [own] = [e for e in events if (e["type"], e["state_key"]) == ("m.room.member", BOB)]
    assert own["content"]["membership"] in ("invite", "knock")


@pytest.mark.parametrize("name", list(JUNK_STATE))
async def test_i3_junk_in_stripped_state_harms_no_sync(prey: Prey, name: str) -> None:
    pdu = prey.hub.room.add(member("invite", target=BOB))
    content = {"event": pdu.fields, "room_version": LM_02_ID, "invite_room_state": JUNK_STATE[name]}
    status, answer = await prey.hub.ask(PARTICIPANT, "POST", f"{UNSTABLE}/invite/i3", content)
    assert status == 200, answer
    rooms = await rooms_of_bob(prey)
    _is_clean(rooms["invite"][ROOM]["invite_state"]["events"])


@pytest.mark.parametrize("name", list(JUNK_STATE))
@pytest.mark.parametrize("key", ["stripped_state", "knock_room_state"])
async def test_i3_junk_in_the_answer_to_a_knock_harms_no_sync(prey: Prey, name: str, key: str) -> None:
    async def answer(request: Received) -> web.StreamResponse:
        body = canonical_json.encode({key: JUNK_STATE[name], "org.lmserver.event_id": {"x": 1}})
        return web.Response(body=body, content_type="application/json")

    prey.hub.answers["send_knock"] = answer
    await prey.victim.server.membership.knock(BOB, ROOM, [HUB])
    rooms = await rooms_of_bob(prey)
    _is_clean(rooms["knock"][ROOM]["knock_state"]["events"])


# -- a hostile hub: the state that a join comes with ----------------------------------------------


def forced(room: RoomBuilder, event: EventDraft) -> Pdu:
    """What no rule allows, signed by all whose signature is needed."""
    key = room.key
    if event.server == key.server_name:
        return hub.complete_draft(event, room.view, key)
    return hub.complete_lpdu(lpdu(event, hub_server=key.server_name), room.view, key)


def with_state(room: RoomBuilder, make: Any) -> Any:
    """A change of the answer that adds an event to the state, as if it had been appended."""

    def change(answer: JoinAnswer) -> JoinAnswer:
        extra: Pdu = make(room)
        return JoinAnswer(answer.event, [*answer.state, extra.fields], answer.auth_chain)

    return change


NOT_ALLOWED: dict[str, Any] = {
    "levels_of_nobody": lambda r: forced(r, draft("m.room.power_levels", {"users": {MALLORY: 100}},
                                                  sender=MALLORY, state_key="")),
    "member_set_by_another": lambda r: forced(r, member("join", sender=MALLORY, target=f"@v:{EVIL}")),
    "second_create": lambda r: forced(r, draft("m.room.create", {"room_version": LM_02_ID}, state_key="again")),
    "state_of_a_stranger": lambda r: forced(r, draft("m.room.topic", {"topic": "x"}, sender=MALLORY, state_key="")),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NOT_ALLOWED))
async def test_s3_state_that_no_rule_allows_refuses_the_join(prey: Prey, name: str) -> None:
    """Signed by all it needs, but not an event a hub could have appended."""
    prey.hub.change = with_state(prey.hub.room, NOT_ALLOWED[name])
    with pytest.raises(MembershipError):
        await prey.join()
    await prey.nothing_stored()


async def test_s3_control_the_same_with_state_that_is_allowed(prey: Prey) -> None:
    allowed = draft("m.room.topic", {"topic": "x"}, state_key="")
    prey.hub.change = with_state(prey.hub.room, lambda room: forced(room, allowed))
    await prey.join()
    view = await prey.victim.engine.view(ROOM)
    assert view is not None
    assert view.get("m.room.topic") is not None


async def test_a9_a_room_under_another_servers_id_is_not_joined(prey: Prey) -> None:
    """The room ID of one server, the create event of another."""
    stolen = [
        EventDraft(ROOM, "m.room.create", MALLORY, {"room_version": LM_02_ID}, now(), ""),
    ]
    created = hub._hash_and_sign(  # a create event that its own rules forbid
        {**stolen[0].fields(), "auth_events": [], "prev_events": []}, LM_02, key_of(EVIL), {}
    )
    view = hub.view_of_create(created)
    joined = hub.complete_draft(member("join", sender=MALLORY), view, key_of(EVIL))
    rules = draft("m.room.join_rules", {"join_rule": "public"}, sender=MALLORY, state_key="")
    view = hub.advance(view, joined)
    opened = hub.complete_draft(rules, view, key_of(EVIL))
    view = hub.advance(view, opened)

    async def answer(request: Received) -> web.StreamResponse:
        sent = parse_lpdu(request.json, LM_02)
        event = hub.complete_lpdu(sent, view, key_of(EVIL))
        state = [created.fields, joined.fields, opened.fields]
        body = {"event": event.fields, "state": state, "auth_chain": state}
        return web.Response(body=canonical_json.encode(body), content_type="application/json")

    prey.evil.answers["send_join"] = answer
    await prey.hub.stop()
    with pytest.raises(MembershipError):
        await prey.join(EVIL)
    assert prey.evil.requests("send_join")
    await prey.nothing_stored()


async def test_a22_a_refused_event_does_not_come_back_with_a_rejoin(prey: Prey) -> None:
    """CVE-2022-39374: what the rules refused once is no state later, whoever says so."""
    room = prey.hub.room
    room.add(draft("m.room.power_levels", {"users": {ALICE: 100}, "state_default": 0}, state_key=""))
    room.add(member("join", sender=MALLORY))
    while_in = room.view.state
    room.add(member("leave", target=MALLORY))
    await prey.join()
    # By what it cites it would be allowed, but what it cites was over.
    stale = replace(room.view, state=while_in)
    topic = lpdu(draft("m.room.topic", {"topic": "x"}, sender=MALLORY, state_key=""))
    bad = room.force(hub.complete_lpdu(topic, stale, room.key))
    assert await prey.hub.deliver(PARTICIPANT, "bad", bad) == {}
    kick = room.add(member("leave", target=BOB))
    assert await prey.hub.deliver(PARTICIPANT, "kick", kick) == {}
    with pytest.raises(MembershipError):
        await prey.join()
    view = await prey.victim.engine.view(ROOM)
    assert view is not None
    assert view.get("m.room.topic") is None
    assert view.membership(BOB) == "leave"


# -- strangers: news for users outside ------------------------------------------------------------


async def state_of_bob(prey: Prey) -> str | None:
    known = await newest(prey.db, BOB, ROOM)
    return None if known is None else known.membership


def _kick(room: RoomBuilder, **changes: Any) -> dict[str, Any]:
    return {**forced(room, member("leave", target=BOB)).fields, **changes}


NEWS: dict[str, Any] = {
    "no_signature": lambda r: _kick(r, signatures={}),
    "signed_by_another": lambda r: _kick(r, signatures={EVIL: _kick(r)["signatures"][HUB]}),
    "of_another_room": lambda r: _kick(r, room_id=f"!other:{HUB}"),
    "by_our_own_user": lambda r: forced(r, member("leave", sender=f"@x:{PARTICIPANT}", target=BOB)).fields,
    "by_himself": lambda r: {**forced(r, member("leave", sender=BOB)).fields,
                             "signatures": {HUB: forced(r, member("leave", sender=BOB)).fields["signatures"][HUB]}},
    "a_join": lambda r: forced(r, member("join", sender=ALICE, target=BOB)).fields,
    "no_member_event": lambda r: forced(r, draft("m.room.topic", {}, state_key=BOB)).fields,
    "a_message": lambda r: forced(r, message("psst")).fields,
    "for_nobody": lambda r: forced(r, member("leave", target=f"@nobody:{PARTICIPANT}")).fields,
    "for_another_server": lambda r: forced(r, member("leave", target=MALLORY)).fields,
    "another_hub": lambda r: {**lpdu(member("leave", sender=MALLORY, target=BOB), hub_server=EVIL).fields,
                              "auth_events": [], "prev_events": ["$" + "a" * 43]},
    "an_lpdu": lambda r: lpdu(member("leave", sender=MALLORY, target=BOB)).fields,
}  # fmt: skip


@pytest.mark.parametrize("name", list(NEWS))
async def test_b14_only_the_hub_ends_a_membership_from_outside(prey: Prey, name: str) -> None:
    await invited(prey)
    fields = NEWS[name](prey.hub.room)
    for sender in (prey.hub, prey.evil):
        status, answer = await sender.send(PARTICIPANT, f"t{now()}", [fields, None, {}])
        assert status == 200, answer
        assert await state_of_bob(prey) == "invite"
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships") == 1
    assert await prey.db.fetchval("SELECT count(*) FROM events") == 0


async def test_b14_another_server_cannot_withdraw_an_invite(prey: Prey) -> None:
    await invited(prey)
    kick = forced(prey.hub.room, member("leave", target=BOB))
    assert (await prey.evil.send(PARTICIPANT, "evil", [kick.fields]))[0] == 200
    assert await state_of_bob(prey) == "invite"
    assert await prey.hub.deliver(PARTICIPANT, "hub", kick) == {}
    assert await state_of_bob(prey) == "leave"


async def test_b14_news_of_rooms_without_any_tie_leave_nothing_behind(prey: Prey) -> None:
    """Bans of people who were never invited would fill our tables at any server's wish."""
    for n in range(20):
        room_id = f"!r{n}:{EVIL}"
        builder = RoomBuilder(opening(creator=MALLORY, room_id=room_id))
        ban = builder.add(member("ban", sender=MALLORY, target=BOB, room_id=room_id))
        assert (await prey.evil.send(PARTICIPANT, f"ban{n}", [ban.fields]))[0] == 200
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships") == 0
    assert await prey.db.fetchval("SELECT count(*) FROM outside_rooms") == 0


async def test_b5_an_old_withdrawal_does_not_undo_a_new_invite(prey: Prey) -> None:
    """Delivered late, or replayed: it cites the invite it ended, which is not this one."""
    room = prey.hub.room
    await invited(prey)
    kick = room.add(member("leave", target=BOB))
    await invited(prey)
    for txn in ("late", "again"):
        await prey.hub.send(PARTICIPANT, txn, [kick.fields])
        assert await state_of_bob(prey) == "invite"
    second = room.add(member("ban", target=BOB))
    assert await prey.hub.deliver(PARTICIPANT, "ban", second) == {}
    assert await state_of_bob(prey) == "ban"


async def test_b5_a_ban_from_while_we_were_asked_ends_an_invite_that_never_was(prey: Prey) -> None:
    """The hub's user banned Bob while Bob's server was signing the invite, which then had no place."""
    room = prey.hub.room
    stripped = [{"type": "m.room.join_rules", "state_key": "", "sender": ALICE, "content": {}}]
    asked = forced(room, member("invite", target=BOB))
    ban = room.add(member("ban", target=BOB))
    assert (await prey.hub.invite(PARTICIPANT, "i", asked.fields, stripped=stripped))[0] == 200
    assert await state_of_bob(prey) == "invite"
    assert await prey.hub.deliver(PARTICIPANT, "ban", ban) == {}
    assert await state_of_bob(prey) == "ban"
    # A first ban from long before, delivered late, is none of that kind: the invite cites what followed.
    unban = room.add(member("leave", target=BOB))
    room.add(member("invite", target=BOB))
    invite = await invited(prey)
    assert unban.event_id not in invite.auth_events
    for late in (ban, unban):
        await prey.hub.send(PARTICIPANT, f"late{late.event_id}", [late.fields])
        assert await state_of_bob(prey) == "invite"


async def test_what_a_user_did_when_its_server_was_just_put_out_is_told(prey: Prey) -> None:
    """Carol declines by `send` while the kick of her server's last user is on its way, and is invited
    again by a hub that still believed her server to be in the room."""
    carol = f"@carol:{PARTICIPANT}"
    await prey.victim.server.accounts.register("carol", "a password of carol")
    await prey.join()
    room = prey.hub.room
    events = [
        room.add(member("invite", target=carol)),
        room.add(member("leave", target=BOB)),
        room.add(member("leave", sender=carol)),
        room.add(member("invite", target=carol)),
    ]
    seen = []
    for n, event in enumerate(events):
        await prey.hub.send(PARTICIPANT, f"t{n}", [event.fields])
        known = await newest(prey.db, carol, ROOM)
        seen.append(None if known is None else known.membership)
    assert seen == ["invite", "invite", "leave", "invite"]
    await prey.hub.send(PARTICIPANT, "again", [e.fields for e in events])
    known = await newest(prey.db, carol, ROOM)
    assert known is not None
    assert (known.membership, known.event_id) == ("invite", events[-1].event_id)


async def test_an_invite_its_hub_does_not_know_ends_with_the_first_try_to_join(prey: Prey) -> None:
    asked = forced(prey.hub.room, member("invite", target=BOB))
    assert (await prey.hub.invite(PARTICIPANT, "i", asked.fields))[0] == 200

    async def refuse(request: Received) -> web.StreamResponse:
        return web.json_response({"errcode": "M_FORBIDDEN", "error": "not invited"}, status=403)

    prey.evil.answers["make_join"] = refuse
    prey.hub.answers["make_join"] = prey.evil.answers["make_join"]
    with pytest.raises(MembershipError):
        await prey.victim.server.membership.join(BOB, ROOM, [EVIL])
    assert await state_of_bob(prey) == "leave"


async def test_h3_a_withdrawal_with_altered_content_ends_it_without_its_words(prey: Prey) -> None:
    """A wrong hash leaves the redacted copy, whose membership counts and whose reason is not shown."""
    await invited(prey)
    kick = forced(
        prey.hub.room, draft("m.room.member", {"membership": "leave", "reason": "x"}, state_key=BOB)
    )
    altered = {**kick.fields, "content": {"membership": "leave", "reason": "lies"}}
    assert (await prey.hub.send(PARTICIPANT, "t", [altered]))[0] == 200
    known = await outside.get(prey.db, BOB, ROOM)
    assert known is not None and known.event is not None
    assert (known.membership, b"lies" in known.event) == ("leave", False)


# -- strangers: invites ---------------------------------------------------------------------------


async def test_i5_an_invite_to_a_room_we_are_in_goes_through_the_list(prey: Prey) -> None:
    await prey.join()
    await prey.victim.server.accounts.register("carol", "a password of carol")
    carol = f"@carol:{PARTICIPANT}"
    pdu = prey.hub.room.add(member("invite", target=carol))
    status, answer = await prey.hub.invite(PARTICIPANT, "i5", pdu.fields)
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships") == 0
    assert await prey.hub.deliver(PARTICIPANT, "list", pdu) == {}
    view = await prey.victim.engine.view(ROOM)
    assert view is not None
    assert view.membership(carol) == "invite"


async def test_i5_an_invite_from_who_is_not_the_hub_is_not_signed(prey: Prey) -> None:
    """Whose room ID it is tells the hub; a server that says otherwise wants to be taken for it."""
    builder = RoomBuilder(opening(creator=MALLORY, room_id=f"!theirs:{EVIL}"))
    event = EventDraft(ROOM, "m.room.member", MALLORY, {"membership": "invite"}, now(), BOB)
    pdu = hub.complete_draft(event, builder.view, key_of(EVIL))
    status, answer = await prey.evil.invite(PARTICIPANT, "i5", pdu.fields)
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    relayed = prey.hub.room.add(member("invite", target=BOB))
    status, answer = await prey.evil.invite(PARTICIPANT, "i5b", relayed.fields)
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    assert await state_of_bob(prey) is None


# -- a hostile participant ------------------------------------------------------------------------


async def test_a12_nobody_joins_the_creator_right_after_the_create_event(arena: Arena) -> None:
    """Rule 5.2.1 read by the letter lets anybody do it."""
    room_id = f"!fresh:{HUB}"
    await arena.engine.create(LM_02, opening(room_id=room_id)[:1])
    event = lpdu(member("join", sender=MALLORY, target=ALICE, room_id=room_id))
    for attempt in (
        ("PUT", f"{UNSTABLE}/send/a12", {"pdus": [event.fields]}),
        ("POST", f"{V3}/send_join/a12", event.fields),
    ):
        status, _ = await arena.ask(*attempt)
        assert status in (200, 400, 403)
    view = await arena.engine.view(room_id)
    assert view is not None
    assert (view.head_position, view.membership(ALICE)) == (0, "leave")


@pytest.mark.parametrize("change", ["join", "leave", "knock"])
async def test_t4_t5_make_is_for_ones_own_users_and_signs_nothing(arena: Arena, change: str) -> None:
    other = f"@new:{PARTICIPANT}"
    status, answer = await arena.ask("GET", f"{V1}/make_{change}/{ROOM}/{other}?ver={LM_02_ID}")
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    status, answer = await arena.ask("GET", f"{V1}/make_{change}/{ROOM}/{MALLORY}?ver={LM_02_ID}")
    assert status in (200, 403)
    if status == 200:
        assert "signatures" not in answer and "signatures" not in answer["event"]
        assert "hashes" not in answer and "hashes" not in answer["event"]
    for user in ("mallory", "@mallory", "@m:a:b:c", "%00", "@m%00:evil.test"):
        status, _ = await arena.ask("GET", f"{V1}/make_{change}/{ROOM}/{user}?ver={LM_02_ID}")
        assert status in (400, 403, 404)


@pytest.mark.parametrize("name", ["send_join", "send_leave", "send_knock"])
async def test_t6_what_is_sent_has_to_be_the_change_itself(arena: Arena, name: str) -> None:
    """Another type, another membership, another's, somebody else's signature, another room's."""
    membership = name.removeprefix("send_")
    before = await arena.engine.view(ROOM)
    other = "leave" if membership != "leave" else "join"
    bad = [
        lpdu(message(sender=MALLORY)).fields,
        lpdu(member(other, sender=MALLORY)).fields,
        lpdu(member(membership, sender=MALLORY, target=BOB)).fields,
        lpdu(member(membership, sender=BOB)).fields,
        lpdu(member(membership, sender=MALLORY), hub_server=EVIL).fields,
        lpdu(member(membership, sender=MALLORY, room_id=f"!none:{HUB}")).fields,
        {**lpdu(member(membership, sender=MALLORY)).fields, "signatures": {}},
        {"room_id": ROOM, "type": "m.room.member"},
        {},
    ]
    for n, fields in enumerate(bad):
        status, answer = await arena.ask("POST", f"{V3}/{name}/t6{n}", fields)
        assert status in (400, 403, 404), (n, answer)
    assert await arena.engine.view(ROOM) == before
    assert await arena.problems() == []


async def test_t8_a23_a_ban_counts_from_the_place_it_has_in_the_list(arena: Arena) -> None:
    """Whatever waited when the ban was placed comes after it and is refused."""
    events = [lpdu(message(f"{n}", sender=MALLORY)) for n in range(30)]
    joins = [lpdu(member("join", sender=MALLORY)) for _ in range(5)]

    async def one(event: Lpdu) -> Any:
        return (await arena.engine.accept_lpdus(ROOM, [event]))[0]

    work = [one(event) for event in (*events[:15], *joins)]
    late = [one(event) for event in events[15:]]
    ban = arena.engine.send([member("ban", target=MALLORY)])
    *outcomes, [banned] = await asyncio.gather(*work, *late, ban)
    placed = [o.position for o in outcomes if not isinstance(o, Rejected)]
    assert all(position < banned.position for position in placed)
    for attempt in (lpdu(message("after", sender=MALLORY)), lpdu(member("join", sender=MALLORY))):
        assert isinstance(await one(attempt), Rejected)
    view = await arena.engine.view(ROOM)
    assert view is not None
    assert view.membership(MALLORY) == "ban"
    assert await arena.problems() == []


async def test_b14_unknown_rooms_and_rooms_of_another_hub(arena: Arena) -> None:
    """404 for what we do not know, and the hub's name where we are not it."""
    made = f"?ver={LM_02_ID}"
    for path in (f"make_join/!none:{HUB}/{MALLORY}{made}", f"make_leave/!none:{HUB}/{MALLORY}",
                 f"make_knock/!none:{HUB}/{MALLORY}{made}", f"make_join/nonsense/{MALLORY}{made}"):  # fmt: skip
        status, answer = await arena.ask("GET", f"{V1}/{path}")
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    await arena.db.execute("UPDATE rooms SET hub_server = $1 WHERE room_id = $2", PARTICIPANT, ROOM)
    arena.engine._turns.forget(ROOM)
    event = lpdu(member("join", sender=MALLORY)).fields
    invite = {
        "event": lpdu(member("invite", sender=MALLORY, target=f"@x:{EVIL}")).fields,
        "room_version": LM_02_ID,
    }
    for method, path, content in (
        ("GET", f"{V1}/make_join/{ROOM}/{MALLORY}{made}", None),
        ("GET", f"{V1}/make_leave/{ROOM}/{MALLORY}", None),
        ("GET", f"{V1}/make_knock/{ROOM}/{MALLORY}{made}", None),
        ("POST", f"{V3}/send_join/b1", event),
        ("POST", f"{V3}/send_leave/b2", event),
        ("POST", f"{V3}/send_knock/b3", event),
        ("POST", f"{V3}/invite/b4", invite),
    ):
        status, answer = await arena.ask(method, path, content)
        assert (status, answer["errcode"]) == (400, "M_WRONG_SERVER"), path
        assert answer["org.lmserver.hub"] == PARTICIPANT


async def test_b16_a_banned_server_reads_up_to_its_ban_and_gets_nothing_more(arena: Arena) -> None:
    [seen] = await arena.engine.send([message("before")])
    [ban] = await arena.engine.send([member("ban", target=MALLORY)])
    [hidden] = await arena.engine.send([message("after")])
    assert not any(isinstance(o, Rejected) for o in (seen, ban, hidden))
    assert (await arena.ask("GET", f"{UNSTABLE}/event/{seen.event_id}"))[0] == 200
    for path in (f"{UNSTABLE}/event/{hidden.event_id}", f"{V1}/state/{ROOM}?event_id={hidden.event_id}",
                 f"{V1}/state_ids/{ROOM}?event_id={hidden.event_id}",
                 f"{UNSTABLE}/backfill/{ROOM}?v={hidden.event_id}&limit=10"):  # fmt: skip
        status, answer = await arena.ask("GET", path)
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), path
    assert (await arena.ask("GET", f"{V1}/make_join/{ROOM}/{MALLORY}?ver={LM_02_ID}"))[0] == 403
    ranges = "SELECT max(least(until_position, 1000)) FROM outbound_ranges WHERE destination = $1"
    last = await arena.db.fetchval(ranges, EVIL)
    assert last is None or last <= ban.position


# -- floods ---------------------------------------------------------------------------------------


def knock_with(reason: str, sender: str, room_id: str) -> Lpdu:
    content = {"membership": "knock", "reason": reason}
    return lpdu(EventDraft(room_id, "m.room.member", sender, content, now(), sender))


async def test_i7_a_knock_is_no_place_for_a_book(arena: Arena) -> None:
    room_id = f"!door:{HUB}"
    await arena.engine.create(LM_02, opening(room_id=room_id, join_rule="knock"))
    stranger = f"@stranger:{EVIL}"
    status, answer = await arena.ask(
        "POST", f"{V3}/send_knock/i7", knock_with("x" * 60_000, stranger, room_id).fields
    )
    assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
    status, _ = await arena.ask(
        "POST", f"{V3}/send_knock/i7b", knock_with("x" * 4096, stranger, room_id).fields
    )
    assert status == 200


@pytest.mark.parametrize(
    "config", [{"limits": {"federation_knock": {"burst": 1000}, "knock": {"per_second": 0.001, "burst": 3}}}]
)
async def test_i7_a_user_who_knocks_again_and_again_is_told_to_wait(arena: Arena) -> None:
    """By user here; by server it is the endpoint's own limit, as every endpoint has one."""
    room_id = f"!door:{HUB}"
    await arena.engine.create(LM_02, opening(room_id=room_id, join_rule="knock"))
    answers = []
    for n in range(6):
        event = knock_with(str(n), f"@stranger:{EVIL}", room_id)
        answers.append(await arena.ask("POST", f"{V3}/send_knock/i7{n}", event.fields))
    assert [status for status, _ in answers] == [200, 200, 200, 429, 429, 429]
    assert answers[-1][1]["retry_after_ms"] > 1000
    other = knock_with("other", f"@other:{EVIL}", room_id)
    assert (await arena.ask("POST", f"{V3}/send_knock/i7o", other.fields))[0] == 200


async def test_r4_a_compressed_body_is_not_unpacked(arena: Arena) -> None:
    """64 KB that would be 64 MB, offered to every endpoint of membership that takes a body."""
    bomb = gzip.compress(b'{"room_id":"' + b"x" * 64_000_000 + b'"}')
    for name in ("send_join", "send_leave", "send_knock", "invite"):
        path = f"{V3}/{name}/r4"
        header = arena.evil.authorization("POST", path, HUB, bomb)
        status, _ = await arena.evil.ask_raw(HUB, "POST", path, bomb, header)
        assert status in (400, 401, 413, 415)


async def test_r3_multipart_is_no_json(arena: Arena) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="event"\r\n\r\n{}\r\n' * 1000 + b"--x--\r\n"
    path = f"{V3}/invite/r3"
    header = arena.evil.authorization("POST", path, HUB, b"{}")
    status, answer = await arena.evil.ask_raw(HUB, "POST", path, body, header)
    assert status in (400, 401), answer


async def test_r12_hundreds_of_dead_servers_in_a_room_cost_a_row_each(arena: Arena) -> None:
    """The live one gets everything at once; the dead ones wait without a task of their own."""
    dead = [f"@u:s{n}.test" for n in range(200)]
    for first in range(0, len(dead), 50):
        joins = [lpdu(member("join", sender=user)) for user in dead[first : first + 50]]
        outcomes = await arena.engine.accept_lpdus(ROOM, joins)
        assert not any(isinstance(outcome, Rejected) for outcome in outcomes)
    sender = arena.victim.server.sender
    await sender.start()
    sent = [(await arena.engine.send([message(f"{n}")]))[0] for n in range(20)]
    assert not any(isinstance(outcome, Rejected) for outcome in sent)
    live = arena.peers[PARTICIPANT]

    def delivered() -> int:
        return sum(len(request.json["pdus"]) for request in live.requests("send"))

    async def done() -> bool:
        failing = await arena.db.fetchval("SELECT count(*) FROM destinations WHERE failures > 0")
        return delivered() >= 20 and failing >= 200

    await eventually(done, 4 * HANGS)
    await arena.engine.send([message("one more")])
    tasks = [t for t in asyncio.all_tasks() if "s1" in t.get_name() or ".test" in t.get_name()]
    assert len(tasks) < 60
    assert (
        await arena.db.fetchval("SELECT count(*) FROM outbound_ranges WHERE destination LIKE 's%.test'")
        == 200
    )
    assert await arena.db.fetchval("SELECT count(*) FROM outbound_transactions") <= 202


# -- peers as they are ----------------------------------------------------------------------------


async def test_an_invite_of_a_hub_without_leave_endpoints_is_declined(prey: Prey) -> None:
    """One known peer answers with a page of HTML: there is nobody to tell, now or later."""
    await invited(prey)

    async def html(request: Received) -> web.StreamResponse:
        return web.Response(status=404, text="<h1>Cannot GET</h1>", content_type="text/html")

    prey.hub.answers["make_leave"] = html
    await prey.victim.server.membership.leave(BOB, ROOM)
    assert await state_of_bob(prey) == "leave"
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships WHERE tell_at IS NOT NULL") == 0


@pytest.mark.parametrize("answer", ["never", "busy", "limited", "keyless", "nonsense"])
async def test_a_hub_that_does_not_answer_cannot_hold_an_invite_open(
    prey: Prey, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone for the user in bounded time; the hub is told when it answers."""
    monkeypatch.setattr(declines, "TELL_SECONDS", 2.0)
    await invited(prey)
    released = asyncio.Event()

    async def stall(request: Received) -> web.StreamResponse:
        if answer == "never":
            await released.wait()
        if answer == "nonsense":
            return web.Response(body=b"[", content_type="application/json")
        status = {"limited": 429, "keyless": 401}.get(answer, 503)
        return web.json_response({"errcode": "M_FORBIDDEN"}, status=status)

    prey.hub.answers["send_leave"] = stall
    await asyncio.wait_for(prey.victim.server.membership.leave(BOB, ROOM), 15)  # half of what requests wait
    released.set()
    monkeypatch.undo()
    assert await state_of_bob(prey) == "leave"
    prey.hub.answers["send_leave"] = prey.hub._send_leave
    await prey.db.execute("UPDATE outside_memberships SET tell_at = 0")
    assert await prey.victim.server.declines.check() == 1
    first, *_, last = prey.hub.requests("send_leave")
    assert first.json == last.json  # the very same LPDU: a hub that took it twice has it once
    _ours(parse_lpdu(last.json, LM_02), "leave")
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships WHERE tell_at IS NOT NULL") == 0


async def test_a_knock_of_which_the_hub_tells_no_id_is_denied(prey: Prey) -> None:
    """The draft's answer has no event: any denial of this hub counts until one is known."""
    prey.hub.room.force(
        forced(prey.hub.room, draft("m.room.join_rules", {"join_rule": "knock"}, state_key=""))
    )
    await prey.victim.server.membership.knock(BOB, ROOM, [HUB])
    assert await state_of_bob(prey) == "knock"
    [request] = prey.hub.requests("send_knock")
    knock = prey.hub.room.add(parse_lpdu(request.json, LM_02))
    denial = prey.hub.room.add(member("leave", target=BOB))
    assert knock.event_id in denial.auth_events
    assert await prey.hub.deliver(PARTICIPANT, "denied", denial) == {}
    assert await state_of_bob(prey) == "leave"


NOT_THE_HUB: dict[str, Any] = {
    "draft": (400, {"errcode": "M_WRONG_SERVER", "error": "no", "org.lmserver.hub": HUB}),
    "unnamed": (400, {"errcode": "M_WRONG_SERVER", "error": "no"}),
    "one_peer": (400, {"errcode": "M_UNKNOWN", "error": "not the hub"}),
    "html": (404, "<h1>no</h1>"),
    "other_peer_at_the_end": (400, {"errcode": "M_FORBIDDEN", "error": "Not the hub server"}),
    "error": (500, {}),
}


@pytest.mark.parametrize("name", list(NOT_THE_HUB))
async def test_a_server_that_is_not_the_hub_only_costs_a_question(prey: Prey, name: str) -> None:
    """Told by the client to be the way in, and asked after the room ID's own server failed once."""
    status, body = NOT_THE_HUB[name]
    asked: list[str] = []

    async def refuse(request: Received) -> web.StreamResponse:
        asked.append(request.path)
        if isinstance(body, str):
            return web.Response(status=status, text=body, content_type="text/html")
        return web.json_response(body, status=status)

    async def once_busy(request: Received) -> web.StreamResponse:
        prey.hub.answers["make_join"] = prey.hub._make
        return web.json_response({"errcode": "M_UNKNOWN", "error": "busy"}, status=503)

    if name == "other_peer_at_the_end":
        prey.evil.answers["send_join"] = refuse
    else:
        prey.evil.answers["make_join"] = refuse
    prey.hub.answers["make_join"] = once_busy
    with pytest.raises(MembershipError):
        await prey.join(EVIL)
    assert len(asked) == 1
    await prey.join(EVIL)
    assert await prey.victim.problems(ROOM) == []
