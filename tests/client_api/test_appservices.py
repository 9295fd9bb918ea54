"""Application services: as whom they act, what is theirs alone, and what they are told, once each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from lmserver.config import ConfigError, parse_config
from lmserver.storage.database import Database
from tests.kit.bridge import AS_TOKEN, Bridge, Bridged, start
from tests.kit.client_api import NAME, PASSWORD, V3, serve
from tests.kit.waiting import eventually

BOT = f"@_bridge_bot:{NAME}"
GHOST = f"@_bridge_ghost:{NAME}"
WHOAMI = f"{V3}/account/whoami"


@pytest.fixture
async def api(db: Database, tmp_path: Path, bridge: Bridge) -> AsyncIterator[Bridged]:
    made = await start(db, tmp_path, bridge)
    yield made
    await made.stop()


def acting(user_id: str) -> str:
    return f"?user_id={quote(user_id)}"


async def test_a_service_acts_as_its_users_and_nobody_else(api: Bridged) -> None:
    await api.register("alice")
    await api.ghost()
    assert await api.call("GET", WHOAMI, token=AS_TOKEN) == (200, {"user_id": BOT, "is_guest": False})
    assert (await api.call("GET", f"{WHOAMI}?access_token={AS_TOKEN}"))[1]["user_id"] == BOT
    assert (await api.call("GET", WHOAMI + acting(GHOST), token=AS_TOKEN))[1]["user_id"] == GHOST
    for other in (f"@alice:{NAME}", f"@_bridge_nobody:{NAME}", "@_bridge_x:other.test", "x", ""):
        status, answer = await api.call("GET", WHOAMI + acting(other), token=AS_TOKEN)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), other
    assert (await api.call("GET", WHOAMI, token=AS_TOKEN + "x"))[0] == 401
    status, answer = await api.call("GET", f"{WHOAMI}{acting(GHOST)}&device_id=NONE", token=AS_TOKEN)
    assert (status, answer["errcode"]) == (400, "M_UNKNOWN_DEVICE")
    login = {
        "type": "m.login.application_service",
        "identifier": {"type": "m.id.user", "user": "_bridge_ghost"},
    }
    status, answer = await api.call("POST", f"{V3}/login", {**login, "device_id": "BRIDGE"}, AS_TOKEN)
    assert (status, answer["user_id"]) == (200, GHOST)
    status, refused = await api.call("POST", f"{V3}/keys/upload{acting(GHOST)}", {}, AS_TOKEN)
    assert (status, refused["errcode"]) == (400, "M_UNKNOWN_DEVICE")
    keys = f"{V3}/keys/upload{acting(GHOST)}&device_id=BRIDGE"
    assert (await api.call("POST", keys, {}, AS_TOKEN))[0] == 200
    seen = (await api.call("GET", f"{WHOAMI}{acting(GHOST)}&device_id=BRIDGE", token=AS_TOKEN))[1]
    assert seen["device_id"] == "BRIDGE"
    assert (await api.call("POST", f"{V3}/login", login))[0] == 401
    assert (await api.call("POST", f"{V3}/login", login, answer["access_token"]))[0] == 401
    login["identifier"] = {"type": "m.id.user", "user": "alice"}
    assert (await api.call("POST", f"{V3}/login", login, AS_TOKEN))[0] == 403
    ours = (await api.call("GET", f"{V3}/login"))[1]["flows"]
    assert {"type": "m.login.application_service"} in ours


async def test_what_is_exclusive_is_nobody_elses(api: Bridged) -> None:
    alice = await api.register("alice")
    status, answer = await api.call("GET", f"{V3}/register/available?username=_bridge_x")
    assert (status, answer["errcode"]) == (400, "M_EXCLUSIVE")
    body = {"type": "m.login.application_service", "username": "alice2"}
    assert (await api.call("POST", f"{V3}/register", body, AS_TOKEN))[1]["errcode"] == "M_EXCLUSIVE"
    body["username"] = "_bridge_bot"
    assert (await api.call("POST", f"{V3}/register", body, AS_TOKEN))[1]["errcode"] == "M_USER_IN_USE"
    assert (await api.call("POST", f"{V3}/register", body, alice["access_token"]))[0] == 401
    assert (await api.call("POST", f"{V3}/register", body))[1]["errcode"] == "M_MISSING_TOKEN"
    room = await api.room(alice["access_token"], BOT)
    alias = quote(f"#_bridge_room:{NAME}")
    status, answer = await api.call(
        "PUT", f"{V3}/directory/room/{alias}", {"room_id": room}, alice["access_token"]
    )
    assert (status, answer["errcode"]) == (400, "M_EXCLUSIVE")
    assert (await api.call("POST", f"{V3}/join/{room}", {}, AS_TOKEN))[0] == 200
    assert (await api.call("PUT", f"{V3}/directory/room/{alias}", {"room_id": room}, AS_TOKEN))[0] == 200


async def test_a_service_says_when_an_event_was_sent_and_others_do_not(api: Bridged) -> None:
    alice = await api.register("alice")
    room = await api.room(alice["access_token"])
    await api.call("POST", f"{V3}/join/{room}", {}, AS_TOKEN)
    for token, wanted in ((AS_TOKEN, True), (alice["access_token"], False)):
        event = await api.say(room, "old", token, "1", "?ts=1234567890123")
        found = (await api.call("GET", f"{V3}/rooms/{room}/event/{event}", token=token))[1]
        assert (found["origin_server_ts"] == 1234567890123) is wanted
    status, answer = await api.call("PUT", f"{V3}/rooms/{room}/send/m.x/9?ts=x", {}, AS_TOKEN)
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_ping_goes_there_and_back(api: Bridged, bridge: Bridge, db: Database) -> None:
    path = "/_matrix/client/v1/appservice/bridge/ping"
    status, answer = await api.call("POST", path, {"transaction_id": "t"}, AS_TOKEN)
    assert (status, answer["duration_ms"] >= 0, bridge.pings) == (200, True, [{"transaction_id": "t"}])
    assert (await api.call("POST", path.replace("bridge", "other"), {}, AS_TOKEN))[0] == 403
    alice = await api.register("alice")
    assert (await api.call("POST", path, {}, alice["access_token"]))[1]["errcode"] == "M_FORBIDDEN"
    bridge.status = 500
    status, answer = await api.call("POST", path, {}, AS_TOKEN)
    assert (status, answer["errcode"], answer["status"]) == (502, "M_BAD_STATUS", 500)
    await bridge.close()
    assert (await api.call("POST", path, {}, AS_TOKEN))[1]["errcode"] == "M_CONNECTION_FAILED"


async def test_everything_comes_once_and_in_order_through_outages_and_restarts(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    api = await start(db, tmp_path, bridge)
    token = (await api.register("alice"))["access_token"]
    before = await api.room(token)
    await api.say(before, "not for the bridge", token, "0")
    room = await api.room(token, BOT)
    await eventually(lambda: any(e.get("state_key") == BOT for e in bridge.events()))
    [invite] = bridge.events()
    assert (invite["content"]["membership"], invite["room_id"]) == ("invite", room)
    assert (await api.call("POST", f"{V3}/join/{room}", {}, AS_TOKEN))[0] == 200
    await api.say(room, "one", token, "1")
    await eventually(lambda: bridge.texts() == ["one"])
    bridge.status = 503
    for number in range(150):
        await api.say(room, f"away {number}", token, f"away{number}")
    sent = len(bridge.bodies)
    await eventually(lambda: len(bridge.bodies) > sent)
    await api.stop()  # with a transaction on its way that nobody has taken
    api = await start(db, tmp_path, bridge)
    token = (await api.call("POST", f"{V3}/login", {
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": PASSWORD,
    }))[1]["access_token"]  # fmt: skip
    await api.say(room, "after the restart", token, "2")
    bridge.status = 200
    wanted = ["one", *(f"away {number}" for number in range(150)), "after the restart"]
    await eventually(lambda: len(bridge.texts()) >= len(wanted))
    assert bridge.texts() == wanted
    ids = [event["event_id"] for event in bridge.events()]
    assert len(ids) == len(set(ids))
    numbers = {}
    for txn, body in bridge.bodies:
        assert numbers.setdefault(txn, body) == body, "a transaction changed between two tries"
    await api.stop()


async def test_a_service_sees_what_its_users_may_see(api: Bridged, bridge: Bridge) -> None:
    alice = (await api.register("alice"))["access_token"]
    await api.ghost()
    joined = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    room = await api.room(alice, initial_state=[joined])
    await api.say(room, "before", alice, "1")
    await api.call("POST", f"{V3}/rooms/{room}/invite", {"user_id": GHOST}, alice)
    await api.say(room, "while invited", alice, "2")
    await api.call("POST", f"{V3}/join/{room}{acting(GHOST)}", {}, AS_TOKEN)
    event = await api.say(room, "hello", alice, "3")
    await eventually(lambda: bridge.texts() == ["hello"])
    assert [e["content"]["membership"] for e in bridge.events() if e.get("state_key") == GHOST] == [
        "invite",
        "join",
    ]
    await api.call("POST", f"{V3}/rooms/{room}/kick", {"user_id": GHOST}, alice)
    await api.say(room, "behind its back", alice, "4")
    await eventually(lambda: any(e["content"].get("membership") == "leave" for e in bridge.events()))
    await api.call("PUT", f"{V3}/rooms/{room}/redact/{event}/5", {}, alice)
    await api.call("POST", f"{V3}/join/{room}{acting(GHOST)}", {}, AS_TOKEN)
    await api.say(
        room,
        "again",
        alice,
        "6",
    )
    await eventually(lambda: "again" in bridge.texts())
    assert bridge.texts() == ["hello", "again"]


async def test_a_user_in_a_shared_namespace_is_followed_too(api: Bridged, bridge: Bridge) -> None:
    puppet = (await api.register("puppet"))["access_token"]
    room = await api.room(puppet)
    await api.say(room, "of a person", puppet, "1")
    await eventually(lambda: bridge.texts() == ["of a person"])
    assert (await api.call("GET", WHOAMI + acting(f"@puppet:{NAME}"), token=AS_TOKEN))[0] == 200


async def test_users_and_aliases_are_made_when_they_are_wanted(api: Bridged, bridge: Bridge) -> None:
    alice = (await api.register("alice"))["access_token"]
    room = await api.room(AS_TOKEN)
    alias = f"#_bridge_new:{NAME}"

    async def make_alias() -> None:
        await api.call("PUT", f"{V3}/directory/room/{quote(alias)}", {"room_id": room}, AS_TOKEN)

    bridge.knows = {GHOST: api.ghost, alias: make_alias}
    status, answer = await api.call("POST", f"{V3}/join/{quote(alias)}", {}, alice)
    assert (status, answer["room_id"]) == (200, room)
    own = await api.room(alice)
    assert (await api.call("POST", f"{V3}/rooms/{own}/invite", {"user_id": GHOST}, alice))[0] == 200
    nobody = f"@_bridge_nobody:{NAME}"
    assert (await api.call("POST", f"{V3}/rooms/{own}/invite", {"user_id": nobody}, alice))[0] != 200
    assert (await api.call("GET", f"{V3}/directory/room/{quote(f'#_bridge_none:{NAME}')}"))[0] == 404
    assert bridge.asked == [alias, GHOST, nobody, f"#_bridge_none:{NAME}"]


async def test_typing_and_receipts_come_when_they_are_wanted(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    api = await start(db, tmp_path, bridge, receive_ephemeral=True)
    alice = await api.register("alice")
    token = alice["access_token"]
    room = await api.room(token, BOT)
    await api.call("POST", f"{V3}/join/{room}", {}, AS_TOKEN)
    event = await api.say(room, "hello", token, "1")
    await eventually(lambda: bridge.texts() == ["hello"])
    await api.call("PUT", f"{V3}/rooms/{room}/typing/{alice['user_id']}", {"typing": True}, token)
    await eventually(lambda: any(e["type"] == "m.typing" for e in bridge.ephemeral()))
    await api.call("POST", f"{V3}/rooms/{room}/receipt/m.read/{event}", {}, token)
    await eventually(lambda: any(e["type"] == "m.receipt" for e in bridge.ephemeral()))
    receipts = [e for e in bridge.ephemeral() if e["type"] == "m.receipt"]
    assert list(receipts[0]["content"][event]["m.read"]) == [alice["user_id"]]
    assert len(receipts) == 1
    await api.stop()


async def test_a_service_needs_no_password_and_may_be_without_limits(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    registration = bridge.registration(tmp_path)
    limits = {"limits": {"requests": {"per_second": 0.001, "burst": 2}}, "appservices": [registration]}
    made = await serve(db, tmp_path, limits)
    await made.server.appservices.services.start()
    for _ in range(5):
        assert (await made.call("GET", WHOAMI, token=AS_TOKEN))[0] == 200
    assert (await made.call("POST", f"{V3}/delete_devices", {"devices": []}, AS_TOKEN))[0] == 200
    await made.close()


def test_what_is_wrong_with_a_registration_is_named(tmp_path: Path, bridge: Bridge) -> None:
    right = {"id": "a", "url": None, "as_token": "a" * 16, "hs_token": "h" * 16, "sender_localpart": "bot"}
    (tmp_path / "right.yaml").write_text(yaml.safe_dump(right), encoding="utf-8")
    assert (
        parse_config({"server_name": NAME, "appservices": ["right.yaml"]}, tmp_path).appservices[0].url
        is None
    )
    for change in (
        {"id": ""}, {"as_token": "short"}, {"hs_token": 5}, {"url": "ftp://x"}, {"url": 5}, {"namespaces": 5},
        {"namespaces": {"users": [{"regex": "("}]}}, {"namespaces": {"users": [5]}}, {"sender_localpart": None},
    ):  # fmt: skip
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**right, **change}), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"appservices: .*wrong\.yaml"):
            parse_config({"server_name": NAME, "appservices": ["wrong.yaml"]}, tmp_path)
    for files in (["none.yaml"], ["right.yaml", "right.yaml"], 5, [5]):
        with pytest.raises(ConfigError, match="appservices"):
            parse_config({"server_name": NAME, "appservices": files}, tmp_path)
