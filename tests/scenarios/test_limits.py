"""A hub that limits a participant loses none of its messages: they come later and each once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import aiohttp

from tests.kit.processes import configure
from tests.kit.users import register
from tests.kit.waiting import HANGS, eventually

MESSAGES = 60


async def test_messages_over_the_hubs_limit_arrive_once(tmp_path: Path) -> None:
    limits = {"federation_room_events": {"per_second": 10, "burst": 5}}
    hub, participant = configure(tmp_path, "hub", limits=limits), configure(tmp_path, "participant")
    try:
        await asyncio.gather(hub.start(), participant.start())
        async with aiohttp.ClientSession() as http:
            alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
            room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
            await bob.ok("POST", f"/join/{quote(room_id)}", {})
            room = f"/rooms/{quote(room_id)}"
            sent = await asyncio.gather(
                *(
                    bob.call("PUT", f"{room}/send/m.room.message/{n}", {"msgtype": "m.text", "body": str(n)})
                    for n in range(MESSAGES)
                )
            )
            # Those the hub has not taken within fifteen seconds are answered 504 and sent all the same.
            known = [answer["event_id"] for status, answer in sent if status == 200]
            assert known
            assert {status for status, _ in sent} <= {200, 504}

            async def bodies() -> list[str]:
                answer = await alice.ok("GET", f"{room}/messages?dir=b&limit=500")
                return [
                    event["content"]["body"] for event in answer["chunk"] if event["type"] == "m.room.message"
                ]

            async def all_there() -> bool:
                return len(await bodies()) >= MESSAGES

            await eventually(all_there, 4 * HANGS)
            assert sorted(map(int, await bodies())) == list(range(MESSAGES))

            async def same_list() -> bool:
                theirs, ours = await alice.history(room), await bob.history(room)
                length = min(len(theirs), len(ours))
                return length > MESSAGES and theirs[-length:] == ours[-length:]

            await eventually(same_list)
    finally:
        hub.stop()
        participant.stop()
