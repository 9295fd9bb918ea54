"""Every way a client has of reading a room, and what each shows: marks found in the whole answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from tests.kit.client_api import V3
from tests.kit.sliding import PATH as SLIDING
from tests.kit.sliding import Phone, room, window
from tests.visibility.oracle import Oracle
from tests.visibility.plot import MARK, Plot

V1 = "/_matrix/client/v1"
SAID = re.compile(r"(?:said|edit|reply)\dx")
SET = re.compile(r"(?:topic|name)\dx")
LEAVING = quote('{"room":{"include_leave":true,"timeline":{"limit":100}}}')
EVERYTHING = [("*", "*")]
PREVIEWS = ("summary", "hierarchy")


@dataclass(frozen=True)
class Shown:
    """An answer: the marks in it, of messages and of state, and the IDs of events."""

    status: int
    text: str

    @property
    def said(self) -> set[str]:
        return set(SAID.findall(self.text))

    @property
    def set_(self) -> set[str]:
        return set(SET.findall(self.text))


async def ask(phone: Phone, method: str, path: str, body: Any = None) -> Shown:
    status, answer = await phone.api.call(method, path, body, phone.token)
    return Shown(status, orjson.dumps(answer).decode())


async def search(phone: Phone, term: str) -> Shown:
    """The events found; the words searched for are in every answer."""
    context = {"before_limit": 2, "after_limit": 2, "include_profile": True}
    wanted = {"search_term": term, "order_by": "recent", "event_context": context}
    body = {"search_categories": {"room_events": wanted}}
    status, answer = await phone.api.call("POST", f"{V3}/search", body, phone.token)
    assert status == 200, answer
    return Shown(status, orjson.dumps(answer["search_categories"]["room_events"]["results"]).decode())


async def everything(plot: Plot, life: str) -> dict[str, Shown]:
    """What each way of reading shows to one reader."""
    phone, [before, middle] = plot.readers[life], plot.tokens[life]
    of_room = f"{V3}/rooms/{quote(plot.room_id)}"
    new = f"{V1}/rooms/{quote(plot.room_id)}"
    paths = {
        "messages b": f"{of_room}/messages?dir=b&limit=1000",
        "messages f": f"{of_room}/messages?dir=f&limit=1000",
        "messages from the future": f"{of_room}/messages?dir=b&from=p99999&limit=1000",
        "messages of a sync": f"{of_room}/messages?dir=f&from={middle}&limit=1000",
        "state": f"{of_room}/state",
        "topic": f"{of_room}/state/m.room.topic/",
        "name": f"{of_room}/state/m.room.member/{quote(plot.alice.id)}?format=event",
        "members": f"{of_room}/members",
        "members in the middle": f"{of_room}/members?at={middle}",
        "members in the future": f"{of_room}/members?at=p99999",
        "joined_members": f"{of_room}/joined_members",
        "aliases": f"{of_room}/aliases",
        "threads": f"{new}/threads?limit=100",
        "first of all time": f"{new}/timestamp_to_event?ts=1&dir=f",
        "last of all time": f"{new}/timestamp_to_event?ts=9000000000000&dir=b",
        "hierarchy": f"{new}/hierarchy",
        "summary": f"{V1}/room_summary/{quote(plot.room_id)}",
        "notifications": f"{V3}/notifications",
        "sync": f"{V3}/sync?timeout=0&filter={LEAVING}",
        "sync from before": f"{V3}/sync?timeout=0&filter={LEAVING}&since={before}",
        "sync from the middle": f"{V3}/sync?timeout=0&filter={LEAVING}&since={middle}",
        "sync of full state": f"{V3}/sync?timeout=0&full_state=true&filter={LEAVING}&since={middle}",
    }
    shown = {name: await ask(phone, "GET", path) for name, path in paths.items()}
    for entry in plot.entries:
        way, even = MARK.sub("", entry.mark), entry.mark[-2:-1] in ("0", "2", "4")
        by_id = quote(entry.event_id)
        if way == "said" or (way == "topic" and even):
            shown[f"event {entry.mark}"] = await ask(phone, "GET", f"{of_room}/event/{by_id}")
        if way == "said" and even:
            shown[f"relations {entry.mark}"] = await ask(phone, "GET", f"{new}/relations/{by_id}?limit=50")
        elif way == "said":
            shown[f"context {entry.mark}"] = await ask(phone, "GET", f"{of_room}/context/{by_id}?limit=6")
        if way in ("said", "edit") and even:
            shown[f"search {entry.mark}"] = await search(phone, entry.mark)
    wanted = {
        "conn_id": life, "lists": {"all": window([0, 9], limit=50, state=EVERYTHING)},
        "room_subscriptions": {plot.room_id: room(50, EVERYTHING)},
    }  # fmt: skip
    shown["sliding sync"] = await ask(phone, "POST", SLIDING, wanted)
    return shown


def leaks(shown: dict[str, Shown], oracle: Oracle) -> list[str]:
    """What an answer holds that its reader may not see."""
    visible = oracle.visible()
    said, ids = {entry.mark for entry in visible}, {entry.event_id for entry in visible}
    states = oracle.state_marks() | oracle.invitation_marks() | said
    found = []
    for name, answer in shown.items():
        if answer.status != 200:
            continue
        # Whoever may join is told what the room is about now.
        states_here = answer.set_ if name in PREVIEWS and oracle.may_preview else states
        wrong = (answer.said - said) | (answer.set_ - states_here)
        if wrong:
            found.append(f"{name}: {sorted(wrong)}")
        if name.endswith("of all time") and orjson.loads(answer.text)["event_id"] not in ids:
            found.append(f"{name}: {answer.text}")
    return found


def omissions(shown: dict[str, Shown], oracle: Oracle) -> list[str]:
    """What its reader may see and does not."""
    visible = oracle.visible()
    said = {entry.mark for entry in visible if SAID.fullmatch(entry.mark)}
    found = [
        f"{name}: {sorted(said - shown[name].said)}"
        for name in ("messages b", "messages f", "messages from the future")
        if said - shown[name].said
    ]
    for name, answer in shown.items():
        way, _, mark = name.partition(" ")
        if way in ("event", "context", "relations") and (answer.status == 200) != (
            mark in {entry.mark for entry in visible}
        ):
            found.append(f"{name}: {answer.status}")
    if oracle.was_joined:
        topic = oracle.topic_at_the_end()
        found += [f"{name}: no {topic}" for name in ("state", "topic") if topic not in shown[name].set_]
    if oracle.membership == "join":
        found += [
            f"search {mark}"
            for mark in said
            if f"search {mark}" in shown and mark not in shown[f"search {mark}"].said
        ]
        last = max(entry.mark for entry in visible if entry.mark.startswith("said"))
        ways = ("sync", "sync from before", "sync from the middle", "sync of full state", "sliding sync")
        found += [f"{name}: no {last}" for name in ways if last not in shown[name].said]
    return found
