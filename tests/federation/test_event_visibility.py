"""What a server may read: every endpoint, under every history visibility, at every stage (B15-B17, A26)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from lmserver.protocol import canonical_json
from lmserver.protocol.events import EventDraft, parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Accepted
from lmserver.storage import erasures, room_log
from lmserver.storage.database import Database
from tests.federation.world import UNSTABLE, World, path
from tests.kit.engines import adopt_join
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    draft,
    lpdu,
    member,
    message,
    opening,
)  # fmt: skip

V1, V2 = "/_matrix/federation/v1/", "/_matrix/federation/v2/"
SECRET = "the-secret"
OTHER = f"!other:{HUB}"
FULL, REDACTED, NOTHING = "full", "redacted", "nothing"


def invite() -> list[Any]:
    return [member("invite", target=BOB)]


def join() -> list[Any]:
    return [lpdu(member("join", sender=BOB))]


def leave() -> list[Any]:
    return [lpdu(member("leave", sender=BOB))]


def ban() -> list[Any]:
    return [member("ban", target=BOB)]


# What Bob's server does before and after the secret is told, and what it sees of that under
# world_readable, shared, invited, joined.
STAGES: dict[str, tuple[list[Any], list[Any], list[str]]] = {
    "never there": ([], [], [FULL, NOTHING, NOTHING, NOTHING]),
    "invited": ([invite], [], [FULL, NOTHING, FULL, NOTHING]),
    "joins later": ([], [join], [FULL, FULL, REDACTED, REDACTED]),
    "invited, joins later": ([invite], [join], [FULL, FULL, FULL, REDACTED]),
    "joined": ([join], [], [FULL, FULL, FULL, FULL]),
    "left before": ([join, leave], [], [FULL, NOTHING, NOTHING, NOTHING]),
    "banned before": ([join, ban], [], [FULL, NOTHING, NOTHING, NOTHING]),
    "banned later": ([join], [ban], [FULL, FULL, FULL, FULL]),
    "left and back later": ([join, leave], [join], [FULL, FULL, REDACTED, REDACTED]),
    "joins and is banned later": ([], [join, ban], [FULL, FULL, REDACTED, REDACTED]),
}
VISIBILITIES: list[Any] = ["world_readable", "shared", "invited", "joined"]
A26: list[Any] = [5, None, "WORLD_READABLE", "world-readable", ["world_readable"], {"a": 1}, ""]


@pytest.fixture
async def world(db: Database) -> AsyncIterator[World]:
    async with World(db) as made:
        yield made


async def put(world: World, events: list[Any]) -> str:
    event_id = ""
    for event in events:
        if isinstance(event, EventDraft):
            [outcome] = await world.engine.send([event])
        else:
            [outcome] = await world.engine.accept_lpdus(event.room_id, [event])
        assert isinstance(outcome, Accepted), outcome
        event_id = outcome.event_id
    return event_id


def setting(value: Any) -> EventDraft:
    return draft("m.room.history_visibility", {"history_visibility": value}, state_key="")


async def told(world: World, stage: str, visibility: Any) -> str:
    """The room with a secret name and message in it; returns the message's ID."""
    before, after, _ = STAGES[stage]
    await world.engine.create(LM_02, [*opening(), setting(visibility)])
    for step in before:
        await put(world, step())
    await put(world, [draft("m.room.name", {"name": SECRET}, state_key="")])
    secret = await put(world, [message(SECRET)])
    for step in after:
        await put(world, step())
    await put(world, [message("later")])
    return secret


def urls(event_id: str, room_id: str = ROOM) -> dict[str, str]:
    return {
        "event": V2 + path("event", event_id),
        "state": f"{V1}{path('state', room_id)}?event_id={event_id}",
        "state_ids": f"{V1}{path('state_ids', room_id)}?event_id={event_id}",
        "backfill": f"{V2}{path('backfill', room_id)}?v={event_id}&limit=2",
    }


async def seen(world: World, event_id: str, origin: str = PARTICIPANT) -> dict[str, str]:
    """Endpoint to what it shows of the secret."""
    shown: dict[str, str] = {}
    for name, url in urls(event_id).items():
        status, body = await world.ask("GET", url, origin=origin)
        text = orjson.dumps(body).decode()
        assert status in (200, 404), (name, status, body)
        if status == 404:
            assert body["errcode"] == "M_NOT_FOUND"
        assert not (status == 404 and SECRET in text)
        shown[name] = NOTHING if status == 404 else FULL if SECRET in text else REDACTED
    return shown


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("stage", list(STAGES))
async def test_b16_every_endpoint_at_every_stage(world: World, stage: str, visibility: str) -> None:
    secret = await told(world, stage, visibility)
    expected = STAGES[stage][2][VISIBILITIES.index(visibility)]
    shown = await seen(world, secret)
    ids = shown.pop("state_ids")
    assert ids == (NOTHING if expected == NOTHING else REDACTED)
    assert shown == {"event": expected, "state": expected, "backfill": expected}
    # At any moment the server is told of an event that it may see, and of none where it sees none.
    for direction in ("f", "b"):
        ts = 1 if direction == "f" else 2**52
        status, found = await world.ask(
            "GET", f"{V1}{path('timestamp_to_event', ROOM)}?ts={ts}&dir={direction}"
        )
        assert status in (200, 404)
        if status == 404:
            assert expected == NOTHING
        else:
            assert expected == FULL or found["event_id"] != secret
            assert (await world.ask("GET", urls(found["event_id"])["event"]))[0] == 200
    stranger = await seen(world, secret, EVIL)
    assert set(stranger.values()) == ({FULL, REDACTED} if visibility == "world_readable" else {NOTHING})


@pytest.mark.parametrize("value", A26)
@pytest.mark.parametrize("stage", ["never there", "invited", "joins later"])
async def test_a26_an_unknown_visibility_is_shared_and_never_more(
    world: World, stage: str, value: Any
) -> None:
    secret = await told(world, stage, value)
    shown = await seen(world, secret)
    assert shown["event"] == STAGES[stage][2][1]
    assert (await seen(world, secret, EVIL))["event"] == NOTHING


async def test_b16_after_a_ban_nothing_later_is_shown(world: World) -> None:
    await world.engine.create(LM_02, opening())
    await put(world, join())
    during = await put(world, [message(SECRET)])
    banned = await put(world, ban())
    after = await put(world, [message("after")])
    await put(world, [draft("m.room.history_visibility", {"history_visibility": "joined"}, state_key="")])
    assert (await seen(world, during))["event"] == FULL
    assert (await world.ask("GET", urls(banned)["event"]))[0] == 200
    assert set((await seen(world, after)).values()) == {NOTHING}


async def test_b15_an_event_of_another_room_is_not_there(world: World) -> None:
    """Bob's server is in both rooms; Mallory's in one, and learns nothing of the other."""
    await world.engine.create(LM_02, opening())
    await world.engine.create(LM_02, opening(room_id=OTHER))
    await put(world, join())
    await put(world, [lpdu(member("join", sender=BOB, room_id=OTHER))])
    await put(world, [lpdu(member("join", sender=MALLORY))])
    elsewhere = await put(world, [message(SECRET, room_id=OTHER)])
    shown = await seen(world, elsewhere)
    assert shown == {"event": FULL, "state": NOTHING, "state_ids": NOTHING, "backfill": NOTHING}
    assert set((await seen(world, elsewhere, EVIL)).values()) == {NOTHING}
    unknown = await world.ask("GET", urls("$unknown")["event"], origin=EVIL)
    assert unknown == await world.ask("GET", urls(elsewhere)["event"], origin=EVIL)
    for room_id in ("!none:hub.test", "none", "!a:hub.test/../x"):
        status, _ = await world.ask("GET", urls(elsewhere, room_id)["backfill"])
        assert status == 404


async def test_b17_what_was_refused_is_never_shown(world: World) -> None:
    await world.engine.create(LM_02, opening())
    await put(world, join())
    refused = lpdu(draft("m.room.power_levels", {"users": {BOB: 100}}, sender=BOB, state_key=""))
    accepted = lpdu(message(SECRET, sender=BOB))
    _, answer = await world.send("t", [refused.fields, accepted.fields])
    assert list(answer["failed_pdus"]) == [refused.event_id]
    for lpdu_id in (refused.event_id, accepted.event_id):
        assert set((await seen(world, lpdu_id)).values()) == {NOTHING}


async def test_b17_what_was_soft_failed_is_not_there_and_ends_a_page(world: World) -> None:
    await world.engine.create(LM_02, opening())
    await put(world, join())
    await put(world, [message("before")])
    bad = await put(world, [message(SECRET)])
    after = await put(world, [message("after")])
    await world.db.execute("UPDATE events SET soft_failed = 'auth: x' WHERE event_id = $1", bad)
    assert set((await seen(world, bad)).values()) == {NOTHING}
    status, body = await world.ask("GET", f"{V2}{path('backfill', ROOM)}?v={after}&limit=50")
    assert status == 200 and [pdu["content"]["body"] for pdu in body["pdus"]] == ["after"]


async def test_mls_commits_are_shown_whatever_the_visibility(world: World) -> None:
    await world.engine.create(LM_02, [*opening(), setting("joined")])
    commit = await put(world, [draft("m.mls.commit", {"message": SECRET})])
    assert set((await seen(world, commit)).values()) == {NOTHING}
    await put(world, join())
    shown = await seen(world, commit)
    assert (shown["event"], shown["backfill"]) == (FULL, FULL)


# -- a participant that is asked --------------------------------------------------------------------


async def test_b16_state_that_came_with_our_join_is_shown_to_those_who_may_see_it(world: World) -> None:
    """We are a participant: the name and topic came with our join, the topic was replaced before
    the asking server came."""
    room = RoomBuilder([*opening(creator=f"@erin:{PARTICIPANT}", room_id=f"!r:{PARTICIPANT}")])
    room_id, creator = f"!r:{PARTICIPANT}", f"@erin:{PARTICIPANT}"

    def event(type_: str, content: Any, sender: str = creator, key: str = "") -> Any:
        return draft(type_, content, sender=sender, state_key=key, room_id=room_id)

    room.add(event("m.room.history_visibility", {"history_visibility": "joined"}))
    topic = room.add(event("m.room.topic", {"topic": SECRET}))
    name = room.add(event("m.room.name", {"name": SECRET}))
    room.add(member("join", sender=ALICE, room_id=room_id))
    await adopt_join(world.kit, room.pdus, PARTICIPANT)
    room.add(event("m.room.topic", {"topic": "new"}))
    room.add(member("join", sender=MALLORY, room_id=room_id))
    await world.engine.accept_pdus(room_id, room.pdus[-2:])
    status, body = await world.ask("GET", urls(name.event_id)["event"], origin=EVIL)
    assert (status, body["content"]) == (200, {"name": SECRET})
    status, body = await world.ask("GET", urls(topic.event_id)["event"], origin=EVIL)
    assert (status, body["content"]) == (200, {})


async def test_c7_of_who_was_erased_servers_that_come_later_get_redacted_copies(world: World) -> None:
    """Mallory's server was there, Bob's comes later; for that the event's ID holds all the same."""
    await world.engine.create(LM_02, opening())
    hers = draft("m.room.member", {"membership": "join", "displayname": SECRET}, state_key=ALICE)
    await put(world, [lpdu(member("join", sender=MALLORY)), hers])
    await put(world, [draft("m.room.name", {"name": "The room"}, state_key="")])
    event_id = await put(world, [message(SECRET)])
    await world.db.run(lambda db: erasures.add(db, ALICE))
    body = lpdu(member("join", sender=BOB)).fields
    status, joined = await world.ask("POST", f"{UNSTABLE}/send_join/1", body)
    assert status == 200
    assert SECRET not in orjson.dumps(joined).decode()
    names = [e["content"] for e in joined["state"] if e["type"] == "m.room.name"]
    assert names == [{"name": "The room"}]
    assert await seen(world, event_id) == dict.fromkeys(urls(event_id), REDACTED)
    whole = dict.fromkeys(urls(event_id), FULL) | {"state_ids": REDACTED}
    assert await seen(world, event_id, EVIL) == whole
    stored = await room_log.event(world.db, event_id)
    assert stored is not None
    for origin, version in ((PARTICIPANT, "redacted"), (EVIL, "whole")):
        _, found = await world.ask("GET", urls(event_id)["event"], origin=origin)
        assert parse_pdu(found, LM_02).event_id == event_id
        assert (canonical_json.encode(found) == stored.pdu) is (version == "whole")
