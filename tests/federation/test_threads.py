"""Threads between two servers: relations, counts and receipts are the same at the hub and at a participant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.federation.sites import Person, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.waiting import HANGS

FILTER = quote('{"room":{"timeline":{"unread_thread_notifications":true}}}')


async def thread_of(person: Person, room_id: str, root: str) -> Any:
    """The thread as its root tells of it, once there is one."""
    async with asyncio.timeout(HANGS):
        while True:
            path = f"/rooms/{quote(room_id)}/event/{quote(root)}"
            _, event = await person.call("GET", path)
            thread = event.get("unsigned", {}).get("m.relations", {}).get("m.thread")
            if thread is not None:
                return thread
            await asyncio.sleep(0.02)


async def room_of(person: Person, room_id: str) -> Any:
    answer = await person.ok("GET", f"/sync?timeout=0&filter={FILTER}")
    return answer["rooms"]["join"][room_id]


async def test_a_thread_of_two_servers(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as (hub, participant):
        alice, bob = await hub.user("alice"), await participant.user("bob")
        room_id = await alice.create(preset="public_chat")
        await bob.act("join", room_id)
        root = await alice.say(room_id, "root", "t1")
        mention = {"m.mentions": {"user_ids": [alice.user_id]}}
        relates = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
        body = {"msgtype": "m.text", "body": "reply", **mention, **relates}
        reply = (await bob.ok("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/t2", body))["event_id"]
        for person, took_part in ((alice, True), (bob, True)):
            thread = await thread_of(person, room_id, root)
            assert (thread["count"], thread["current_user_participated"]) == (1, took_part)
            assert thread["latest_event"]["event_id"] == reply
        section = await room_of(alice, room_id)
        assert section["unread_notifications"] == {"notification_count": 0, "highlight_count": 0}
        assert section["unread_thread_notifications"] == {
            root: {"notification_count": 1, "highlight_count": 1}
        }
        path = f"/rooms/{quote(room_id)}/receipt/m.read/{quote(reply)}"
        await alice.ok("POST", path, {"thread_id": root})
        assert (await room_of(alice, room_id))["unread_thread_notifications"] == {}
        async with asyncio.timeout(HANGS):
            while not (told := (await room_of(bob, room_id))["ephemeral"]["events"]):
                await asyncio.sleep(0.02)
        assert told[0]["content"][reply]["m.read"][alice.user_id]["thread_id"] == root
        await bob.ok("PUT", f"/rooms/{quote(room_id)}/redact/{quote(reply)}/t3", {})
        async with asyncio.timeout(HANGS):
            for person in (alice, bob):
                path = f"/rooms/{quote(room_id)}/event/{quote(root)}"
                while "m.relations" in (await person.ok("GET", path))["unsigned"]:
                    await asyncio.sleep(0.02)
