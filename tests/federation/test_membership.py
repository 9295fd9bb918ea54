"""make_*, send_* and invite: templates, refusals, the answer a joiner builds on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lmserver.protocol.events import parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import check_event_signatures
from lmserver.storage.database import Database
from tests.federation.world import UNSTABLE, World, path
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    KEYS,
    MALLORY,
    PARTICIPANT,
    ROOM,
    lpdu,
    member,
    message,
    opening,
)  # fmt: skip

V1, V3 = "/_matrix/federation/v1/", "/_matrix/federation/v3/"
VER = f"?ver={LM_02.id}"


@pytest.fixture
async def world(db: Database) -> AsyncIterator[World]:
    async with World(db) as made:
        await made.engine.create(LM_02, opening())
        yield made


async def test_t5_a_template_is_bare_and_wrapped_and_not_signed(world: World) -> None:
    status, body = await world.ask("GET", V1 + path("make_join", ROOM, BOB) + VER)
    assert status == 200 and body["room_version"] == LM_02.id
    for template in (body, body["event"]):
        assert (template["type"], template["sender"], template["state_key"]) == ("m.room.member", BOB, BOB)
        assert template["content"] == {"membership": "join"}
        assert "signatures" not in template and "hashes" not in template


async def test_t4_templates_for_others_are_refused(world: World) -> None:
    async def refusal(url: str) -> tuple[int, str]:
        status, body = await world.ask("GET", url)
        return status, body["errcode"]

    assert await refusal(V1 + path("make_join", ROOM, MALLORY) + VER) == (403, "M_FORBIDDEN")
    assert await refusal(V1 + path("make_join", f"!no:{HUB}", BOB) + VER) == (404, "M_NOT_FOUND")
    assert await refusal(V1 + path("make_join", ROOM, BOB)) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
    assert await refusal(V1 + path("make_leave", ROOM, BOB)) == (403, "M_FORBIDDEN")
    assert await refusal(V1 + path("make_knock", ROOM, BOB) + VER) == (403, "M_FORBIDDEN")


async def test_a_participant_names_the_hub(world: World) -> None:
    await world.db.execute("UPDATE rooms SET hub_server = $1", EVIL)
    world.kit.turns.forget(ROOM)
    status, body = await world.ask("GET", V1 + path("make_join", ROOM, BOB) + VER)
    assert (status, body["errcode"], body["org.lmserver.hub"]) == (400, "M_WRONG_SERVER", EVIL)


async def test_a_join_brings_the_state_before_it_and_its_auth_chain(world: World) -> None:
    join = lpdu(member("join", sender=BOB))
    status, body = await world.ask("POST", f"{UNSTABLE}/send_join/t1", join.fields)
    assert status == 200 and body["origin"] == HUB and body["members_omitted"] is False
    event = parse_pdu(body["event"], LM_02)
    check_event_signatures(event, KEYS)
    assert event.lpdu_hash == join.lpdu_hash
    assert [e["type"] for e in body["state"]] == [
        "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules",
    ]  # fmt: skip
    chain = [parse_pdu(e, LM_02).event_id for e in body["auth_chain"]]
    cited = {i for e in [*body["state"], *body["auth_chain"]] for i in e["auth_events"]}
    assert set(chain) == cited and len(chain) == len(set(chain))
    await world.engine.send([message()])
    assert await world.ask("POST", f"{UNSTABLE}/send_join/t1", join.fields) == (status, body)
    assert (await world.ask("POST", f"{V3}send_join/t2", join.fields))[1] == body


async def test_t6_only_a_join_of_the_senders_own_is_taken(world: World) -> None:
    """Attack T6."""

    async def refusal(event: object, origin: str = PARTICIPANT, name: str = "send_join") -> int:
        return (await world.ask("POST", f"{V3}{name}/t{id(event)}", event, origin=origin))[0]

    assert await refusal(lpdu(message(sender=BOB)).fields) == 400
    assert await refusal(lpdu(member("leave", sender=BOB)).fields) == 400
    assert await refusal(lpdu(member("join", sender=BOB, target=MALLORY)).fields) == 400
    assert await refusal(lpdu(member("join", sender=BOB)).fields, EVIL) == 403
    assert await refusal(lpdu(member("join", sender=BOB), hub_server=EVIL).fields) == 403
    assert await refusal({**lpdu(member("join", sender=BOB)).fields, "origin_server_ts": 1}) == 403
    assert await refusal({"room_id": ROOM}) == 400
    assert await refusal({}) == 404


async def test_t8_the_rules_are_asked_again_at_the_end(world: World) -> None:
    """Attack T8."""
    assert (await world.ask("GET", V1 + path("make_join", ROOM, BOB) + VER))[0] == 200
    await world.engine.send([member("ban", target=BOB)])
    status, body = await world.ask("POST", f"{V3}send_join/t1", lpdu(member("join", sender=BOB)).fields)
    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")


async def test_an_invite_is_declined(world: World) -> None:
    await world.engine.send([member("invite", target=BOB)])
    assert (await world.ask("GET", V1 + path("make_leave", ROOM, BOB)))[0] == 200
    leave = lpdu(member("leave", sender=BOB))
    assert await world.ask("POST", f"{V3}send_leave/t1", leave.fields) == (200, {})
    view = await world.engine.view(ROOM)
    assert view is not None and view.membership(BOB) == "leave"


async def test_a_knock_is_answered_with_stripped_state(db: Database) -> None:
    async with World(db) as world:
        await world.engine.create(LM_02, opening(join_rule="knock"))
        status, body = await world.ask("POST", f"{V3}send_knock/t1", lpdu(member("knock", sender=BOB)).fields)
        assert status == 200 and body["stripped_state"] == body["knock_room_state"]
        assert "m.room.create" in [e["type"] for e in body["stripped_state"]]


async def test_a_participants_invite_is_completed_and_returned_under_both_names(world: World) -> None:
    await world.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    event = lpdu(member("invite", sender=BOB, target=MALLORY)).fields
    content = {"event": event, "room_version": LM_02.id, "invite_room_state": []}
    status, body = await world.ask("POST", f"{V3}invite/t1", content)
    assert status == 200 and body["pdu"] == body["event"]
    check_event_signatures(parse_pdu(body["pdu"], LM_02), KEYS)
    view = await world.engine.view(ROOM)
    assert view is not None and view.membership(MALLORY) == "invite"


async def test_we_sign_no_invite_that_is_not_one(world: World) -> None:
    """Attack I1: a signature is not to be harvested by an invite in the name of our user."""
    event = {
        **lpdu(member("invite", sender=ALICE, target=f"@carol:{HUB}")).fields,
        "auth_events": ["$" + "a" * 43],
    }
    event |= {"prev_events": ["$" + "b" * 43], "hashes": {"sha256": "a" * 43}}
    content = {"event": event, "room_version": LM_02.id}
    status, body = await world.ask("POST", f"{V3}invite/t1", content, origin=EVIL)
    assert status in (400, 403) and "pdu" not in body
    content["room_version"] = "99"
    status, body = await world.ask("POST", f"{V3}invite/t2", content, origin=EVIL)
    assert (status, body["errcode"]) == (400, "M_INCOMPATIBLE_ROOM_VERSION")
