"""A hostile hub, or one who says so, against a participant: joins, templates, invites (T, I, S3, B9)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lmserver.federation_client.room_api import JoinResponse
from lmserver.protocol import hub
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import EventDraft, Lpdu, Pdu, parse_lpdu, parse_pdu
from lmserver.protocol.room_versions import LM_02, LM_02_ID
from lmserver.protocol.signatures import check_event_signatures
from lmserver.rooms.invites import InviteRefused, Invites
from lmserver.rooms.joining import Joining
from lmserver.storage import invites as stored_invites
from lmserver.storage import room_log
from lmserver.storage.database import Database
from tests.kit.engines import StaticVerifier, engine_kit
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


class HostileHub:
    """Answers make_join and send_join as a test wants; remembers what it was sent."""

    def __init__(self) -> None:
        self.room = RoomBuilder()
        self.version: str = LM_02_ID
        self.sent: list[Lpdu] = []
        self.change: Any = lambda answer: answer

    async def make_membership(
        self, server: str, change: str, room_id: str, user_id: str, versions: Any
    ) -> str:
        return self.version

    async def send_join(
        self, server: str, version: str, lpdu_id: str, fields: dict[str, Any]
    ) -> JoinResponse:
        sent = parse_lpdu(fields, LM_02)
        self.sent.append(sent)
        state = list(self.room.pdus)
        event = self.room.add(sent)
        answer = JoinResponse(event.fields, [p.fields for p in state], [state[0].fields])
        changed: JoinResponse = self.change(copy.deepcopy(answer))
        return changed


JOIN = {"membership": "join", "displayname": "Bob"}


def joining(db: Database, evil: HostileHub) -> Joining:
    kit = engine_kit(db, PARTICIPANT)
    api: Any = evil
    return Joining(db, kit.key, api, StaticVerifier(), kit.turns, lambda keys: None, now)


def join() -> EventDraft:
    return draft("m.room.member", JOIN, sender=BOB, state_key=BOB)


async def test_an_honest_answer_is_taken(db: Database) -> None:
    evil = HostileHub()
    event_id = await joining(db, evil).join(HUB, join())
    row = await room_log.room(db, ROOM)
    assert row is not None
    assert row.head_event_id == event_id
    assert await engine_kit(db, PARTICIPANT).problems(ROOM) == []


async def test_t1_t2_t3_we_sign_our_own_join_whatever_the_template_says(db: Database) -> None:
    """The client of make_join hands on one string, the room version: type, sender, room, content
    and hub are ours."""
    evil = HostileHub()
    await joining(db, evil).join(HUB, join())
    [sent] = evil.sent
    assert (sent.type, sent.sender, sent.state_key, sent.room_id) == ("m.room.member", BOB, BOB, ROOM)
    assert (sent.content, sent.hub_server) == (JOIN, HUB)
    check_event_signatures(sent, KEYS)


async def test_t9_an_unknown_room_version_is_neither_signed_nor_sent(db: Database) -> None:
    evil = HostileHub()
    for evil.version in ("11", "I.2", ""):
        with pytest.raises(ProtocolError):
            await joining(db, evil).join(HUB, join())
    assert evil.sent == []


def forge(fields: dict[str, Any]) -> dict[str, Any]:
    """An event of Alice's that her server never signed."""
    return {**fields, "content": {**fields["content"], "users": {MALLORY: 100}},
            "signatures": {EVIL: fields["signatures"].get(HUB, {})}}  # fmt: skip


def other_event(answer: JoinResponse) -> JoinResponse:
    room = RoomBuilder()
    return JoinResponse(room.add(message()).fields, answer.state, answer.auth_chain)


def altered_content(answer: JoinResponse) -> JoinResponse:
    event = {**answer.event, "content": {"membership": "join", "displayname": "not what Bob said"}}
    return JoinResponse(event, answer.state, answer.auth_chain)


def of_another_hub(answer: JoinResponse) -> JoinResponse:
    room = f"!theirs:{EVIL}"
    events = [
        draft("m.room.create", {"room_version": LM_02_ID}, sender=MALLORY, state_key="", room_id=room),
        member("join", sender=MALLORY, room_id=room),
    ]
    return JoinResponse(answer.event, [p.fields for p in RoomBuilder(events).pdus], [])


ANSWERS: dict[str, Any] = {
    "s3_forged_state": lambda a: JoinResponse(a.event, [*a.state[:2], forge(a.state[2]), *a.state[3:]], []),
    "s3_forged_auth_chain": lambda a: JoinResponse(a.event, a.state, [forge(a.state[2])]),
    "s3_unsigned": lambda a: JoinResponse(a.event, [{**e, "signatures": {}} for e in a.state], []),
    "no_create": lambda a: JoinResponse(a.event, a.state[1:], []),
    "no_state": lambda a: JoinResponse(a.event, [], []),
    "state_of_junk": lambda a: JoinResponse(a.event, [None, 5, "x", [], {}], []),
    "state_of_another_room": of_another_hub,
    "b9_another_event": other_event,
    "b9_altered_content": altered_content,
    "b9_an_lpdu": lambda a: JoinResponse(
        {k: v for k, v in a.event.items() if k != "auth_events"}, a.state, []
    ),
    "banned_by_its_own_state": lambda a: JoinResponse(
        a.event, [*a.state[:3], RoomBuilder().add(member("ban", target=BOB)).fields, *a.state[3:]], []
    ),
}


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_a_dishonest_answer_refuses_the_whole_join(db: Database, name: str) -> None:
    evil = HostileHub()
    evil.change = ANSWERS[name]
    with pytest.raises(ProtocolError):
        await joining(db, evil).join(HUB, join())
    assert await room_log.room(db, ROOM) is None
    assert await db.fetchval("SELECT count(*) FROM events") == 0


async def test_a_server_that_is_not_the_hub_cannot_pass_for_it(db: Database) -> None:
    """Evil relays the real room: the create event says who the hub is."""
    evil = HostileHub()

    def relay(answer: JoinResponse) -> JoinResponse:
        return answer

    evil.change = relay
    with pytest.raises((ProtocolError, AssertionError)):
        await joining(db, evil).join(EVIL, join())
    assert await room_log.room(db, ROOM) is None


# -- invites --------------------------------------------------------------------------------------


class Everybody:
    async def is_active(self, user_id: str) -> bool:
        return not user_id.startswith("@nobody:")


class AltersInvites:
    """A target server that answers with something else than it was asked to sign."""

    def __init__(self, change: Any) -> None:
        self.change = change

    async def invite(self, server: str, version: str, event_id: str, event: Any, stripped: Any) -> Any:
        return self.change(copy.deepcopy(event))


def target(db: Database) -> Invites:
    kit = engine_kit(db, PARTICIPANT)
    api: Any = None
    return Invites(db, kit.key, api, StaticVerifier(), kit.turns, Everybody(), lambda keys: None)


def invite_pdu(change: Any = lambda d: d) -> Pdu:
    room = RoomBuilder()
    return hub.complete_draft(change(member("invite", target=BOB)), room.view, key_of(HUB))


async def test_an_honest_invite_is_kept_and_signed(db: Database) -> None:
    signed = await target(db).receive(HUB, invite_pdu().fields, LM_02_ID, [{"type": "m.room.name"}, None])
    assert set(signed.fields["signatures"]) == {HUB, PARTICIPANT}
    kept = await stored_invites.get(db, BOB, ROOM)
    assert kept is not None
    assert (kept.hub_server, stored_invites.decode_state(kept.stripped_state)) == (HUB, [])


def puppet(sender: str, **more: Any) -> Pdu:
    room = RoomBuilder()
    event = EventDraft(ROOM, more.get("type", "m.room.member"), sender, more.get("content", {"membership": "invite"}),
                       now(), more.get("state_key", BOB))  # fmt: skip
    return hub.complete_draft(event, room.view, key_of(HUB))


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
    db: Database, name: str, origin: str, pdu: Pdu, version: Any
) -> None:
    with pytest.raises(InviteRefused) as refused:
        await target(db).receive(origin, pdu.fields, version, [])
    assert refused.value.status in (400, 403, 404)
    assert await db.fetchval("SELECT count(*) FROM pending_invites") == 0


@pytest.mark.parametrize(
    "change", [{"signatures": {}}, {"content": {"membership": "invite", "x": 1}}, {"hashes": {}}]
)
async def test_i1_an_invite_with_a_wrong_hash_or_signature_is_not_signed(db: Database, change: Any) -> None:
    with pytest.raises(InviteRefused):
        await target(db).receive(HUB, {**invite_pdu().fields, **change}, LM_02_ID, [])
    assert await db.fetchval("SELECT count(*) FROM pending_invites") == 0


def stripped_of_the_hub(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "signatures": {PARTICIPANT: {"ed25519:t1": "AAAA"}}}


@pytest.mark.parametrize(
    "change",
    [
        lambda e: {**e, "content": {"membership": "invite", "displayname": "x"}, "origin_server_ts": 1},
        lambda e: invite_pdu().fields,
        lambda e: {},
        lambda e: {"auth_events": 5},
    ],
)
async def test_i2_an_altered_answer_is_not_appended(db: Database, change: Any) -> None:
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    api: Any = AltersInvites(change)
    invites = Invites(db, kit.key, api, StaticVerifier(), kit.turns, Everybody(), lambda keys: None)
    with pytest.raises(InviteRefused):
        await invites.invite(member("invite", target=BOB))
    view = await kit.engine.view(ROOM)
    assert view is not None
    assert view.membership(BOB) == "leave"


async def test_i2_only_the_targets_signature_is_taken_from_its_answer(db: Database) -> None:
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    api: Any = AltersInvites(stripped_of_the_hub)
    invites = Invites(db, kit.key, api, StaticVerifier(), kit.turns, Everybody(), lambda keys: None)
    outcome, pdu = await invites.invite(member("invite", target=BOB))
    assert pdu is not None, outcome
    assert set(pdu.fields["signatures"]) == {HUB, PARTICIPANT}
    assert parse_pdu(pdu.fields, LM_02).event_id == pdu.event_id
    assert await kit.problems(ROOM) == []
