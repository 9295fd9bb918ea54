"""Dehydrated devices (MSC3814): left by one login, found by another with what came meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from lmserver.accounts import device_data
from lmserver.storage.database import Database
from tests.kit.cross_signing import SigningDevice
from tests.kit.edu_world import Device, EduWorld, to_device
from tests.kit.rooms import ALICE
from tests.kit.waiting import eventually

PATH = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
ID = "cur/ve+key"
DATA = {"algorithm": "org.matrix.msc3814.v1.olm", "device_pickle": "secret"}
LIST = "m.device_list_update"


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path) as made:
        yield made


async def call(device: Device, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {device.token}"}
    async with device.http.request(
        method, URL(PATH + path, encoded=True), json=body, headers=headers
    ) as response:
        return response.status, await response.json()


def new(device_id: str = ID, **changes: Any) -> Any:
    return {
        "device_id": device_id,
        "device_data": DATA,
        "initial_device_display_name": "asleep",
        "device_keys": SigningDevice(ALICE, device_id).keys,
        "one_time_keys": {"signed_curve25519:a": {"key": "k"}},
        "fallback_keys": {"signed_curve25519:f": {"key": "f", "fallback": True}},
        **changes,
    }


async def events(device: Device, device_id: str = ID) -> list[int]:
    """What the messages say, over all parts."""
    found: list[int] = []
    token = ""
    while True:
        status, answer = await call(
            device, "POST", f"/{quote(device_id, safe='')}/events", {"next_batch": token}
        )
        assert status == 200, answer
        if not answer["events"]:
            return found
        found += [event["content"]["n"] for event in answer["events"]]
        token = answer["next_batch"]


async def test_a_device_waits_and_is_taken_up_with_its_messages(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_data, "MAX_MESSAGES", 2)
    alice, carol = await world.device("alice"), await world.device("carol")
    assert (await call(alice, "GET"))[1]["errcode"] == "M_NOT_FOUND"
    assert await call(alice, "PUT", body=new()) == (200, {"device_id": ID})
    assert await call(alice, "GET") == (200, {"device_id": ID, "device_data": DATA})
    assert (await call(carol, "GET"))[0] == 404
    seen = await carol.ok("POST", "/keys/query", {"device_keys": {ALICE: []}})
    assert list(seen["device_keys"][ALICE]) == [ID]
    for wanted in ("signed_curve25519:a", "signed_curve25519:f"):
        claimed = await carol.ok("POST", "/keys/claim", {"one_time_keys": {ALICE: {ID: "signed_curve25519"}}})
        assert list(claimed["one_time_keys"][ALICE][ID]) == [wanted]
    await carol.send_to_device(ALICE, ID, {"n": 0}, {"n": 1})
    await carol.send_to_device(ALICE, "*", {"n": 2})
    await world.send(to_device(ALICE, ID, {"n": 3}))
    await alice.ok("POST", "/logout")
    later = await world.device("alice", "LATER")
    # Who breaks off in the middle finds everything again.
    assert await events(later) == await events(later) == [0, 1, 2, 3]
    status, answer = await call(later, "POST", "/LATER/events", {})
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    status, answer = await call(later, "POST", f"/{quote(ID, safe='')}/events", {"next_batch": "x"})
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    assert await call(later, "DELETE") == (200, {"device_id": ID})
    assert (await call(later, "DELETE"))[0] == 404
    assert (await later.ok("POST", "/keys/query", {"device_keys": {ALICE: []}}))["device_keys"] == {ALICE: {}}
    assert await world.db.fetchval("SELECT count(*) FROM to_device_messages WHERE device_id = $1", ID) == 0


async def test_a_new_device_takes_the_place_of_the_old_one_and_others_are_told(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.upload_keys()
    await call(alice, "PUT", body=new())
    await call(alice, "PUT", body=new("another"))
    assert (await call(alice, "GET"))[1]["device_id"] == "another"
    await eventually(lambda: len(world.received(LIST)) == 4)
    told = [(edu["content"]["device_id"], edu["content"]["deleted"]) for edu in world.received(LIST)]
    assert told == [("D", False), (ID, False), (ID, True), ("another", False)]
    assert [d["device_id"] for d in (await alice.ok("GET", "/devices"))["devices"]] == ["D", "another"]


async def test_what_is_no_device_to_leave(world: EduWorld) -> None:
    alice = await world.device("alice")
    for body, errcode in [
        ([], "M_BAD_JSON"), ({}, "M_BAD_JSON"), (new(device_id=""), "M_BAD_JSON"), (new(device_data={}), "M_BAD_JSON"),
        (new(device_keys=None), "M_BAD_JSON"), (new(device_keys=SigningDevice(ALICE, "X").keys), "M_BAD_JSON"),
        (new(one_time_keys=5), "M_BAD_JSON"), (new(initial_device_display_name="x" * 256), "M_BAD_JSON"),
        (new("D"), "M_INVALID_PARAM"),
    ]:  # fmt: skip
        status, answer = await call(alice, "PUT", body=body)
        assert (status, answer["errcode"]) == (400, errcode), body
    assert (await call(alice, "GET"))[0] == 404
