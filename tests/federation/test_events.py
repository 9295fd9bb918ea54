"""event, state, state_ids and backfill: what another server may see."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lmserver.federation_server.server_view import server_spans
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Accepted
from lmserver.rooms.visible_ranges import Span
from lmserver.storage.database import Database
from lmserver.storage.room_state import MembershipSpan
from tests.federation.world import World, path
from tests.kit.rooms import ALICE, BOB, EVIL, HUB, ROOM, draft, lpdu, member, message, opening

V1, V2 = "/_matrix/federation/v1/", "/_matrix/federation/v2/"
OTHER = f"!other:{HUB}"


@pytest.fixture
async def world(db: Database) -> AsyncIterator[World]:
    async with World(db) as made:
        await made.engine.create(LM_02, opening())
        yield made


async def say(world: World, text: str, room_id: str = ROOM) -> str:
    [outcome] = await world.engine.send([message(text, room_id=room_id)])
    assert isinstance(outcome, Accepted)
    return outcome.event_id


async def bob_joins(world: World) -> str:
    [outcome] = await world.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    assert isinstance(outcome, Accepted)
    return outcome.event_id


async def test_shared_history_is_shown_to_who_joined_later_and_to_nobody_else(world: World) -> None:
    before = await say(world, "before")
    url = V2 + path("event", before)
    assert (await world.ask("GET", url))[0] == 404
    await bob_joins(world)
    status, body = await world.ask("GET", url)
    assert status == 200 and body["content"]["body"] == "before"
    assert (await world.ask("GET", url, origin=EVIL))[0] == 404


async def test_what_may_not_be_read_is_redacted(world: World) -> None:
    rule = {"history_visibility": "joined"}
    await world.engine.send([draft("m.room.history_visibility", rule, state_key="")])
    hidden = await say(world, "hidden")
    await bob_joins(world)
    status, body = await world.ask("GET", V2 + path("event", hidden))
    assert status == 200 and body["content"] == {} and body["signatures"]


async def test_a_redacted_event_is_served_redacted(world: World) -> None:
    await bob_joins(world)
    event_id = await say(world, "regretted")
    await world.engine.send([draft("m.room.redaction", {"redacts": event_id})])
    assert (await world.ask("GET", V2 + path("event", event_id)))[1]["content"] == {}


async def test_a_banned_server_reads_up_to_its_ban(world: World) -> None:
    """Attack B16."""
    await bob_joins(world)
    during = await say(world, "during")
    [ban] = await world.engine.send([member("ban", target=BOB)])
    after = await say(world, "after")
    assert isinstance(ban, Accepted)
    assert (await world.ask("GET", V2 + path("event", during)))[0] == 200
    assert (await world.ask("GET", V2 + path("event", ban.event_id)))[0] == 200
    assert (await world.ask("GET", V2 + path("event", after)))[0] == 404
    room = path("state", ROOM)
    assert (await world.ask("GET", f"{V1}{room}?event_id={after}"))[0] == 404
    assert (await world.ask("GET", f"{V2}{path('backfill', ROOM)}?v={after}&limit=5"))[0] == 404


async def test_state_is_the_one_before_the_event(world: World) -> None:
    join = await bob_joins(world)
    status, body = await world.ask("GET", f"{V1}{path('state', ROOM)}?event_id={join}")
    assert status == 200
    assert {e["type"] for e in body["pdus"]} == {
        "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules",
    }  # fmt: skip
    assert BOB not in [e.get("state_key") for e in body["pdus"]]
    ids = (await world.ask("GET", f"{V1}{path('state_ids', ROOM)}?event_id={join}"))[1]
    assert len(ids["pdu_ids"]) == 4 and len(ids["auth_chain_ids"]) == len(body["auth_chain"])


async def test_only_the_hub_answers_state(world: World) -> None:
    join = await bob_joins(world)
    await world.db.execute("UPDATE rooms SET hub_server = $1", EVIL)
    world.kit.turns.forget(ROOM)
    status, body = await world.ask("GET", f"{V1}{path('state', ROOM)}?event_id={join}")
    assert (status, body["errcode"]) == (400, "M_WRONG_SERVER")


async def test_an_event_of_another_room_does_not_exist(world: World) -> None:
    """Attack B15."""
    await bob_joins(world)
    await world.engine.create(LM_02, opening(room_id=OTHER))
    await world.engine.accept_lpdus(OTHER, [lpdu(member("join", sender=BOB, room_id=OTHER))])
    other = await say(world, "elsewhere", OTHER)
    assert (await world.ask("GET", V2 + path("event", other)))[0] == 200
    assert (await world.ask("GET", f"{V1}{path('state', ROOM)}?event_id={other}"))[0] == 404
    assert (await world.ask("GET", f"{V2}{path('backfill', ROOM)}?v={other}&limit=5"))[0] == 404


async def test_backfill_is_oldest_first_with_v_and_within_its_limit(world: World) -> None:
    await bob_joins(world)
    for n in range(4):
        last = await say(world, str(n))
    await say(world, "later")
    url = f"{V2}{path('backfill', ROOM)}?v={last}&limit="
    status, body = await world.ask("GET", url + "3")
    assert status == 200 and [e["content"]["body"] for e in body["pdus"]] == ["1", "2", "3"]
    whole = (await world.ask("GET", url + "999999"))[1]["pdus"]
    assert whole[0]["type"] == "m.room.create" and len(whole) == 9
    for bad in ("0", "-1", "x", ""):
        assert (await world.ask("GET", url + bad))[0] == 400


def test_a_server_is_joined_while_any_of_its_users_is() -> None:
    spans = [
        MembershipSpan(ALICE, "invite", 2, 4),
        MembershipSpan(ALICE, "join", 4, 8),
        MembershipSpan(BOB, "join", 6, 12),
        MembershipSpan(ALICE, "leave", 8, None),
        MembershipSpan(BOB, "ban", 12, None),
    ]
    assert server_spans(spans) == [Span(2, 4, "invite"), Span(4, 12, "join")]
