"""`lmserver room`: rooms, from the shell."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict

from lmserver.commands.shell import BY, MAX_SHOWN, failed, tell, with_database
from lmserver.composition import clock_ms
from lmserver.config import Config
from lmserver.protocol import ids
from lmserver.rooms.administration import RoomDetails, details
from lmserver.storage import room_list, room_log, room_purges
from lmserver.storage.database import Database, UniqueViolation
from lmserver.storage.list_page import ListPage
from lmserver.storage.room_list import RoomQuery


def run(config: Config, action: str, which: str | None, *, forced: bool, as_json: bool) -> int:
    """1 when it cannot be done."""

    async def work(db: Database) -> int:
        if action == "list":
            return await _list(db.patient(), which, as_json)
        room_id = which or ""
        if not ids.is_room_id(room_id):
            return failed(f"{room_id} is no room ID")
        match action:
            case "inspect":
                return await _inspect(db, room_id)
            case "purge":
                return await _purge(db, room_id, forced)
            case "block":
                await room_purges.block(db, room_id, BY, clock_ms())
                print(f"{room_id} is closed to our users")
            case _:
                if not await room_purges.unblock(db, room_id):
                    return failed(f"{room_id} is not closed")
                print(f"{room_id} is open again")
        return 0

    return with_database(config, work)


async def _list(db: Database, term: str | None, as_json: bool) -> int:
    query = RoomQuery(term)
    for found in await details(db, await room_list.page(db, query, ListPage("name", limit=MAX_SHOWN))):
        room = found.room
        if as_json:
            print(json.dumps(_object(found)))
            continue
        marks = "".join(f" [{mark}]" for mark in (room.hold, "closed" if room.blocked else None) if mark)
        print(
            f"{room.room_id} {json.dumps(found.name, ensure_ascii=False)} hub {room.hub_server},"
            f" {room.joined} members, {room.joined_local} of ours{marks}"
        )
    tell(f"{await room_list.count(db, query)} rooms")
    return 0


async def _inspect(db: Database, room_id: str) -> int:
    found = await details(db, [room_id])
    if not found:
        return failed(f"{room_id} is not known here")
    purges = [asdict(purge) for purge in await room_purges.of_room(db, room_id)]
    members = await room_list.members(db, room_id)
    print(json.dumps({**_object(found[0]), "members": members, "deletions": purges}, indent=2))
    return 0


def _object(found: RoomDetails) -> dict[str, object]:
    return {**asdict(found.room), "name": found.name, "creator": found.creator, "state": found.contents}


async def _purge(db: Database, room_id: str, forced: bool) -> int:
    if await room_log.room(db, room_id) is None:
        return failed(f"{room_id} is not known here")
    try:
        await room_purges.begin(
            db, secrets.token_urlsafe(12), room_id, BY, deletes=True, forced=forced, now_ms=clock_ms()
        )
    except UniqueViolation:
        return failed(f"{room_id} is being deleted already")
    print(f"{room_id} is deleted by the server; `room inspect` tells how far it is")
    return 0
