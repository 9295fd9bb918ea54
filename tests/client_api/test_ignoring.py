"""Ignored users, reports, and tags set at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.storage import reports
from lmserver.storage.database import Database
from tests.kit.client_api import NAME, V3, Api, serve


class Club:
    """Alice and bob in a public room of alice's, which carol does not know."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.tokens: dict[str, str] = {}
        self.room_id = ""

    async def set_up(self) -> None:
        for name in ("alice", "bob", "carol"):
            self.tokens[name] = (await self.api.register(name))["access_token"]
        self.room_id = (await self.ok("alice", "POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        await self.ok("bob", "POST", f"{self.room}/join", {})

    @property
    def room(self) -> str:
        return f"/rooms/{quote(self.room_id, safe='')}"

    async def call(self, who: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await self.api.call(method, V3 + path, body, self.tokens[who])

    async def ok(self, who: str, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(who, method, path, body)
        assert status == 200, (path, status, answer)
        return answer

    async def say(self, who: str, text: str) -> str:
        body = {"msgtype": "m.text", "body": text}
        path = f"{self.room}/send/m.room.message/{quote(text, safe='')}"
        event_id: str = (await self.ok(who, "PUT", path, body))["event_id"]
        return event_id


@pytest.fixture
async def club(db: Database, tmp_path: Path) -> AsyncIterator[Club]:
    api = await serve(db, tmp_path)
    made = Club(api)
    await made.set_up()
    yield made
    await api.close()


def said(events: list[Any]) -> list[str]:
    return [e["content"].get("body", "") for e in events if e["type"] == "m.room.message"]


async def test_an_ignored_user_is_not_heard_of_but_their_state_is(club: Club) -> None:
    """CS API §Ignoring Users: /sync, /messages, /context, /event; not for others, not for state."""
    await club.say("bob", "before")
    own = await club.say("alice", "mine")
    since = (await club.ok("alice", "GET", "/sync"))["next_batch"]
    ignoring = {"ignored_users": {f"@bob:{NAME}": {}}}
    list_path = f"/user/%40alice%3A{NAME}/account_data/m.ignored_user_list"
    await club.ok("alice", "PUT", list_path, ignoring)
    hidden = await club.say("bob", "after")
    levels = await club.ok("alice", "GET", f"{club.room}/state/m.room.power_levels")
    levels["users"][f"@bob:{NAME}"] = 50
    await club.ok("alice", "PUT", f"{club.room}/state/m.room.power_levels", levels)
    await club.ok("bob", "PUT", f"{club.room}/state/m.room.topic", {"topic": "seen"})

    async def heard(who: str) -> list[list[str]]:
        sync = await club.ok(who, "GET", f"/sync?since={since}")
        initial = await club.ok(who, "GET", "/sync")
        events = [s["rooms"]["join"][club.room_id]["timeline"]["events"] for s in (sync, initial)]
        events += [(await club.ok(who, "GET", f"{club.room}/messages?dir=f&limit=50"))["chunk"]]
        context = await club.ok(who, "GET", f"{club.room}/context/{own}")
        assert any(e["type"] == "m.room.topic" for e in events[0])
        return [*map(said, events), said(context["events_before"] + context["events_after"])]

    assert await heard("alice") == [[], ["mine"], ["mine"], []]
    assert (await club.call("alice", "GET", f"{club.room}/event/{hidden}"))[0] == 404
    assert await heard("bob") == [["after"], ["before", "mine", "after"], ["before", "mine", "after"],
                                  ["before", "after"]]  # fmt: skip
    # A moderator can still clean up, and report.
    assert (await club.call("alice", "POST", f"{club.room}/report/{hidden}", {"reason": "r"}))[0] == 200
    assert (await club.call("alice", "PUT", f"{club.room}/redact/{hidden}/t", {}))[0] == 200
    for nobody in ({"ignored_users": [f"@bob:{NAME}"]}, {"ignored_users": None}, {}):
        await club.ok("alice", "PUT", list_path, nobody)
        assert said((await club.ok("alice", "GET", f"{club.room}/messages?dir=f"))["chunk"])[0] == "before"


async def test_reports_are_kept_for_operators(club: Club, db: Database) -> None:
    event = await club.say("bob", "bad")
    report = f"{club.room}/report"
    bob = f"/users/%40bob%3A{NAME}/report"
    for who, path, body in (
        ("alice", f"{report}/{event}", {"reason": "rude", "score": -100}),
        ("carol", report, {"reason": ""}),
        ("carol", bob, {"reason": "spam"}),
        ("carol", "/users/%40x%3Aother.test/report", {}),
    ):
        assert await club.call(who, "POST", path, body) == (200, {})
    filed = [(f.report.reporter, f.report.kind, f.report.reported, f.report.reason, f.report.score)
             for f in await reports.newest(db, None, 10)]  # fmt: skip
    assert filed == [
        (f"@carol:{NAME}", "user", "@x:other.test", "", None),
        (f"@carol:{NAME}", "user", f"@bob:{NAME}", "spam", None),
        (f"@carol:{NAME}", "room", None, "", None),
        (f"@alice:{NAME}", "event", f"@bob:{NAME}", "rude", -100),
    ]
    refusals: list[tuple[str, str, Any, int, str]] = [
        ("carol", f"{report}/{event}", {}, 404, "M_NOT_FOUND"),
        ("alice", f"{report}/$nope", {}, 404, "M_NOT_FOUND"),
        ("alice", f"{report}/%00", {}, 404, "M_NOT_FOUND"),
        ("alice", f"/rooms/%21none%3A{NAME}/report", {}, 404, "M_NOT_FOUND"),
        ("alice", f"/users/%40nobody%3A{NAME}/report", {}, 404, "M_NOT_FOUND"),
        ("alice", "/users/bob/report", {}, 400, "M_INVALID_PARAM"),
        ("alice", report, {"reason": 5}, 400, "M_BAD_JSON"),
        ("alice", report, {"reason": "a\0b"}, 400, "M_INVALID_PARAM"),
        ("alice", report, {"reason": "x" * 5000}, 400, "M_INVALID_PARAM"),
        ("alice", report, {"score": 1.5}, 400, "M_BAD_JSON"),
        ("alice", report, {"score": -101}, 400, "M_BAD_JSON"),
    ]
    for who, path, body, status, errcode in refusals:
        answer = await club.call(who, "POST", path, body)
        assert (answer[0], answer[1]["errcode"]) == (status, errcode), path
    assert len(await reports.newest(db, None, 10)) == 4
    [first] = await reports.newest(db, 2, 10)
    assert await reports.one(db, first.id) == first
    assert await reports.remove(db, first.id) and not await reports.remove(db, first.id)


async def test_tags_set_at_once_are_all_kept(club: Club) -> None:
    tags = f"/user/%40alice%3A{NAME}{club.room}/tags"
    names = [f"u.tag{n}" for n in range(8)]
    await asyncio.gather(*(club.ok("alice", "PUT", f"{tags}/{name}", {"order": 0.1}) for name in names))
    await asyncio.gather(*(club.ok("alice", "DELETE", f"{tags}/{name}") for name in names[:4]))
    assert sorted((await club.ok("alice", "GET", tags))["tags"]) == names[4:]
