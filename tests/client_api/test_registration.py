"""Making accounts: under which names, with which tokens, and who may not (attack C12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.accounts.registration_tokens import RegistrationTokens
from lmserver.storage.database import Database
from tests.kit.client_api import NAME, PASSWORD, V3, Api, login, serve
from tests.kit.clock import HOUR, Clock

REGISTER = f"{V3}/register"
VALIDITY = "/_matrix/client/v1/register/m.login.registration_token/validity"
TOKEN = "m.login.registration_token"


@pytest.fixture
async def by_token(db: Database, tmp_path: Path, clock: Clock) -> AsyncIterator[Api]:
    made = await serve(db, tmp_path, clock=clock, mode="token", tokens=["configured"])
    yield made
    await made.close()


def body(name: str | None, **more: Any) -> dict[str, Any]:
    return {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}, **more}


async def with_token(api: Api, name: str, token: Any) -> tuple[int, Any]:
    return await api.call("POST", REGISTER, body(name, auth={"type": TOKEN, "token": token}))


async def test_an_empty_request_is_told_the_flows_and_its_session_registers(api: Api) -> None:
    status, answer = await api.call("POST", REGISTER, {})
    assert (status, answer["flows"], answer["params"]) == (401, [{"stages": ["m.login.dummy"]}], {})
    assert "errcode" not in answer
    auth = {"type": "m.login.dummy", "session": answer["session"]}
    status, answer = await api.call("POST", REGISTER, body("alice", auth=auth, device_id="PHONE"))
    assert (status, answer["user_id"], answer["device_id"]) == (200, f"@alice:{NAME}", "PHONE")


async def test_without_a_name_one_is_made_up_and_login_can_wait(api: Api, db: Database) -> None:
    status, answer = await api.call("POST", REGISTER, body(None, inhibit_login=True))
    assert (status, set(answer)) == (200, {"user_id", "home_server"})
    assert await db.fetchval("SELECT count(*) FROM devices") == 0


async def test_a_new_user_is_called_by_the_localpart_in_rooms_too(api: Api) -> None:
    status, alice = await api.call("POST", REGISTER, body("Alice"))
    assert (status, alice["user_id"]) == (200, f"@alice:{NAME}")
    path = f"{V3}/profile/{alice['user_id']}"
    assert await api.call("GET", path) == (200, {"displayname": "alice"})
    token = alice["access_token"]
    _, room = await api.call("POST", f"{V3}/createRoom", {"preset": "public_chat"}, token)
    _, other = await api.call("POST", REGISTER, body(None))
    made_up = other["user_id"][1:].split(":")[0]
    assert (await api.call("POST", f"{V3}/join/{room['room_id']}", {}, other["access_token"]))[0] == 200
    for user_id, name in ((alice["user_id"], "alice"), (other["user_id"], made_up)):
        member = f"{V3}/rooms/{room['room_id']}/state/m.room.member/{user_id}"
        assert await api.call("GET", member, token=token) == (
            200,
            {"membership": "join", "displayname": name},
        )
    # Who wants no name has none, and keeps none.
    assert (await api.call("DELETE", f"{path}/displayname", token=token))[0] == 200
    assert (await api.call("POST", f"{V3}/login", login("alice")))[0] == 200
    assert await api.call("GET", path) == (200, {})


IMPOSSIBLE: list[Any] = [
    ("?kind=guest", body("x"), 403, "M_GUEST_ACCESS_FORBIDDEN"),
    ("?kind=robot", body("x"), 400, "M_INVALID_PARAM"),
    ("", {"auth": {"type": "m.login.dummy"}}, 400, "M_MISSING_PARAM"),
    ("", {"username": "taken"}, 400, "M_USER_IN_USE"),
    ("", {"username": "TAKEN"}, 400, "M_USER_IN_USE"),
    ("", {"username": ""}, 400, "M_INVALID_USERNAME"),
    ("", {"username": 5}, 400, "M_BAD_JSON"),
    ("", {"password": "short"}, 400, "M_WEAK_PASSWORD"),
]


async def test_c12_what_cannot_be_is_said_before_anything_is_proven(api: Api) -> None:
    await api.register("taken")
    for query, given, status, errcode in IMPOSSIBLE:
        answer = await api.call("POST", REGISTER + query, given)
        assert (answer[0], answer[1]["errcode"]) == (status, errcode)


BELIEVED: list[Any] = ["admin", "Admin", "_bridge_x", "@alice:hub.test", "root"]


async def test_c12_names_that_would_be_believed_are_the_operators(api: Api) -> None:
    for name in BELIEVED:
        status, answer = await api.call("POST", REGISTER, body(name))
        assert (status, answer["errcode"]) == (400, "M_EXCLUSIVE")
        status, answer = await api.call("GET", f"{REGISTER}/available?username={name}")
        assert (status, answer["errcode"]) == (400, "M_EXCLUSIVE")


STRANGE: list[Any] = [
    "\u212aate",
    "a b",
    "a\0",
    "a:b",
    "alice\u200b",
    "\u0430lice",
    "a" * (255 - len(NAME) - 1),
]


async def test_c12_names_that_are_not_canonical_are_none(api: Api) -> None:
    for name in STRANGE:
        status, answer = await api.call("POST", REGISTER, body(name))
        assert (status, answer["errcode"]) == (400, "M_INVALID_USERNAME")


async def test_c12_escaped_names_collide_with_nobody_and_capitals_are_the_same(api: Api) -> None:
    names = ["a=2fb", "a/b", "a+b", "..", "a" * (255 - len(NAME) - 2)]
    made = [(await api.call("POST", REGISTER, body(name)))[1]["user_id"] for name in names]
    assert made == [f"@{name}:{NAME}" for name in names]
    assert (await api.call("POST", REGISTER, body("Carol")))[1]["user_id"] == f"@carol:{NAME}"
    assert (await api.call("GET", f"{REGISTER}/available?username=carol"))[1]["errcode"] == "M_USER_IN_USE"
    assert await api.call("GET", f"{REGISTER}/available?username=dave") == (200, {"available": True})
    assert (await api.call("GET", f"{REGISTER}/available"))[1]["errcode"] == "M_MISSING_PARAM"


async def test_two_at_once_do_not_get_the_same_name(api: Api) -> None:
    answers = await asyncio.gather(*(api.call("POST", REGISTER, body("alice")) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400, 400]


async def test_a_token_is_good_for_its_uses_and_its_time(by_token: Api, db: Database, clock: Clock) -> None:
    tokens = RegistrationTokens(db, (), clock)
    await tokens.create("thrice", 3, None)
    await tokens.create("hourly", None, clock() + HOUR)
    assert await by_token.call("GET", f"{VALIDITY}?token=thrice") == (200, {"valid": True})
    assert (await by_token.call("POST", REGISTER, {}))[1]["flows"] == [{"stages": [TOKEN]}]
    answers = await asyncio.gather(*(with_token(by_token, f"user{n}", "thrice") for n in range(6)))
    assert sorted(status for status, _ in answers)[:3] == [200] * 3
    assert {status for status, _ in answers} <= {200, 401, 403}
    assert len([status for status, _ in answers if status == 200]) == 3
    assert await by_token.call("GET", f"{VALIDITY}?token=thrice") == (200, {"valid": False})
    assert (await with_token(by_token, "late", "thrice"))[0] == 401
    assert (await with_token(by_token, "soon", "hourly"))[0] == 200
    clock.pass_(HOUR)
    assert (await with_token(by_token, "later", "hourly"))[1]["errcode"] == "M_FORBIDDEN"
    assert (await with_token(by_token, "always", "configured"))[0] == 200
    await tokens.change("thrice", 4, None)
    assert (await with_token(by_token, "late", "thrice"))[0] == 200


async def test_a_taken_name_costs_no_use(by_token: Api, db: Database, clock: Clock) -> None:
    tokens = RegistrationTokens(db, (), clock)
    await tokens.create("once", 1, None)
    await by_token.server.accounts.register("alice", PASSWORD)
    assert (await with_token(by_token, "alice", "once"))[1]["errcode"] == "M_USER_IN_USE"
    assert (await with_token(by_token, "bob", "once"))[0] == 200


NO_TOKENS: list[Any] = ["", "nope", 5, None, "a\0b", "x" * 10_000]


async def test_what_is_no_token_is_refused(by_token: Api) -> None:
    for token in NO_TOKENS:
        status, answer = await with_token(by_token, "alice", token)
        assert (status, answer["errcode"]) == (401, "M_FORBIDDEN")


async def test_c12_guesses_at_tokens_are_counted_and_a_closed_server_answers_none(
    db: Database, tmp_path: Path
) -> None:
    limits = {"limits": {"registration": {"per_second": 0.001, "burst": 3}}}
    api = await serve(db, tmp_path, limits, mode="token", tokens=["configured"])
    assert [(await with_token(api, "x", "guess"))[0] for _ in range(5)] == [401, 401, 401, 429, 429]
    await api.close()
    api = await serve(db, tmp_path, mode="closed")
    for method, path in (
        ("GET", VALIDITY + "?token=x"),
        ("GET", f"{REGISTER}/available?username=x"),
        ("POST", REGISTER),
    ):
        status, answer = await api.call(method, path, {} if method == "POST" else None)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    await api.close()
