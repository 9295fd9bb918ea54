"""An invite asks its target's server with no lock held, and is decided again at the head (D04 §Invites)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lmserver.protocol import canonical_json
from lmserver.protocol.events import Pdu, parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.invites import MAX_ASKS, InviteRefused
from lmserver.rooms.outcomes import Accepted, MembershipError
from lmserver.storage import room_log
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer, Received
from tests.evilpeer.victim import Victim
from tests.kit.rooms import ALICE, BOB, EVIL, HUB, PARTICIPANT, ROOM, draft, key_of, member, message, opening
from tests.kit.waiting import HANGS

MODERATOR = f"@moderator:{HUB}"


class Host:
    """The hub of ROOM, and a target's server that answers only when it is told to."""

    def __init__(self, db: Database, folder: Path) -> None:
        network = Network()
        self.db = db
        self.victim = Victim(db, network, HUB, folder)
        self.engine = self.victim.engine
        self.target = EvilPeer(network, PARTICIPANT)
        self.asked = asyncio.Semaphore(0)
        self.may_answer = asyncio.Semaphore(0)
        self.target.answers["invite"] = self._answer

    async def _answer(self, request: Received) -> web.StreamResponse:
        self.asked.release()
        await self.may_answer.acquire()
        pdu = parse_pdu(request.json["event"], LM_02)
        key = key_of(PARTICIPANT)
        signed = pdu.with_signature(PARTICIPANT, key.key_id, key.sign_base64(pdu.reference_bytes))
        return web.Response(
            body=canonical_json.encode({"pdu": signed.fields}), content_type="application/json"
        )

    def invite(self, sender: str = ALICE) -> asyncio.Task[None]:
        return asyncio.create_task(self.victim.server.membership.invite(sender, ROOM, BOB))

    async def membership(self) -> str:
        view = await self.engine.view(ROOM)
        assert view is not None
        return view.membership(BOB)

    async def head(self) -> Pdu:
        view = await self.engine.view(ROOM)
        assert view is not None
        stored = await room_log.event(self.db, view.head_event_id, ROOM)
        assert stored is not None
        return parse_pdu(canonical_json.parse_object(stored.pdu), LM_02)


@pytest.fixture
async def host(db: Database, tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(db, tmp_path)
    await made.victim.start()
    await made.target.start()
    levels: dict[str, Any] = {"users": {ALICE: 100, MODERATOR: 50}, "invite": 50}
    await made.engine.create(LM_02, [*opening(levels=levels), member("join", sender=MODERATOR)])
    yield made
    await made.target.stop()
    await made.victim.stop()


async def test_the_room_goes_on_while_a_target_is_asked(host: Host) -> None:
    """The invite waits; nobody else does. The room having moved on, the target is asked anew."""
    inviting = host.invite()
    await host.asked.acquire()
    for n in range(20):
        [outcome] = await asyncio.wait_for(host.engine.send([message(f"{n}")]), HANGS)
        assert isinstance(outcome, Accepted)
    assert not inviting.done()
    host.may_answer.release()
    await host.asked.acquire()
    host.may_answer.release()
    await inviting
    assert await host.membership() == "invite"
    head = await host.head()
    assert (head.membership, set(head.fields["signatures"])) == ("invite", {HUB, PARTICIPANT})
    assert await host.victim.problems(ROOM) == []


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda: draft("m.room.power_levels", {"users": {ALICE: 100}, "invite": 50}, state_key=""),
        lambda: member("leave", target=MODERATOR),
        lambda: member("ban", target=BOB),
    ],
    ids=["demoted", "kicked", "target_banned"],
)
async def test_what_the_room_forbids_by_the_time_of_the_answer_is_refused(host: Host, meanwhile: Any) -> None:
    inviting = host.invite(MODERATOR)
    await host.asked.acquire()
    [outcome] = await host.engine.send([meanwhile()])
    assert isinstance(outcome, Accepted)
    host.may_answer.release()
    with pytest.raises(MembershipError) as refused:
        await inviting
    assert (refused.value.errcode, refused.value.status) == ("M_FORBIDDEN", 403)
    assert await host.membership() in ("leave", "ban")


async def test_a_room_that_never_rests_is_invited_to_all_the_same(host: Host) -> None:
    """Its event is then another than those the target signed, which hears of it as of a kick."""
    inviting = host.invite()
    for n in range(MAX_ASKS):
        await host.asked.acquire()
        await host.engine.send([message(f"{n}")])
        host.may_answer.release()
    await inviting
    assert await host.membership() == "invite"
    assert set((await host.head()).fields["signatures"]) == {HUB}
    position = await host.db.fetchval("SELECT head_position FROM rooms")
    ranges = await host.db.fetch("SELECT destination, from_position, until_position FROM outbound_ranges")
    assert [tuple(r.values()) for r in ranges] == [(PARTICIPANT, position, position)]


async def test_a_target_that_came_in_by_itself_is_asked_no_more(host: Host) -> None:
    """It refuses to sign for a room it is in; the invite reaches it through the list."""

    async def refuse(request: Received) -> web.StreamResponse:
        other = f"@other:{PARTICIPANT}"
        await host.engine.send([draft("m.room.join_rules", {"join_rule": "public"}, state_key="")])
        from tests.kit.rooms import lpdu

        await host.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=other))])
        return web.json_response({"errcode": "M_FORBIDDEN", "error": "already in the room"}, status=403)

    host.target.answers["invite"] = refuse
    await host.victim.server.membership.invite(ALICE, ROOM, BOB)
    assert await host.membership() == "invite"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (403, {"errcode": "M_FORBIDDEN", "error": "no"}, ("M_FORBIDDEN", 403)),
        (403, {"errcode": "M_INVITE_BLOCKED", "error": "no"}, ("M_INVITE_BLOCKED", 403)),
        (429, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 5}, ("M_LIMIT_EXCEEDED", 429)),
        (400, {"errcode": "M_UNSUPPORTED_ROOM_VERSION"}, ("M_INCOMPATIBLE_ROOM_VERSION", 400)),
        # Nothing that would log the inviting client out, or that it could not know.
        (401, {"errcode": "M_UNKNOWN_TOKEN", "error": "x"}, ("M_UNKNOWN", 502)),
        (403, {"errcode": "M_UNKNOWN_TOKEN", "error": "x"}, ("M_UNKNOWN", 502)),
        (403, {"errcode": "M_USER_DEACTIVATED"}, ("M_UNKNOWN", 502)),
        (403, {"errcode": "<script>"}, ("M_UNKNOWN", 502)),
        (500, {}, ("M_UNKNOWN", 502)),
        (302, {}, ("M_UNKNOWN", 502)),
        (200, {"event": None}, ("M_UNKNOWN", 502)),
    ],
)
async def test_a_targets_refusal_reaches_who_invites(
    host: Host, status: int, body: Any, told: tuple[str, int]
) -> None:
    async def refuse(request: Received) -> web.StreamResponse:
        return web.json_response(body, status=status)

    host.target.answers["invite"] = refuse
    with pytest.raises(MembershipError) as refused:
        await host.victim.server.membership.invite(ALICE, ROOM, BOB)
    assert (refused.value.errcode, refused.value.status) == told
    assert await host.membership() == "leave"


async def test_an_unreachable_target_leaves_no_invite(host: Host) -> None:
    with pytest.raises(MembershipError) as refused:
        await host.victim.server.membership.invite(ALICE, ROOM, f"@x:{EVIL}")
    assert refused.value.status == 502


@pytest.mark.parametrize(
    ("status", "body", "passed_on"),
    [
        (403, {"errcode": "M_INVITE_BLOCKED", "error": "no"}, (403, "M_INVITE_BLOCKED", "no")),
        (
            403,
            {"errcode": "M_FORBIDDEN", "error": "x" * 1000, "more": "y" * 1000},
            (403, "M_FORBIDDEN", "x" * 200),
        ),
        (401, {"errcode": "M_UNKNOWN_TOKEN", "error": "x"}, (502, "M_UNKNOWN", "x")),
        (400, {"errcode": "M_MISSING_TOKEN", "error": "x"}, (502, "M_UNKNOWN", "x")),
        (307, {}, (502, "M_UNKNOWN", "invite refused")),
    ],
)
async def test_a_participant_gets_the_targets_refusal_and_nothing_more(
    host: Host, status: int, body: Any, passed_on: tuple[int, str, str]
) -> None:
    """D04 §Invites: proxied, without excess."""

    async def refuse(request: Received) -> web.StreamResponse:
        return web.json_response(body, status=status)

    host.target.answers["invite"] = refuse
    with pytest.raises(InviteRefused) as refused:
        await host.victim.server.membership._invites.invite(member("invite", target=BOB))
    assert (refused.value.status, refused.value.errcode, refused.value.reason) == passed_on
