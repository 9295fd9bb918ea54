"""Rooms that an application service is told of because of its namespaces, with nobody of it in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.protocol.room_versions import LM_02_ID
from lmserver.storage.database import Database
from tests.client_api.test_appservices import Bridged, start
from tests.kit.bridge import Bridge
from tests.kit.client_api import NAME, V3, login, serve
from tests.kit.waiting import eventually

OPEN = {"regex": "#open_.*", "exclusive": False}


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    made = Bridge()
    await made.start()
    yield made
    await made.close()


def namespaces(**changes: Any) -> dict[str, Any]:
    return {"namespaces": {"users": [], "aliases": [], "rooms": [], **changes}}


async def alice(api: Bridged) -> str:
    """Her access token, of a new login."""
    token: str = (await api.call("POST", f"{V3}/login", login("alice")))[1]["access_token"]
    return token


async def test_a_namespace_of_rooms_counts_from_its_first_day_on(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    before = await serve(db, tmp_path)
    token = (await before.register("alice"))["access_token"]
    _, made = await before.call("POST", f"{V3}/createRoom", {"preset": "private_chat"}, token)
    old = made["room_id"]
    await before.call("PUT", f"{V3}/rooms/{old}/send/m.room.message/0", {"body": "before"}, token)
    await before.http.close()
    await before.server.close()

    api = await start(db, tmp_path, bridge, **namespaces(rooms=[{"regex": "!.*:hub\\.test"}]))
    token = await alice(api)
    event = await api.say(old, "one", token, "1")
    hidden = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    new = await api.room(token, initial_state=[hidden])
    await api.say(new, "two", token, "2")
    await eventually(lambda: bridge.texts() == ["one", "two"])
    types = [e["type"] for e in bridge.events() if e["room_id"] == new]
    assert types[0] == "m.room.create" and "m.room.member" in types
    assert [e["event_id"] for e in bridge.events() if e["room_id"] == old] == [event]

    bridge.status = 503
    await api.say(old, "away", token, "3")
    last = await api.room(token)
    await api.stop()
    bridge.status = 200
    api = await start(db, tmp_path, bridge, **namespaces(rooms=[{"regex": "!.*:hub\\.test"}]))
    await api.say(last, "after", await alice(api), "4")
    await eventually(lambda: bridge.texts() == ["one", "two", "away", "after"])
    ids = [e["event_id"] for e in bridge.events()]
    assert len(ids) == len(set(ids))
    assert next(e["type"] for e in bridge.events() if e["room_id"] == last) == "m.room.create"
    await api.stop()


async def test_other_rooms_are_not_told(db: Database, tmp_path: Path, bridge: Bridge) -> None:
    api = await start(
        db, tmp_path, bridge, **namespaces(rooms=[{"regex": "!none:hub\\.test"}], aliases=[OPEN])
    )
    token = (await api.register("alice"))["access_token"]
    other = await api.room(token, room_alias_name="closed")
    await api.say(other, "not theirs", token, "1")
    mine = await api.room(token, room_alias_name="open_room")
    await api.say(mine, "theirs", token, "2")
    await eventually(lambda: bridge.texts() == ["theirs"])
    assert {e["room_id"] for e in bridge.events()} == {mine}
    assert bridge.events()[0]["type"] == "m.room.create"
    await api.stop()


async def test_a_room_is_told_while_it_has_an_alias_of_the_namespace(
    db: Database, tmp_path: Path, bridge: Bridge
) -> None:
    api = await start(db, tmp_path, bridge, **namespaces(aliases=[OPEN]))
    token = (await api.register("alice"))["access_token"]
    room = await api.room(token)
    alias = f"{V3}/directory/room/{quote(f'#open_door:{NAME}')}"

    async def call(method: str, body: Any = None) -> None:
        assert (await api.call(method, alias, body, token))[0] == 200

    await api.say(room, "before", token, "1")
    await call("PUT", {"room_id": room})
    await api.say(room, "named", token, "2")
    await eventually(lambda: bridge.texts() == ["named"])
    await call("DELETE")
    await api.say(room, "unnamed", token, "3")
    await api.stop()
    api = await start(db, tmp_path, bridge, **namespaces(aliases=[OPEN]))
    token = await alice(api)
    await api.say(room, "unnamed too", token, "4")
    await call("PUT", {"room_id": room})
    await api.say(room, "named again", token, "5")
    await eventually(lambda: bridge.texts() == ["named", "named again"])

    status, answer = await api.call("POST", f"{V3}/rooms/{room}/upgrade", {"new_version": LM_02_ID}, token)
    assert status == 200, answer
    new = answer["replacement_room"]
    await api.say(new, "moved", token, "6")
    await eventually(lambda: bridge.texts()[2:] == ["moved"])
    assert next(e["type"] for e in bridge.events() if e["room_id"] == new) == "m.room.create"
    await api.stop()
