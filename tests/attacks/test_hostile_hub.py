"""A hostile hub, or one who says so, against a participant: joins, templates, invites (T, I, S3, B9).

What is attacked is a whole server over HTTP; the hub owns its key and serves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lmserver.protocol import canonical_json, hub
from lmserver.protocol.events import EventDraft, Pdu, parse_pdu
from lmserver.protocol.room_versions import LM_02, LM_02_ID
from lmserver.protocol.signatures import check_event_signatures
from lmserver.rooms.outcomes import MembershipError
from lmserver.storage import outside, room_log
from lmserver.storage.database import Database
from tests.evilpeer.hub import EvilHub, JoinAnswer
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer, Received
from tests.evilpeer.prey import Prey
from tests.evilpeer.victim import Victim
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
    member,
    message,
    now,
    opening,
)  # fmt: skip


async def test_an_honest_answer_is_taken(prey: Prey) -> None:
    await prey.join()
    row = await room_log.room(prey.db, ROOM)
    assert row is not None
    assert row.head_event_id == prey.hub.room.view.head_event_id
    assert await prey.victim.problems(ROOM) == []


TEMPLATES: dict[str, Any] = {
    "t1_type": {"type": "m.room.power_levels", "state_key": "", "content": {"users": {MALLORY: 100}}},
    "t1_sender_and_room": {"sender": f"@victim:{PARTICIPANT}", "room_id": f"!other:{HUB}"},
    "t2_content": {"content": {"membership": "join", "join_authorised_via_users_server": ALICE}, "x": 1},
    "t3_hub_and_hashes": {"hub_server": EVIL, "hashes": {"lpdu": {"sha256": "A"}}, "signatures": {},
                          "origin_server_ts": 1, "prev_events": ["$x"], "auth_events": []},
}  # fmt: skip


@pytest.mark.parametrize("name", list(TEMPLATES))
async def test_t1_t2_t3_we_sign_our_own_join_whatever_the_template_says(prey: Prey, name: str) -> None:
    """Of a template only the room version is taken: everything we sign is ours."""
    prey.hub.template["event"] = TEMPLATES[name]
    await prey.join()
    [sent] = prey.hub.joins
    assert (sent.type, sent.sender, sent.state_key, sent.room_id) == ("m.room.member", BOB, BOB, ROOM)
    assert (sent.content, sent.hub_server) == ({"membership": "join", "displayname": "Bob"}, HUB)
    assert set(sent.fields) == {"content", "hashes", "hub_server", "origin_server_ts", "room_id", "sender",
                                "signatures", "state_key", "type"}  # fmt: skip
    check_event_signatures(sent, KEYS)


@pytest.mark.parametrize("version", ["11", "I.2", "", 5, None, ["I.1"]])
async def test_t9_an_unknown_room_version_is_neither_signed_nor_sent(prey: Prey, version: Any) -> None:
    prey.hub.template["room_version"] = version
    with pytest.raises(MembershipError):
        await prey.join()
    assert prey.hub.requests("send_join") == []


@pytest.mark.parametrize("template", [[], "x", None, {}, {"event": {}}])
async def test_t9_a_template_that_is_none_is_refused(prey: Prey, template: Any) -> None:
    prey.hub.template = template
    with pytest.raises(MembershipError):
        await prey.join()
    assert prey.hub.requests("send_join") == []


def forge(fields: dict[str, Any]) -> dict[str, Any]:
    """An event of Alice's that her server never signed."""
    return {**fields, "content": {**fields["content"], "users": {MALLORY: 100}},
            "signatures": {EVIL: fields["signatures"].get(HUB, {})}}  # fmt: skip


def of_another_hub(answer: JoinAnswer) -> JoinAnswer:
    room = f"!theirs:{EVIL}"
    events = [
        draft("m.room.create", {"room_version": LM_02_ID}, sender=MALLORY, state_key="", room_id=room),
        member("join", sender=MALLORY, room_id=room),
    ]
    return JoinAnswer(answer.event, [p.fields for p in RoomBuilder(events).pdus], [])


def altered(answer: JoinAnswer) -> JoinAnswer:
    event = {**answer.event, "content": {"membership": "join", "displayname": "not what Bob said"}}
    return JoinAnswer(event, answer.state, answer.auth_chain)


def banned(answer: JoinAnswer) -> JoinAnswer:
    ban = RoomBuilder().add(member("ban", target=BOB)).fields
    return JoinAnswer(answer.event, [*answer.state[:3], ban, *answer.state[3:]], [])


ANSWERS: dict[str, Any] = {
    "s3_forged_state": lambda a: JoinAnswer(a.event, [*a.state[:2], forge(a.state[2]), *a.state[3:]], []),
    "s3_forged_auth_chain": lambda a: JoinAnswer(a.event, a.state, [forge(a.state[2])]),
    "s3_unsigned": lambda a: JoinAnswer(a.event, [{**e, "signatures": {}} for e in a.state], []),
    "no_create": lambda a: JoinAnswer(a.event, a.state[1:], []),
    "no_state": lambda a: JoinAnswer(a.event, [], []),
    "state_of_junk": lambda a: JoinAnswer(a.event, [None, 5, "x", [], {}], []),
    "state_no_list": lambda a: JoinAnswer(a.event, {"x": 1}, []),
    "chain_no_list": lambda a: JoinAnswer(a.event, a.state, 5),
    "event_no_object": lambda a: JoinAnswer([], a.state, []),
    "state_of_another_room": of_another_hub,
    "b9_another_event": lambda a: JoinAnswer(RoomBuilder().add(message()).fields, a.state, a.auth_chain),
    "b9_altered_content": altered,
    "b9_an_lpdu": lambda a: JoinAnswer(
        {k: v for k, v in a.event.items() if k != "auth_events"}, a.state, []
    ),
    "banned_by_its_own_state": banned,
}  # fmt: skip


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_a_dishonest_answer_refuses_the_whole_join(prey: Prey, name: str) -> None:
    prey.hub.change = ANSWERS[name]
    with pytest.raises(MembershipError):
        await prey.join()
    await prey.nothing_stored()


async def test_s9_a_server_that_is_not_the_hub_cannot_pass_for_it(prey: Prey) -> None:
    """Evil has a room of the same ID with a create event of Alice's: it cannot sign for her server."""
    await prey.hub.stop()
    relayed = RoomBuilder()
    prey.evil.room = relayed

    async def relay(request: Received) -> web.StreamResponse:
        state = [p.fields for p in relayed.pdus]
        event = {**request.json, "auth_events": [], "prev_events": [relayed.view.head_event_id]}
        body = {"event": event, "state": state, "auth_chain": []}
        return web.Response(body=canonical_json.encode(body), content_type="application/json")

    prey.evil.answers["send_join"] = relay
    with pytest.raises(MembershipError):
        await prey.join(EVIL)
    assert prey.evil.requests("send_join")
    await prey.nothing_stored()


# -- invites --------------------------------------------------------------------------------------


def invite_pdu() -> Pdu:
    return hub.complete_draft(member("invite", target=BOB), RoomBuilder().view, key_of(HUB))


async def test_an_honest_invite_is_kept_and_signed(prey: Prey) -> None:
    junk = [{"type": "m.room.name"}, None]
    status, answer = await prey.hub.invite(PARTICIPANT, "t", invite_pdu().fields, stripped=junk)
    assert status == 200
    assert set(answer["pdu"]["signatures"]) == {HUB, PARTICIPANT}
    kept = await outside.get(prey.db, BOB, ROOM)
    assert kept is not None
    assert (kept.hub_server, outside.decode_state(kept.stripped_state)) == (HUB, [])


def puppet(sender: str, **more: Any) -> Pdu:
    event = EventDraft(ROOM, more.get("type", "m.room.member"), sender, more.get("content", {"membership": "invite"}),
                       now(), more.get("state_key", BOB))  # fmt: skip
    return hub.complete_draft(event, RoomBuilder().view, key_of(HUB))


@pytest.mark.parametrize(
    ("name", "origin", "pdu", "version"),
    [
        ("sender_is_ours", HUB, puppet(f"@victim:{PARTICIPANT}"), LM_02_ID),
        ("not_a_member_event", HUB, puppet(ALICE, type="m.room.power_levels"), LM_02_ID),
        ("not_an_invite", HUB, puppet(ALICE, content={"membership": "join"}), LM_02_ID),
        ("not_for_us", HUB, puppet(ALICE, state_key=MALLORY), LM_02_ID),
        ("no_such_user", HUB, puppet(ALICE, state_key=f"@nobody:{PARTICIPANT}"), LM_02_ID),
        ("state_key_no_user", HUB, puppet(ALICE, state_key="bob"), LM_02_ID),
        ("from_another_server", EVIL, invite_pdu(), LM_02_ID),
        ("unknown_version", HUB, invite_pdu(), "11"),
        ("version_no_text", HUB, invite_pdu(), 5),
    ],
)
async def test_i1_we_sign_no_invite_that_is_not_one(
    prey: Prey, name: str, origin: str, pdu: Pdu, version: Any
) -> None:
    sender: EvilHub = prey.hub if origin == HUB else prey.evil
    status, answer = await sender.invite(PARTICIPANT, "t", pdu.fields, version)
    assert status in (400, 403, 404), answer
    assert "pdu" not in answer
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships") == 0


@pytest.mark.parametrize(
    "change", [{"signatures": {}}, {"content": {"membership": "invite", "x": 1}}, {"hashes": {}}]
)
async def test_i1_an_invite_with_a_wrong_hash_or_signature_is_not_signed(prey: Prey, change: Any) -> None:
    status, _ = await prey.hub.invite(PARTICIPANT, "t", {**invite_pdu().fields, **change})
    assert status in (400, 403)
    assert await prey.db.fetchval("SELECT count(*) FROM outside_memberships") == 0


class Host:
    """A victim that is the hub of ROOM, and a target server that answers invites as a test wants."""

    def __init__(self, db: Database, folder: Path, change: Any) -> None:
        network = Network()
        self.victim = Victim(db, network, HUB, folder)
        self.target = EvilPeer(network, PARTICIPANT)

        async def answer(request: Received) -> web.StreamResponse:
            body = canonical_json.encode({"pdu": change(request.json["event"])})
            return web.Response(body=body, content_type="application/json")

        self.target.answers["invite"] = answer

    async def __aenter__(self) -> Host:
        await self.victim.start()
        await self.target.start()
        await self.victim.engine.create(LM_02, opening())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.target.stop()
        await self.victim.stop()


@pytest.mark.parametrize(
    "change",
    [
        lambda e: {**e, "content": {"membership": "invite", "displayname": "x"}, "origin_server_ts": 1},
        lambda e: invite_pdu().fields,
        lambda e: {},
        lambda e: {"auth_events": 5},
        lambda e: [],
        lambda e: None,
    ],
)
async def test_i2_an_altered_answer_is_not_appended(db: Database, tmp_path: Path, change: Any) -> None:
    async with Host(db, tmp_path, change) as host:
        with pytest.raises(MembershipError):
            await host.victim.server.membership.invite(ALICE, ROOM, BOB)
        assert host.target.requests("invite")
        view = await host.victim.engine.view(ROOM)
        assert view is not None
        assert view.membership(BOB) == "leave"


async def test_i2_only_the_targets_signature_is_taken_from_its_answer(db: Database, tmp_path: Path) -> None:
    def stripped(event: dict[str, Any]) -> dict[str, Any]:
        signed = Pdu(event, LM_02).reference_bytes
        key = key_of(PARTICIPANT)
        return {
            **event,
            "signatures": {PARTICIPANT: {key.key_id: key.sign_base64(signed)}, EVIL: {"ed25519:x": "AA"}},
        }

    async with Host(db, tmp_path, stripped) as host:
        await host.victim.server.membership.invite(ALICE, ROOM, BOB)
        view = await host.victim.engine.view(ROOM)
        assert view is not None
        assert view.membership(BOB) == "invite"
        stored = await room_log.event(db, view.head_event_id, ROOM)
        assert stored is not None
        pdu = parse_pdu(canonical_json.parse_object(stored.pdu), LM_02)
        assert set(pdu.fields["signatures"]) == {HUB, PARTICIPANT}
        assert await host.victim.problems(ROOM) == []
