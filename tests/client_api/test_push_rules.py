"""Push rules over HTTP: the order of rules, what /sync says of them, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmserver.accounts import push_rules
from lmserver.storage.database import Database
from tests.kit.client_api import V3, Api

GLOBAL = f"{V3}/pushrules/global"
PATTERN = {"actions": ["notify"], "pattern": "x"}


@pytest.fixture
async def token(api: Api) -> str:
    return (await api.register("alice"))["access_token"]


async def ok(api: Api, token: str, method: str, path: str, body: Any = None) -> Any:
    status, answer = await api.call(method, GLOBAL + path, body, token)
    assert status == 200, answer
    return answer


async def ids(api: Api, token: str, kind: str = "content") -> list[str]:
    return [r["rule_id"] for r in await ok(api, token, "GET", f"/{kind}/")]


async def test_rules_stand_where_they_are_put(api: Api, token: str) -> None:
    for path in ("a", "b", "c?before=a", "d?after=a", "e?after=c&before=b"):
        await ok(api, token, "PUT", f"/content/{path}", PATTERN)
    assert await ids(api, token) == ["e", "b", "c", "a", "d", ".m.rule.contains_user_name"]
    await ok(api, token, "PUT", "/content/c/enabled", {"enabled": False})
    await ok(api, token, "PUT", "/content/c", {**PATTERN, "pattern": "y"})
    changed = await ok(api, token, "GET", "/content/c")
    assert (changed["pattern"], changed["enabled"]) == ("y", False)
    assert (await ids(api, token))[2] == "c"
    for neighbour in ("nope", ".m.rule.contains_user_name"):
        answer = await api.call("PUT", f"{GLOBAL}/content/z?before={neighbour}", PATTERN, token)
        assert (answer[0], answer[1]["errcode"]) == (400, "M_UNKNOWN")
    assert (await api.call("GET", f"{GLOBAL}/shoes", None, token))[0] == 404


async def test_default_rules_are_changed_and_follow_new_defaults(api: Api, token: str, db: Database) -> None:
    rule = "/underride/.m.rule.message"
    await ok(api, token, "PUT", f"{rule}/actions", {"actions": []})
    await ok(api, token, "PUT", "/override/.m.rule.master/enabled", {"enabled": True})
    assert (await ok(api, token, "GET", f"{rule}/actions")) == {"actions": []}
    stored = bytes(await db.fetchval("SELECT changes FROM push_rules"))
    assert b"event_match" not in stored  # only what differs


async def test_sync_tells_of_rules_at_first_and_when_they_change(api: Api, token: str) -> None:
    async def told(since: str = "") -> tuple[list[Any], str]:
        answer = (await api.call("GET", f"{V3}/sync?timeout=0{since}", None, token))[1]
        events = answer["account_data"]["events"]
        return [e for e in events if e["type"] == "m.push_rules"], f"&since={answer['next_batch']}"

    [first], since = await told()
    assert first["content"]["global"]["override"][0]["rule_id"] == ".m.rule.master"
    assert (await told(since))[0] == []
    await ok(api, token, "PUT", "/content/a", PATTERN)
    [changed], since = await told(since)
    assert changed["content"]["global"]["content"][0]["rule_id"] == "a"
    assert (await told(since))[0] == []
    path = f"{V3}/user/%40alice:hub.test/account_data/m.push_rules"
    assert (await api.call("GET", path, None, token))[1] == changed["content"]


async def test_devices_that_change_rules_at_once_do_not_undo_each_other(api: Api, token: str) -> None:
    await asyncio.gather(*(ok(api, token, "PUT", f"/content/r{n}", PATTERN) for n in range(8)))
    assert len(await ids(api, token)) == 9


BAD: list[Any] = [
    {"actions": ["notify"], "pattern": "x" * 256},
    {"actions": [5], "pattern": "x"},
    {"actions": [{"sound": "x"}], "pattern": "x"},
    {"actions": ["x"] * 21, "pattern": "x"},
    {"actions": ["x" * 20_000], "pattern": "x"},
    {"pattern": "x"},
    {"actions": [{"set_tweak": "x", "value": 10**30}], "pattern": "x"},
    {"actions": [], "pattern": "\ud800"},
]
BAD_CONDITIONS: list[Any] = [
    "x", [5], [{}], [{"kind": "event_match", "key": 5}], [{"kind": "x"}] * 21, [{"kind": "event_match", "pattern": "x" * 256}]
]  # fmt: skip


async def test_rules_that_are_none_are_refused(api: Api, token: str) -> None:
    for body in BAD:
        answer = await api.call("PUT", f"{GLOBAL}/content/z", body, token)
        assert (answer[0], answer[1]["errcode"]) == (400, "M_BAD_JSON"), body
    for conditions in BAD_CONDITIONS:
        body = {"actions": [], "conditions": conditions}
        answer = await api.call("PUT", f"{GLOBAL}/override/z", body, token)
        assert (answer[0], answer[1]["errcode"]) == (400, "M_BAD_JSON"), body
    path = f"{GLOBAL}/underride/.m.rule.message"
    assert (await api.call("PUT", f"{path}/actions", {"actions": "x"}, token))[0] == 400
    assert (await api.call("DELETE", path, None, token))[0] == 400


async def test_r11_what_one_event_is_compared_with_is_bounded(
    api: Api, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_rules, "MAX_WILDCARDS", 2)
    for name, status in (("a", 200), ("b", 200), ("a", 200), ("c", 400)):
        body = {"actions": ["notify"], "pattern": f"{name}*"}
        assert (await api.call("PUT", f"{GLOBAL}/content/{name}", body, token))[0] == status
