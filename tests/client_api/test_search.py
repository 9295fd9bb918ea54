"""POST /search: what is found, by whom, in which order, and what is not."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from lmserver.rooms.search import parse_query, parse_token
from lmserver.storage.database import Database
from tests.client_api.test_ignoring import Club, club, said
from tests.kit.client_api import NAME

__all__ = ["club"]


async def search(club: Club, who: str, term: str, token: str = "", **more: Any) -> Any:
    body = {"search_categories": {"room_events": {"search_term": term, "order_by": "recent", **more}}}
    path = "/search" + (f"?next_batch={quote(token, safe='')}" if token else "")
    return (await club.ok(who, "POST", path, body))["search_categories"]["room_events"]


def texts(found: Any) -> list[str]:
    return said([hit["result"] for hit in found["results"]])


async def test_c6_c7_what_may_be_seen_is_found_and_nothing_else(club: Club, db: Database) -> None:
    visibility = {"history_visibility": "joined"}
    await club.ok("alice", "PUT", f"{club.room}/state/m.room.history_visibility", visibility)
    await club.say("alice", "Tea and cake")
    gone = await club.say("alice", "tea for two")
    await club.say("bob", "more TEA, Bob?")
    assert texts(await search(club, "bob", "tea")) == ["more TEA, Bob?", "tea for two", "Tea and cake"]
    assert texts(await search(club, "alice", "tea cake")) == ["Tea and cake"]
    for nothing in ("te", "coffee", "tea & coffee", "'", "%", "tea | cake:*", "\\", "!tea:"):
        assert texts(await search(club, "alice", nothing)) in ([], ["Tea and cake"]) or nothing == "!tea:"
    assert texts(await search(club, "carol", "tea")) == []
    # Redacted: its words are gone from the database too.
    await club.ok("alice", "PUT", f"{club.room}/redact/{gone}/r1", {})
    assert texts(await search(club, "bob", "tea two")) == []
    assert await db.fetchval("SELECT count(words) FROM events WHERE event_id = $1", gone) == 0
    # Gone, one finds what was said until then; back again, nothing of the time between.
    await club.ok("bob", "POST", f"{club.room}/leave", {})
    await club.say("alice", "tea without bob")
    assert texts(await search(club, "bob", "tea")) == ["more TEA, Bob?", "Tea and cake"]
    found = await search(club, "bob", "tea without")
    assert (found["count"], found["results"], "next_batch" in found) == (0, [], False)
    await club.ok("bob", "POST", f"{club.room}/join", {})
    assert texts(await search(club, "bob", "tea without")) == []
    ignoring = {"ignored_users": {f"@bob:{NAME}": {}}}
    await club.ok("alice", "PUT", f"/user/%40alice%3A{NAME}/account_data/m.ignored_user_list", ignoring)
    assert texts(await search(club, "alice", "tea")) == ["tea without bob", "Tea and cake"]
    # Encrypted, the room is not searched, nor is anything in it kept for search.
    await club.ok(
        "alice", "PUT", f"{club.room}/state/m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}
    )
    plain = await club.say("alice", "tea in the clear")
    assert texts(await search(club, "alice", "tea")) == []
    assert await db.fetchval("SELECT count(words) FROM events WHERE event_id = $1", plain) == 0


async def test_pages_groups_context_and_state(club: Club) -> None:
    other = (await club.ok("alice", "POST", "/createRoom", {"name": "word room", "topic": "word"}))["room_id"]
    for n in range(5):
        await club.say("alice" if n % 2 else "bob", f"word {n}")
    path = f"/rooms/{quote(other, safe='')}/send/m.room.message/1"
    await club.ok("alice", "PUT", path, {"msgtype": "m.text", "body": "word word word elsewhere"})
    seen: list[str] = []
    token = ""
    while True:
        page = await search(club, "alice", "word", token, filter={"limit": 2}, keys=["content.body"])
        seen += texts(page)
        token = page.get("next_batch", "")
        if not token:
            break
    assert seen == ["word word word elsewhere", *(f"word {n}" for n in (4, 3, 2, 1, 0))]
    first = await search(club, "alice", "word", filter={"limit": 1}, order_by="rank")
    assert texts(first) == ["word word word elsewhere"]
    rest = await search(club, "alice", "word", first["next_batch"], filter={"limit": 50}, order_by="rank")
    assert len(rest["results"]) == 7
    assert sorted(h["rank"] for h in rest["results"])[::-1] == [h["rank"] for h in rest["results"]]
    assert texts(await search(club, "alice", "word", filter={"senders": [f"@bob:{NAME}"]})) == [
        "word 4", "word 2", "word 0",
    ]  # fmt: skip
    named = await search(club, "alice", "word", keys=["content.name", "content.topic"])
    assert {h["result"]["type"] for h in named["results"]} == {"m.room.name", "m.room.topic"}
    whole = await search(
        club, "alice", "word 2", filter={"rooms": [club.room_id]}, include_state=True,
        event_context={"before_limit": 1, "after_limit": 2, "include_profile": True},
        groupings={"group_by": [{"key": "room_id"}, {"key": "sender"}]},
    )  # fmt: skip
    [hit] = whole["results"]
    context = hit["context"]
    assert (said(context["events_before"]), said(context["events_after"])) == (
        ["word 1"],
        ["word 3", "word 4"],
    )
    assert set(context["profile_info"]) == {f"@alice:{NAME}", f"@bob:{NAME}"}
    event_id = hit["result"]["event_id"]
    assert whole["groups"] == {
        "room_id": {club.room_id: {"order": 0, "results": [event_id]}},
        "sender": {f"@bob:{NAME}": {"order": 0, "results": [event_id]}},
    }
    members = [e["state_key"] for e in whole["state"][club.room_id] if e["type"] == "m.room.member"]
    assert members == [f"@bob:{NAME}"]
    assert whole["highlights"] == ["word", "2"]
    around = await club.ok("alice", "GET", f"{club.room}/messages?dir=b&from={context['start']}")
    assert said(around["chunk"])[0] == "word 0"


async def test_q1_r14_wrong_searches(club: Club) -> None:
    def of(**fields: Any) -> Any:
        return {"search_categories": {"room_events": {"search_term": "x", **fields}}}

    refused: list[Any] = [
        {}, {"search_categories": []}, {"search_categories": {"room_events": 5}}, of(search_term=5),
        of(search_term="x" * 600), of(search_term="a\0b"), of(search_term="\ud800"), of(keys=["content.evil"]), of(keys="content.body"),
        of(order_by="DROP"), of(order_by=["rank"]), of(filter=5), of(filter={"limit": "x"}), of(groupings=[]),
        of(groupings={"group_by": [{"key": "x"}]}), of(groupings={"group_by": [5]}), of(event_context=5),
        of(groupings={"group_by": [{"key": ["room_id"]}]}), of(event_context={"before_limit": "1"}), of(keys=[["x"]]),
    ]  # fmt: skip
    for body in refused:
        answer = await club.call("alice", "POST", "/search", body)
        assert (answer[0], answer[1]["errcode"]) == (400, "M_BAD_JSON"), body
    for token in ("x", "n1_", "r1_$x", "nNaN_$x", "n1e400_$x", "n-1_$x", "n9e16_$x", "n1_$x'", "n1_$\0"):
        answer = await club.call("alice", "POST", f"/search?next_batch={quote(token)}", of(order_by="recent"))
        assert (answer[0], answer[1]["errcode"]) == (400, "M_INVALID_PARAM"), token
    assert await club.ok("alice", "POST", "/search", {"search_categories": {}}) == {"search_categories": {}}


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (0, 1), (-5, 1), (10**9, 50), (7, 7)])
def test_limits_are_clamped(limit: int | None, expected: int) -> None:
    query = parse_query({"search_term": "x", "filter": {} if limit is None else {"limit": limit}})
    assert query.limit == expected
    assert parse_token("r0.25_$x", query).key == 0.25
