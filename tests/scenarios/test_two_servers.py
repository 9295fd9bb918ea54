"""Two servers in their own processes: crashes, outages, and what everybody sees afterwards."""

from __future__ import annotations

import secrets
from pathlib import Path
from urllib.parse import quote

import aiohttp

from tests.kit.processes import ServerProcess, configure, lmserver
from tests.kit.users import User, register
from tests.kit.waiting import eventually

Servers = tuple[ServerProcess, ServerProcess]


async def shared_room(alice: User, bob: User) -> str:
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.ok("POST", f"/join/{quote(room_id)}", {})
    return f"/rooms/{quote(room_id)}"


def message(text: str) -> dict[str, str]:
    return {"msgtype": "m.text", "body": text}


async def test_nothing_is_lost_when_either_server_is_killed(
    servers: Servers, http: aiohttp.ClientSession
) -> None:
    """Outage of the participant: the hub catches it up. Crash of the hub in the middle: what was
    acknowledged stands, in one order, on both."""
    hub, participant = servers
    alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
    room = await shared_room(alice, bob)
    sent = []
    for number in range(5):
        answer = await alice.ok("PUT", f"{room}/send/m.room.message/a{number}", message(f"before {number}"))
        sent.append(answer["event_id"])
    participant.kill()
    for number in range(60):
        answer = await alice.ok(
            "PUT", f"{room}/send/m.room.message/b{number}", message(f"while down {number}")
        )
        sent.append(answer["event_id"])
    hub.kill()
    await hub.start()
    for number in range(60):
        retried = await alice.ok("PUT", f"{room}/send/m.room.message/b{number}", message("again"))
        assert retried["event_id"] == sent[5 + number]
    await participant.start()

    async def caught_up() -> bool:
        return sent[-1] in await bob.history(room)

    await eventually(caught_up)
    answer = await bob.ok("PUT", f"{room}/send/m.room.message/c", message("after"))
    sent.append(answer["event_id"])
    await eventually(caught_up)
    theirs, ours = await alice.history(room), await bob.history(room)
    assert theirs[len(theirs) - len(ours) :] == ours
    assert [event_id for event_id in ours if event_id in sent] == sent
    for server in servers:
        assert server.stop() == 0
        verified = lmserver("verify", "--config", str(server.config))
        assert verified.returncode == 0, verified.stdout


async def test_a_participants_message_waits_for_a_hub_that_is_away(
    servers: Servers, http: aiohttp.ClientSession
) -> None:
    hub, participant = servers
    alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
    room = await shared_room(alice, bob)
    hub.kill()
    txn = secrets.token_hex(4)
    status, answer = await bob.call("PUT", f"{room}/send/m.room.message/{txn}", message("hello?"))
    assert (status, answer["errcode"]) == (504, "M_UNKNOWN")
    await hub.start()
    again = await bob.ok("PUT", f"{room}/send/m.room.message/{txn}", message("hello?"))

    async def arrived() -> bool:
        return (await alice.history(room)).count(again["event_id"]) == 1

    await eventually(arrived)


async def test_invite_reject_kick_ban_across_servers(servers: Servers, http: aiohttp.ClientSession) -> None:
    hub, participant = servers
    alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "private_chat"}))["room_id"]
    room = f"/rooms/{quote(room_id)}"
    assert (await bob.call("POST", f"/join/{quote(room_id)}", {}))[0] == 403
    await alice.ok("POST", f"{room}/invite", {"user_id": bob.user_id})
    invited = await bob.ok("GET", "/sync?timeout=0")
    assert room_id in invited["rooms"]["invite"]
    await bob.ok("POST", f"{room}/leave", {})
    member = await alice.ok("GET", f"{room}/state/m.room.member/{quote(bob.user_id)}")
    assert member["membership"] == "leave"
    await alice.ok("POST", f"{room}/invite", {"user_id": bob.user_id})
    await bob.ok("POST", f"{room}/join", {})
    carol = await register(http, participant, "carol")
    await bob.ok("POST", f"{room}/invite", {"user_id": carol.user_id})
    await carol.ok("POST", f"{room}/join", {})
    await alice.ok("POST", f"{room}/ban", {"user_id": bob.user_id})

    async def gone() -> bool:
        return room_id not in (await bob.ok("GET", "/joined_rooms"))["joined_rooms"]

    await eventually(gone)
    assert (await bob.call("PUT", f"{room}/send/m.room.message/x", message("still here?")))[0] == 403
    assert (await carol.call("PUT", f"{room}/send/m.room.message/x", message("I am")))[0] == 200


async def test_a_participant_invites_a_user_of_a_third_server(
    servers: Servers, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Participant to hub to target, proxied (D04 §Invites)."""
    hub, participant = servers
    third = configure(tmp_path, "third")
    await third.start()
    try:
        alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
        carol = await register(http, third, "carol")
        room = await shared_room(alice, bob)
        levels = await alice.ok("GET", f"{room}/state/m.room.power_levels/")
        await alice.ok("PUT", f"{room}/state/m.room.power_levels/", {**levels, "invite": 0})

        async def allowed() -> bool:
            seen = await bob.ok("GET", f"{room}/state/m.room.power_levels/")
            return bool(seen["invite"] == 0)

        await eventually(allowed)
        status, answer = await bob.call("POST", f"{room}/invite", {"user_id": f"@nobody:{third.name}"})
        assert status in (403, 404), answer
        await bob.ok("POST", f"{room}/invite", {"user_id": carol.user_id})
        await carol.ok("POST", f"{room}/join", {})
        said = await carol.ok("PUT", f"{room}/send/m.room.message/1", message("hello all"))

        async def everywhere() -> bool:
            return said["event_id"] in await alice.history(room) and said["event_id"] in await bob.history(
                room
            )

        await eventually(everywhere)
    finally:
        third.stop()
