"""Rooms through the admin API: found, looked into, closed, deleted."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.federation_client.transaction_builder import build
from lmserver.rooms import purging
from lmserver.storage import destinations, outbound, room_purges
from lmserver.storage.database import Database
from lmserver.storage.outbound import OutboundTransaction
from tests.admin_api.conftest import ALICE, BOB, OWN, ROOT, V1, V2, AdminApi
from tests.federation.sites import Site, sites
from tests.kit.client_api import NAME, V3
from tests.kit.postgres import Cluster
from tests.kit.waiting import HANGS, eventually

NOWHERE = f"!nowhere:{NAME}"

# (method, path, body, status, errcode)
TABLE: list[tuple[str, str, Any, int, str]] = [
    ("GET", f"{V1}/rooms?order_by=colour", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/rooms?empty_rooms=perhaps", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/rooms?search_term=%00", None, 400, "M_INVALID_PARAM"),
    *[("GET", f"{V1}/rooms/{NOWHERE}{what}", None, 404, "M_NOT_FOUND") for what in ("", "/members", "/state", "/messages")],
    *[("GET", f"{V1}/rooms/x{what}", None, 400, "M_INVALID_PARAM") for what in ("", "/members", "/state", "/messages", "/block")],
    ("GET", f"{OWN}/rooms/{NOWHERE}", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V1}/rooms/{NOWHERE}/messages?from=5", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/rooms/{NOWHERE}/messages?from=p99999999999999999999", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/rooms/{NOWHERE}/messages?dir=x", None, 400, "M_INVALID_PARAM"),
    ("POST", f"{V1}/rooms/{NOWHERE}/make_room_admin", {}, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/rooms/{NOWHERE}/make_room_admin", {"user_id": "x"}, 400, "M_INVALID_PARAM"),
    ("PUT", f"{V1}/rooms/{NOWHERE}/block", {}, 400, "M_MISSING_PARAM"),
    ("PUT", f"{V1}/rooms/{NOWHERE}/block", {"block": "yes"}, 400, "M_BAD_JSON"),
    ("DELETE", f"{V1}/rooms/{NOWHERE}", {}, 404, "M_NOT_FOUND"),
    ("DELETE", f"{V2}/rooms/{NOWHERE}", {}, 404, "M_NOT_FOUND"),
    ("DELETE", f"{V2}/rooms/{NOWHERE}", {"purge": 1}, 400, "M_BAD_JSON"),
    ("DELETE", f"{V2}/rooms/{NOWHERE}", {"new_room_user_id": ALICE}, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/rooms/{NOWHERE}/delete_status", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V2}/rooms/delete_status/none", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V2}/rooms/delete_status/%00", None, 404, "M_NOT_FOUND"),
]  # fmt: skip


async def test_wrong_requests_are_told_what_is_wrong(admin: AdminApi) -> None:
    for method, path, body, status, errcode in TABLE:
        found, answer = await admin.call(method, path, body)
        assert (found, answer.get("errcode")) == (status, errcode), (method, path, body, answer)


async def create(admin: AdminApi, token: str, **body: Any) -> str:
    status, answer = await admin.clients.call("POST", f"{V3}/createRoom", body, token)
    assert status == 200, answer
    room_id: str = answer["room_id"]
    return room_id


async def join(admin: AdminApi, token: str, room_id: str) -> int:
    return (await admin.clients.call("POST", f"{V3}/rooms/{room_id}/join", {}, token))[0]


async def listed(admin: AdminApi, query: str = "") -> list[str]:
    answer = await admin.ok("GET", f"{V1}/rooms{query}")
    return [room["name"] for room in answer["rooms"]]


async def test_rooms_are_found_in_pages_and_by_name(admin: AdminApi) -> None:
    await create(admin, admin.alice, name="Zebra", room_alias_name="stripes")
    big = await create(admin, admin.alice, name="apple 100%", preset="public_chat")
    await create(admin, admin.alice, name="odd \0 name")
    assert await join(admin, admin.bob, big) == 200
    assert await listed(admin) == ["apple 100%", "Zebra", "odd \0 name"]
    assert await listed(admin, "?order_by=alphabetical&dir=b") == ["Zebra", "apple 100%", "odd \0 name"]
    assert (await listed(admin, "?order_by=size"))[0] == "apple 100%"
    assert (await listed(admin, "?order_by=joined_local_members&dir=b"))[-1] == "apple 100%"
    first = await admin.ok("GET", f"{V1}/rooms?limit=2")
    assert (first["total_rooms"], first["offset"], first["next_batch"]) == (3, 0, 2)
    rest = await admin.ok("GET", f"{V1}/rooms?limit=2&from=2")
    assert (len(rest["rooms"]), rest["prev_batch"], "next_batch" in rest) == (1, 0, False)
    for query in ("search_term=APPLE", f"search_term={quote(big)}", "search_term=0%25"):
        for order in ("name", "size"):
            answer = await admin.ok("GET", f"{V1}/rooms?{query}&order_by={order}")
            assert ([r["room_id"] for r in answer["rooms"]], answer["total_rooms"]) == ([big], 1), query
    assert await listed(admin, "?search_term=_") == []
    assert await listed(admin, "?search_term=stripes") == ["Zebra"]
    assert (
        await listed(admin, "?empty_rooms=true")
        == []
        == await listed(admin, "?empty_rooms=true&order_by=size")
    )
    assert len(await listed(admin, "?empty_rooms=false")) == 3
    for order in ("version", "canonical_alias", "public", "creator", "state_events", "hub"):
        assert len(await listed(admin, f"?order_by={order}&dir=b")) == 3


async def test_one_room_is_looked_into(admin: AdminApi) -> None:
    room = await create(admin, admin.alice, name="Garden", topic="Tulips", preset="public_chat")
    for n in range(3):
        path = f"{V3}/rooms/{room}/send/m.room.message/{n}"
        await admin.clients.call("PUT", path, {"body": str(n), "msgtype": "m.text"}, admin.alice)
    details = await admin.ok("GET", f"{V1}/rooms/{room}")
    assert (details["name"], details["topic"], details["creator"]) == ("Garden", "Tulips", ALICE)
    assert (details["joined_members"], details["joined_local_members"]) == (1, 1)
    assert (details["join_rules"], details["encryption"], details["federatable"]) == ("public", None, True)
    own = await admin.ok("GET", f"{OWN}/rooms/{room}")
    assert (own["hub"], own["hold"], own["blocked"], own["first_position"]) == (NAME, None, False, 0)
    assert await admin.ok("GET", f"{V1}/rooms/{room}/members") == {"members": [ALICE], "total": 1}
    state = (await admin.ok("GET", f"{V1}/rooms/{room}/state"))["state"]
    assert {"m.room.create", "m.room.name"} <= {event["type"] for event in state}
    newest = await admin.ok("GET", f"{V1}/rooms/{room}/messages?limit=2")
    assert [e["content"]["body"] for e in newest["chunk"]] == ["2", "1"]
    older = await admin.ok("GET", f"{V1}/rooms/{room}/messages?from={newest['end']}")
    assert older["chunk"][0]["content"]["body"] == "0"
    oldest = await admin.ok("GET", f"{V1}/rooms/{room}/messages?dir=f&limit=1000")
    assert oldest["chunk"][0]["type"] == "m.room.create" and "end" not in oldest
    assert all("hub_server" not in event for event in oldest["chunk"])


async def test_an_administrator_gets_power_from_whoever_has_it(admin: AdminApi) -> None:
    room = await create(admin, admin.alice)
    await admin.ok("POST", f"{V1}/rooms/{room}/make_room_admin")
    _, levels = await admin.clients.call(
        "GET", f"{V3}/rooms/{room}/state/m.room.power_levels", None, admin.alice
    )
    assert (levels["users"][ALICE], levels["users"][ROOT]) == (100, 100)
    assert await join(admin, admin.token, room) == 200
    await admin.ok("POST", f"{V1}/rooms/{room}/make_room_admin", {"user_id": ROOT})
    other = await create(admin, admin.alice)
    await admin.clients.call("POST", f"{V3}/rooms/{other}/leave", {}, admin.alice)
    status, answer = await admin.call("POST", f"{V1}/rooms/{other}/make_room_admin", {"user_id": BOB})
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_closed_room_is_entered_by_nobody_of_ours(admin: AdminApi) -> None:
    room = await create(admin, admin.alice, preset="public_chat")
    assert await admin.ok("GET", f"{V1}/rooms/{room}/block") == {"block": False}
    for _ in range(2):
        assert await admin.ok("PUT", f"{V1}/rooms/{room}/block", {"block": True}) == {"block": True}
    assert await admin.ok("GET", f"{V1}/rooms/{room}/block") == {"block": True, "user_id": ROOT}
    path = f"{V3}/rooms/{room}"
    for method, call in (
        ("POST", f"{path}/join"),
        ("POST", f"{V3}/knock/{room}"),
        ("POST", f"{V3}/join/{room}"),
    ):
        status, answer = await admin.clients.call(method, call, {}, admin.bob)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), call
    member = f"{path}/state/m.room.member/{BOB}"
    assert (await admin.clients.call("PUT", member, {"membership": "join"}, admin.bob))[0] == 403
    assert (await admin.clients.call("PUT", f"{path}/send/m.room.message/1", {"body": "x"}, admin.alice))[
        0
    ] == 200
    invite = (f"{path}/invite", {"user_id": BOB}, admin.alice)
    assert (await admin.clients.call("POST", *invite))[0] == 403
    await admin.ok("PUT", f"{V1}/rooms/{room}/block", {"block": False})
    assert (await admin.clients.call("POST", *invite))[0] == 200
    assert await join(admin, admin.bob, room) == 200
    elsewhere = await admin.ok("PUT", f"{V1}/rooms/!x:elsewhere.test/block", {"block": True})
    assert elsewhere == {"block": True} and await join(admin, admin.bob, "!x:elsewhere.test") == 403


async def everything(admin: AdminApi) -> str:
    """A room with something in as many tables as may be."""
    room = await create(
        admin, admin.alice, name="Doomed", preset="public_chat", room_alias_name="doomed", visibility="public",
        invite=["@carol:elsewhere.test"],
    )  # fmt: skip
    await join(admin, admin.bob, room)
    path = f"{V3}/rooms/{room}"
    for n in range(5):
        _, sent = await admin.clients.call(
            "PUT", f"{path}/send/m.room.message/d{n}", {"body": f"word{n}", "msgtype": "m.text"}, admin.alice
        )
    await admin.clients.call("POST", f"{path}/receipt/m.read/{sent['event_id']}", {}, admin.bob)
    await admin.clients.call("PUT", f"{path}/redact/{sent['event_id']}/r", {}, admin.alice)
    data = f"{V3}/user/{BOB}/rooms/{room}/account_data/org.test"
    await admin.clients.call("PUT", data, {"a": 1}, admin.bob)
    await admin.clients.call("GET", f"{V3}/sync", None, admin.bob)
    return room


async def rows(db: Database, room: str) -> dict[str, int]:
    tables = await db.fetch(
        "SELECT table_name FROM information_schema.columns WHERE column_name = 'room_id'"
        " AND table_schema = 'public'"
    )
    names = [row["table_name"] for row in tables]
    counts = {
        name: await db.fetchval(f"SELECT count(*) FROM {name} WHERE room_id = $1", room) for name in names
    }
    return {name: count for name, count in counts.items() if count}


KEPT = {
    "room_purges",
    "blocked_rooms",
    "outside_memberships",
    "outside_rooms",
    "reports",
    "appservice_invites",
    "backed_up_keys",
}
"""What operators note, what rooms elsewhere say of our users, and what is a user's alone."""


async def test_a_deleted_room_is_gone_from_every_table(
    admin: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "ROWS_AT_ONCE", 3)
    room, other = await everything(admin), await everything_else(admin)
    before = await rows(admin.server.db, other)
    answer = await admin.ok("DELETE", f"{V1}/rooms/{room}", {"block": True, "purge": True})
    assert (sorted(answer["kicked_users"]), answer["local_aliases"]) == ([ALICE, BOB], [f"#doomed:{NAME}"])
    assert set(await rows(admin.server.db, room)) <= KEPT
    assert await rows(admin.server.db, other) == before
    assert (await admin.call("GET", f"{V1}/rooms/{room}"))[0] == 404
    status, sync = await admin.clients.call("GET", f"{V3}/sync", None, admin.bob)
    assert status == 200 and room not in str(sync)
    assert await join(admin, admin.bob, room) == 403  # closed as well
    results = (await admin.ok("GET", f"{V2}/rooms/{room}/delete_status"))["results"]
    assert results[0]["status"] == "complete" and results[0]["removed_rows"] > 20


async def everything_else(admin: AdminApi) -> str:
    return await create(admin, admin.alice, name="Spared")


def test_every_table_of_rooms_is_purged_or_kept_for_a_reason() -> None:
    """Whoever adds a table with a `room_id` decides here what a deleted room means for it."""
    root = Path(purging.__file__).parent.parent
    source = (root / "storage/room_purges.py").read_text()
    schema = (root / "storage/schema.sql").read_text()
    tables = set(re.findall(r"CREATE TABLE (\w+) \([^;]*?\n    room_id ", schema))
    assert len(tables) > 15
    assert {table for table in tables if f"DELETE FROM {table} " not in source} == KEPT - {
        "room_purges",
        "blocked_rooms",
    }


async def test_a_deletion_goes_on_after_a_restart(admin: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in the middle is found by the next run; nobody joins until the end."""
    monkeypatch.setattr(purging, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(purging, "POLL_SECONDS", 0.2)
    room, remove_rows, tries = await everything(admin), room_purges.remove_rows, 0
    meanwhile: list[int] = []

    async def dies(db: Any, room_id: str, limit: int) -> int:
        nonlocal tries
        tries += 1
        if tries in (1, 4):
            if tries == 1:
                meanwhile.append(await join(admin, admin.bob, room_id))
                for token in (admin.alice, admin.bob):
                    meanwhile.append((await admin.clients.call("GET", f"{V3}/sync", None, token))[0])
            raise RuntimeError("as a crash would")
        return await remove_rows(db, room_id, limit)

    monkeypatch.setattr(room_purges, "remove_rows", dies)
    started = await admin.ok("DELETE", f"{V2}/rooms/{room}", {})
    again, answer = await admin.call("DELETE", f"{V2}/rooms/{room}", {})
    assert again in (400, 404), answer

    async def done() -> bool:
        status = await admin.ok("GET", f"{V2}/rooms/delete_status/{started['delete_id']}")
        return bool(status["status"] == "complete")

    await eventually(done)
    assert meanwhile == [403, 200, 200]
    assert tries > 4 and set(await rows(admin.server.db, room)) <= KEPT


async def test_users_may_leave_and_the_room_stay(admin: AdminApi) -> None:
    room = await everything(admin)
    answer = await admin.ok("DELETE", f"{V1}/rooms/{room}", {"purge": False})
    assert sorted(answer["kicked_users"]) == [ALICE, BOB]
    assert (await admin.ok("GET", f"{V1}/rooms/{room}"))["joined_members"] == 0


async def test_other_servers_hear_of_the_end_of_a_room(cluster: Cluster, tmp_path: Path) -> None:
    """A hub's deletion waits until the other server has taken the leave; a participant's is heard too, and
    both can be in a room of the other again."""
    async with sites(cluster, tmp_path, "hub.test", "participant.test") as (hub, participant):
        alice, bob = await hub.user("alice"), await participant.user("bob")
        for site, ours in ((hub, alice), (participant, bob)):
            room = await alice.create(preset="public_chat")
            await bob.act("join", room)
            delete_id = await site.server.purges.begin(room, "root", deletes=True, forced=False)
            async with asyncio.timeout(HANGS):
                while (purge := await room_purges.one(site.db, delete_id)) and purge.ended_ts is None:
                    await site.server.purges.check()
            assert purge is not None and (purge.status, list(purge.kicked)) == ("complete", [ours.user_id])
            other = participant if site is hub else hub

            async def left(other: Site = other, room: str = room, user: str = ours.user_id) -> bool:
                return await other.membership(room, user) == "leave"

            await eventually(left)
            assert set(await rows(site.db, room)) <= KEPT
        # The participant's room is still there at its hub: it is entered as if it had never been known.
        await bob.act("join", room)
        await alice.say(room, "Back again", "t1")
        await bob.say(room, "Here", "t2")
        section = await bob.until("join", room)
        assert section["timeline"]["events"]


async def test_a_stored_transaction_survives_the_end_of_its_room(cluster: Cluster, tmp_path: Path) -> None:
    """Events that are sent as where they stand are gone: the transaction is given up and the next one goes."""
    async with sites(cluster, tmp_path, "hub.test", "participant.test") as (hub, participant):
        alice, bob = await hub.user("alice"), await participant.user("bob")
        doomed, other = await alice.create(preset="public_chat"), await alice.create(preset="public_chat")
        for room in (doomed, other):
            await bob.act("join", room)
        await hub.server.sender.stop()
        await alice.say(doomed, "last words", "t1")
        built = build(await outbound.due(hub.db, "participant.test", 2**50, 50, 50), lambda _, __: [])
        fence = await destinations.seize(hub.db, "participant.test")
        assert built is not None and fence is not None and built.contents.spans
        stored = OutboundTransaction("stored", None, built.contents.encode())
        assert await outbound.store_transaction(hub.db, "participant.test", fence, stored, 1)
        await hub.server.purges.begin(doomed, "root", deletes=True, forced=True)
        await hub.server.purges.check()
        assert set(await rows(hub.db, doomed)) <= KEPT
        await alice.say(other, "life goes on", "t2")
        await hub.server.sender.start()
        answer = await bob.until("join", other)
        bodies: list[str] = []
        async with asyncio.timeout(HANGS):
            while "life goes on" not in bodies:
                bodies += [e["content"].get("body") for e in answer["timeline"]["events"]]
                if "life goes on" not in bodies:
                    answer = await bob.until("join", other)


async def test_rooms_that_nobody_here_is_in_go_by_themselves(cluster: Cluster, tmp_path: Path) -> None:
    """Not at once, not while somebody is invited, and not while other servers need their hub."""
    async with sites(cluster, tmp_path, "hub.test", "participant.test") as (hub, participant):
        alice, bob = await hub.user("alice"), await participant.user("bob")
        needed, empty, inviting = [await alice.create(preset="public_chat") for _ in range(3)]
        await bob.act("join", needed)
        carol = await hub.user("carol")
        await alice.act("invite", inviting, carol)
        for room in (needed, empty, inviting):
            await alice.act("leave", room)
        purges = hub.server.purges
        purges._keep_empty_ms = 1000
        await purges.tidy()
        assert await room_purges.active(hub.db, 10) == []
        now = purges._clock
        purges._clock = lambda: now() + 2000
        await purges.tidy()
        assert [purge.room_id for purge in await room_purges.active(hub.db, 10)] == [empty]
        await purges.check()
        assert await hub.engine.view(empty) is None and await hub.engine.view(needed) is not None
        await carol.act("leave", inviting)
        await bob.act("leave", needed)
        for later in (3000, 6000):
            purges._clock = lambda later=later: now() + later
            await purges.tidy()
        assert {p.room_id for p in await room_purges.active(hub.db, 10)} == {needed, inviting}
