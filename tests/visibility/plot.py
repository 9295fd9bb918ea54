"""A room and its readers' lives: six stages, at each of which something is said and set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from lmserver.storage.database import Database
from tests.kit.client_api import NAME, Api, serve
from tests.kit.sliding import Phone
from tests.visibility.oracle import Entry, Oracle

STAGES = 6
MARK = re.compile(r"\dx$")

# Memberships while something is said: join, leave, kick, ban, invite, or nothing yet.
LIVES = {
    "there": "JJJJJJ", "never": "......", "late": "...JJJ", "left": "JJJLLL", "kicked": "JJJKKK", "banned": "JJJBBB",
    "back": "JLLJJJ", "back_and_gone": "JLJJLL", "unbanned_and_back": "JBLJJJ", "banned_after": "JJLLBB",
    "invited": "..IIII", "invited_and_joined": ".IIJJJ", "declined": ".IILLL",
}  # fmt: skip

# The history visibility while something is said.
REGIMES = {
    "world_readable": "WWWWWW", "shared": "SSSSSS", "invited": "IIIIII", "joined": "JJJJJJ",
    "shared, then joined": "SSSJJJ", "joined, then shared": "JJJSSS", "invited, open, joined": "IIWWJJ",
}  # fmt: skip
NAMES = {"W": "world_readable", "S": "shared", "I": "invited", "J": "joined"}
FAST = {"per_second": 10_000, "burst": 10_000}
LIMITS = dict.fromkeys(("requests", "anonymous", "send", "join", "invite", "search"), FAST)


class Plot:
    """`readers` by life; `entries` is the room's list as the database has it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.alice: Phone
        self.readers: dict[str, Phone] = {}
        self.room_id = ""
        self.entries: list[Entry] = []
        self.tokens: dict[str, list[str]] = {}
        """What each reader's /sync said before the room was, and in the middle of its life."""

    @classmethod
    async def play(cls, db: Database, folder: Path, regime: str) -> Plot:
        plot = cls(await serve(db, folder, {"limits": LIMITS}))
        plot.alice = await plot._person("alice")
        for life in LIVES:
            plot.readers[life] = await plot._person(life)
        await plot._look()
        await plot._perform(REGIMES[regime])
        await plot.alice.settle()
        rows = await db.fetch("SELECT pdu, event_id FROM events ORDER BY position")
        for row in rows:
            pdu = orjson.loads(row["pdu"])
            plot.entries.append(
                Entry(row["event_id"], pdu["type"], pdu.get("state_key"), pdu["content"], pdu["sender"])
            )
        return plot

    def marked(self) -> list[Entry]:
        """All that was said and set with a word of its own."""
        return [entry for entry in self.entries if MARK.search(entry.mark)]

    def oracle(self, life: str) -> Oracle:
        return Oracle(self.entries, self.readers[life].id)

    async def close(self) -> None:
        await self.api.http.close()
        await self.api.server.close()

    async def _person(self, name: str) -> Phone:
        user_id = f"@{name}:{NAME}"
        await self.api.server.db.execute(
            "INSERT INTO accounts (user_id, password_hash, created_ts) VALUES ($1, '!', 1)", user_id
        )
        login = await self.api.server.accounts.log_in(user_id, None, None)
        return Phone(self.api, user_id, login.access_token, login.device_id)

    async def _look(self) -> None:
        await self.alice.settle()
        for life, phone in self.readers.items():
            answer = await phone.ok("GET", "/sync?timeout=0")
            self.tokens.setdefault(life, []).append(answer["next_batch"])

    async def _perform(self, regime: str) -> None:
        alice = self.alice
        setting = {"type": "m.room.history_visibility", "content": {"history_visibility": NAMES[regime[0]]}}
        self.room_id = await alice.create(initial_state=[setting])
        said = ""
        for stage in range(STAGES):
            if stage == STAGES // 2:
                await self._look()
            if stage and regime[stage] != regime[stage - 1]:
                await alice.set(
                    self.room_id, "m.room.history_visibility", {"history_visibility": NAMES[regime[stage]]}
                )
            for life, phone in self.readers.items():
                await self._live(phone, LIVES[life][stage - 1] if stage else ".", LIVES[life][stage])
            await alice.set(self.room_id, "m.room.topic", {"topic": f"topic{stage}x"})
            name = {"membership": "join", "displayname": f"name{stage}x"}
            await alice.set(self.room_id, "m.room.member", name, alice.id)
            if said:
                await self._relate(said, stage)
            said = await alice.say(self.room_id, f"said{stage}x")
        await alice.set(self.room_id, "m.room.join_rules", {"join_rule": "invite"})

    async def _relate(self, event_id: str, stage: int) -> None:
        """To what was said at the stage before: an edit and a reply in a thread."""
        edit = {
            "msgtype": "m.text", "body": f"edit{stage}x", "m.new_content": {"msgtype": "m.text", "body": f"edit{stage}x"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
        }  # fmt: skip
        reply = {
            "msgtype": "m.text", "body": f"reply{stage}x", "m.relates_to": {"rel_type": "m.thread", "event_id": event_id},
        }  # fmt: skip
        for kind, content in (("e", edit), ("r", reply)):
            await self.alice.ok(
                "PUT", f"/rooms/{quote(self.room_id)}/send/m.room.message/{kind}{stage}", content
            )

    async def _live(self, phone: Phone, before: str, now: str) -> None:
        if before == now:
            return
        by_alice: dict[str, Any] = {"K": "kick", "B": "ban", "I": "invite"}
        if before == "B":
            await self.alice.change(self.room_id, "unban", phone)
        elif now in by_alice:
            await self.alice.change(self.room_id, by_alice[now], phone)
        else:
            await phone.change(self.room_id, {"J": "join", "L": "leave"}[now])
