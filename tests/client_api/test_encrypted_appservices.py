"""Application services that encrypt without /sync: messages to devices, device lists, one-time keys (MSC2409,
MSC3202), and devices without a login (MSC4190)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmserver.storage.database import Database
from tests.kit.bridge import AS_TOKEN, Bridge, Bridged, start
from tests.kit.client_api import NAME, V3, login
from tests.kit.cross_signing import SigningDevice
from tests.kit.waiting import eventually

BOT, GHOST = (f"@_bridge_{name}:{NAME}" for name in ("bot", "ghost"))
ENCRYPTS = {"receive_ephemeral": True, "org.matrix.msc3202": True}
DEVICE = "BRIDGE"
KEY = {"key": "k" * 43}


def acting(user: str = BOT, device: str = DEVICE) -> str:
    return f"?user_id={user}&org.matrix.msc3202.device_id={device}"


async def with_device(api: Bridged, user: str = BOT) -> None:
    """Make a device for a user of the bridge, with keys."""
    assert await api.call("PUT", f"{V3}/devices/{DEVICE}?user_id={user}", {}, AS_TOKEN) == (201, {})
    assert await api.call("PUT", f"{V3}/devices/{DEVICE}?user_id={user}", {}, AS_TOKEN) == (200, {})
    body = {
        "device_keys": SigningDevice(user, DEVICE).keys,
        "one_time_keys": {f"signed_curve25519:{n}": KEY for n in "AB"},
        "fallback_keys": {"signed_curve25519:F": KEY},
    }
    status, answer = await api.call("POST", f"{V3}/keys/upload{acting(user)}", body, AS_TOKEN)
    assert (status, answer["one_time_key_counts"]) == (200, {"signed_curve25519": 2}), answer


async def tell(api: Bridged, token: str, txn: str, user: str = BOT, device: str = DEVICE) -> None:
    body = {"messages": {user: {device: {"n": txn}}}}
    assert (await api.call("PUT", f"{V3}/sendToDevice/m.test/{txn}", body, token))[0] == 200


def heard(bridge: Bridge, name: str = "to_device") -> list[Any]:
    return [event for some in bridge.told(name) for event in some]


async def test_a_message_to_a_device_comes_once_through_outage_and_restart(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    api = await start(db, tmp_path, bridge, **ENCRYPTS)
    alice = (await api.register("alice"))["access_token"]
    await with_device(api)
    await tell(api, alice, "first")
    await eventually(lambda: len(heard(bridge)) == 1)
    assert heard(bridge)[0] == {
        "type": "m.test", "sender": f"@alice:{NAME}", "content": {"n": "first"},
        "to_user_id": BOT, "to_device_id": DEVICE,
    }  # fmt: skip
    bridge.status = 500
    await tell(api, alice, "second")
    await eventually(lambda: any(b'"second"' in body for _, body in bridge.bodies))
    await tell(api, alice, "third", device="*")
    await api.stop()
    again = await start(db, tmp_path, bridge, **ENCRYPTS)
    await again.ghost()
    await with_device(again, GHOST)
    await tell(again, alice, "fourth", GHOST)
    await tell(again, alice, "first")  # the transaction of before
    bridge.status = 200
    await eventually(lambda: len(heard(bridge)) == 4)
    await tell(again, alice, "last")
    await eventually(lambda: len(heard(bridge)) == 5)
    wanted = ["first", "second", "third", "fourth", "last"]
    assert [event["content"]["n"] for event in heard(bridge)] == wanted
    assert heard(bridge, "de.sorunome.msc2409.to_device") == heard(bridge)
    assert [event["to_user_id"] for event in heard(bridge)] == [BOT, BOT, BOT, GHOST, BOT]
    assert await db.fetchval("SELECT count(*) FROM to_device_messages") == 0
    await again.stop()


async def test_a_bridge_is_told_how_many_keys_its_devices_have_left(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    api = await start(db, tmp_path, bridge, **ENCRYPTS)
    alice = (await api.register("alice"))["access_token"]
    await with_device(api)
    claim = {"one_time_keys": {BOT: {DEVICE: "signed_curve25519"}}}
    for txn, left, fallback in (("1", 1, True), ("2", 0, True), ("3", 0, False)):
        assert (await api.call("POST", f"{V3}/keys/claim", claim, alice))[0] == 200
        await tell(api, alice, txn)
        await eventually(lambda n=txn: any(e["content"]["n"] == n for e in heard(bridge)))
        for name in ("device_one_time_keys_count", "org.matrix.msc3202.device_one_time_keys_count"):
            assert bridge.told(name)[-1] == {BOT: {DEVICE: {"signed_curve25519": left}}}
        unused = ["signed_curve25519"] if fallback else []
        assert bridge.told("device_unused_fallback_key_types")[-1] == {BOT: {DEVICE: unused}}
    await api.stop()


async def test_a_bridge_is_told_whose_devices_changed_where_its_users_are(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    api = await start(db, tmp_path, bridge, **ENCRYPTS)
    tokens = {}
    for name in ("alice", "bob", "stranger"):
        tokens[name] = await api.register(name)
    room = await api.room(tokens["alice"]["access_token"], BOT)
    assert (await api.call("POST", f"{V3}/join/{room}", {}, AS_TOKEN))[0] == 200
    await api.say(room, "hello", tokens["alice"]["access_token"], "1")
    await eventually(lambda: bridge.texts() == ["hello"])

    def changed() -> set[str]:
        return {user for lists in bridge.told("device_lists") for user in lists["changed"]}

    async def publish(api: Bridged, name: str) -> None:
        user, device = tokens[name]["user_id"], tokens[name]["device_id"]
        body = {"device_keys": SigningDevice(user, device).keys}
        token = tokens[name]["access_token"]
        assert (await api.call("POST", f"{V3}/keys/upload", body, token))[0] == 200

    before = len(bridge.told("device_lists"))
    await publish(api, "stranger")
    await publish(api, "alice")
    await eventually(lambda: len(bridge.told("device_lists")) > before)
    assert bridge.told("device_lists")[before]["changed"] == [f"@alice:{NAME}"]
    await api.call("POST", f"{V3}/join/{room}", {}, tokens["bob"]["access_token"])
    await eventually(lambda: f"@bob:{NAME}" in changed())
    await api.stop()
    away = await start(db, tmp_path, bridge, **ENCRYPTS)
    away.task.cancel()  # nothing is told while this one serves
    before = len(bridge.told("device_lists"))
    status, again = await away.call("POST", f"{V3}/login", login("alice"))
    assert status == 200
    tokens["alice"] = again
    await publish(away, "alice")
    await away.stop()
    back = await start(db, tmp_path, bridge, **ENCRYPTS)
    await back.say(room, "back", again["access_token"], "2")
    await eventually(
        lambda: (
            f"@alice:{NAME}"
            in {u for lists in bridge.told("device_lists")[before:] for u in lists["changed"]}
        )
    )
    await back.call("POST", f"{V3}/rooms/{room}/leave", {}, tokens["bob"]["access_token"])
    await eventually(lambda: any(lists["left"] == [f"@bob:{NAME}"] for lists in bridge.told("device_lists")))
    assert f"@stranger:{NAME}" not in changed()
    assert bridge.told("org.matrix.msc3202.device_lists") == bridge.told("device_lists")
    await back.stop()


@pytest.mark.parametrize("said", [{}, {"receive_ephemeral": True}, {"org.matrix.msc3202": True}])
async def test_devices_of_a_service_that_does_not_ask_for_it_have_their_messages_from_sync(
    db: Database, tmp_path: Path, bridge: Bridge, said: dict[str, Any]
) -> None:
    api = await start(db, tmp_path, bridge, **said)
    alice = (await api.register("alice"))["access_token"]
    body = {"type": "m.login.application_service", "identifier": {"type": "m.id.user", "user": "_bridge_bot"}}
    status, device = await api.call("POST", f"{V3}/login", body, AS_TOKEN)
    assert status == 200, device
    await tell(api, alice, "1", device=device["device_id"])
    room = await api.room(alice, BOT)
    await api.call("POST", f"{V3}/join/{room}", {}, AS_TOKEN)
    await api.say(room, "hello", alice, "1")
    await eventually(lambda: bridge.texts() == ["hello"])
    assert not bridge.told("to_device") and not bridge.told("device_lists")
    _, synced = await api.call("GET", f"{V3}/sync", None, device["access_token"])
    assert [event["content"] for event in synced["to_device"]["events"]] == [{"n": "1"}]
    await api.stop()
