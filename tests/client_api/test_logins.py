"""Staying logged in, logging another device in, and what ends a login (CS API §Client authentication)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lmserver.accounts.access_tokens import ACCESS_MS, LOGIN_MS
from lmserver.storage import access_tokens, accounts
from lmserver.storage.database import Database
from tests.kit.client_api import NAME, PASSWORD, V3, Api, login, serve
from tests.kit.clock import Clock
from tests.kit.waiting import HANGS, eventually

WHOAMI = f"{V3}/account/whoami"
GET_TOKEN = "/_matrix/client/v1/login/get_token"


async def log_in(api: Api, user: str = "alice", **more: Any) -> dict[str, Any]:
    status, answer = await api.call("POST", f"{V3}/login", login(user, **more))
    assert status == 200, answer
    return dict(answer)


async def refreshable(api: Api, **more: Any) -> dict[str, Any]:
    await api.server.accounts.register("alice", PASSWORD)
    return await log_in(api, refresh_token=True, **more)


async def refresh(api: Api, token: Any) -> tuple[int, Any]:
    return await api.call("POST", f"{V3}/refresh", {"refresh_token": token})


async def works(api: Api, token: str) -> bool:
    return (await api.call("GET", WHOAMI, token=token))[0] == 200


def confirmed(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "auth": {"type": "m.login.password", "password": PASSWORD}}


# -- refresh tokens -----------------------------------------------------------------------------------


async def test_tokens_end_only_for_who_can_renew_them(api: Api, clock: Clock) -> None:
    first = await refreshable(api)
    assert first["expires_in_ms"] == ACCESS_MS
    lasting = await log_in(api)
    assert "refresh_token" not in lasting
    body = {"username": "bob", "password": PASSWORD, "refresh_token": True, "auth": {"type": "m.login.dummy"}}
    assert (await api.call("POST", f"{V3}/register", body))[1]["refresh_token"]
    assert await works(api, first["access_token"])
    clock.pass_(ACCESS_MS)
    status, answer = await api.call("GET", WHOAMI, token=first["access_token"])
    assert (status, answer["errcode"], answer["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", True)
    assert await works(api, lasting["access_token"])
    status, second = await refresh(api, first["refresh_token"])
    assert (status, set(second)) == (200, {"access_token", "refresh_token", "expires_in_ms"})
    status, answer = await api.call("GET", WHOAMI, token=second["access_token"])
    assert (status, answer["device_id"]) == (200, first["device_id"])


async def test_the_old_pair_is_good_until_the_new_one_is_used(api: Api) -> None:
    first = await refreshable(api)
    _, lost = await refresh(api, first["refresh_token"])  # the answer gets lost
    assert await works(api, first["access_token"])
    _, second = await refresh(api, first["refresh_token"])
    assert (await refresh(api, lost["refresh_token"]))[1]["errcode"] == "M_UNKNOWN_TOKEN"
    assert not await works(api, lost["access_token"])
    assert await works(api, first["access_token"])
    assert await works(api, second["access_token"])
    status, answer = await api.call("GET", WHOAMI, token=first["access_token"])
    assert (status, answer["soft_logout"]) == (401, False)
    assert (await refresh(api, first["refresh_token"]))[0] == 401
    _, third = await refresh(api, second["refresh_token"])
    _, fourth = await refresh(api, third["refresh_token"])  # the use of a refresh token is one too
    assert not await works(api, second["access_token"])
    assert (await refresh(api, second["refresh_token"]))[0] == 401
    assert await works(api, fourth["access_token"])


async def test_of_two_at_once_one_pair_is_left(api: Api, db: Database) -> None:
    first = await refreshable(api)
    answers = await asyncio.gather(*(refresh(api, first["refresh_token"]) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    left = [await works(api, answer["access_token"]) for _, answer in answers]
    assert left.count(True) == 1
    assert await db.fetchval("SELECT count(*) FROM refresh_tokens") == 1


NO_TOKENS: list[Any] = ["", "nope", "x" * 5000, "a\0"]


async def test_what_is_no_refresh_token(api: Api) -> None:
    for token in NO_TOKENS:
        assert (await refresh(api, token))[1]["errcode"] == "M_UNKNOWN_TOKEN"
        assert (await refresh(api, 5))[1]["errcode"] == "M_BAD_JSON"


async def test_an_access_token_is_no_refresh_token_and_back(api: Api, db: Database) -> None:
    first = await refreshable(api)
    assert (await refresh(api, first["access_token"]))[0] == 401
    assert not await works(api, first["refresh_token"])
    rows = str(await db.fetch("SELECT * FROM access_tokens")) + str(
        await db.fetch("SELECT * FROM refresh_tokens")
    )
    assert first["access_token"] not in rows
    assert first["refresh_token"] not in rows


async def test_logging_in_on_the_same_device_or_out_ends_its_tokens(api: Api) -> None:
    first = await refreshable(api, device_id="PHONE")
    second = await log_in(api, device_id="PHONE", refresh_token=True)
    assert not await works(api, first["access_token"])
    assert (await refresh(api, first["refresh_token"]))[0] == 401
    assert (await api.call("POST", f"{V3}/logout", {}, second["access_token"]))[0] == 200
    assert (await refresh(api, second["refresh_token"]))[0] == 401


async def test_a_login_that_ends_while_its_token_is_looked_up_is_not_remembered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await api.register("alice"))["access_token"]
    look_up = access_tokens.owner

    async def slow(*arguments: Any) -> Any:
        found = await look_up(*arguments)
        monkeypatch.undo()
        await api.server.accounts.log_out(f"@alice:{NAME}")
        return found

    monkeypatch.setattr(access_tokens, "owner", slow)
    assert await works(api, token)  # it was asked before
    assert not await works(api, token)


async def test_a_transaction_id_is_the_devices_and_survives_a_refresh(api: Api) -> None:
    first = await refreshable(api, device_id="PHONE")
    room = (await api.call("POST", f"{V3}/createRoom", {}, first["access_token"]))[1]["room_id"]
    send = f"{V3}/rooms/{room}/send/m.room.message/1"
    event = (await api.call("PUT", send, {"body": "x"}, first["access_token"]))[1]["event_id"]
    _, second = await refresh(api, first["refresh_token"])
    token = second["access_token"]
    assert (await api.call("PUT", send, {"body": "x"}, token))[1]["event_id"] == event
    path = f"{V3}/rooms/{room}/event/{event}"
    assert (await api.call("GET", path, token=token))[1]["unsigned"]["transaction_id"] == "1"
    other = await log_in(api)
    seen = (await api.call("GET", path, token=other["access_token"]))[1]
    assert "transaction_id" not in seen.get("unsigned", {})
    assert (await api.call("PUT", send, {"body": "x"}, other["access_token"]))[1]["event_id"] != event
    # A device that is gone and comes again under its old name is another one.
    await api.call("POST", f"{V3}/logout", {}, token)
    again = await log_in(api, device_id="PHONE")
    assert (await api.call("PUT", send, {"body": "x"}, again["access_token"]))[1]["event_id"] != event


# -- login tokens -------------------------------------------------------------------------------------


async def test_a_login_token_logs_in_once_and_soon(api: Api, db: Database, clock: Clock) -> None:
    token = (await api.register("alice"))["access_token"]
    flows = (await api.call("GET", f"{V3}/login"))[1]["flows"]
    assert {"type": "m.login.token", "get_login_token": True} in flows
    assert (await api.call("POST", GET_TOKEN, {}, token))[1]["flows"] == [{"stages": ["m.login.password"]}]

    async def get() -> str:
        status, answer = await api.call("POST", GET_TOKEN, confirmed({}), token)
        assert (status, answer["expires_in_ms"]) == (200, LOGIN_MS)
        return str(answer["login_token"])

    async def use(login_token: Any) -> tuple[int, Any]:
        return await api.call("POST", f"{V3}/login", {"type": "m.login.token", "token": login_token})

    first = await get()
    answers = await asyncio.gather(*(use(first) for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 403, 403, 403]
    [right] = [answer for status, answer in answers if status == 200]
    assert right["user_id"] == f"@alice:{NAME}"
    late = await get()
    clock.pass_(LOGIN_MS)
    assert (await use(late))[1]["errcode"] == "M_FORBIDDEN"
    await access_tokens.purge_logins(db, clock())
    assert await db.fetchval("SELECT count(*) FROM login_tokens") == 0
    assert (await use(5))[1]["errcode"] == "M_BAD_JSON"
    for none in ("", "x" * 5000, right["access_token"]):
        assert (await use(none))[1]["errcode"] == "M_FORBIDDEN"


# -- what ends a login --------------------------------------------------------------------------------


async def test_a_new_password_logs_other_devices_out_unless_asked_not_to(api: Api) -> None:
    first, second = (await api.register("alice"))["access_token"], (await log_in(api))["access_token"]
    path = f"{V3}/account/password"
    for wrong, errcode in (
        ({}, "M_MISSING_PARAM"), ({"new_password": 5}, "M_BAD_JSON"), ({"new_password": "short"}, "M_WEAK_PASSWORD"),
        ({"new_password": "x" * 513}, "M_WEAK_PASSWORD"), ({"new_password": "a new password", "logout_devices": 1}, "M_BAD_JSON"),
    ):  # fmt: skip
        assert (await api.call("POST", path, wrong, first))[1]["errcode"] == errcode
    keep = {"new_password": "second password", "logout_devices": False}
    assert (await api.call("POST", path, confirmed(keep), first))[0] == 200
    assert await works(api, second)
    body = {"new_password": PASSWORD, "auth": {"type": "m.login.password", "password": "second password"}}
    assert (await api.call("POST", path, body, first))[0] == 200
    assert await works(api, first)
    assert not await works(api, second)


async def test_c3_a_locked_user_can_only_log_out(api: Api) -> None:
    first = await refreshable(api)
    token = (await log_in(api))["access_token"]
    login_token = (await api.call("POST", GET_TOKEN, confirmed({}), token))[1]["login_token"]
    assert await api.server.accounts.set_locked(f"@alice:{NAME}", True)
    for method, path, body, used in (
        ("GET", WHOAMI, None, token),
        ("GET", f"{V3}/sync?timeout=0", None, token),
        ("POST", f"{V3}/login", login("alice"), None),
        ("POST", f"{V3}/login", {"type": "m.login.token", "token": login_token}, None),
        ("POST", f"{V3}/refresh", {"refresh_token": first["refresh_token"]}, None),
    ):
        status, answer = await api.call(method, path, body, used)
        assert (status, answer["errcode"], answer["soft_logout"]) == (401, "M_USER_LOCKED", True), path
    assert (await api.call("POST", f"{V3}/login", login("alice", "another password")))[0] == 403
    assert (await api.call("POST", f"{V3}/logout", {}, token))[0] == 200
    assert await api.server.accounts.set_locked(f"@alice:{NAME}", False)
    assert await works(api, first["access_token"])
    assert not await works(api, token)
    assert not await api.server.accounts.set_locked(f"@nobody:{NAME}", True)


async def test_c3_no_token_of_any_kind_survives_the_account(api: Api, db: Database) -> None:
    first = await refreshable(api)
    token = (await log_in(api))["access_token"]
    login_token = (await api.call("POST", GET_TOKEN, confirmed({}), token))[1]["login_token"]
    await api.call("PUT", f"{V3}/user/@alice:{NAME}/account_data/x", {"a": 1}, token)
    assert (await api.call("POST", f"{V3}/account/deactivate", confirmed({}), token))[0] == 200
    for method, path, body, used in (
        ("GET", WHOAMI, None, first["access_token"]),
        ("POST", f"{V3}/login", login("alice"), None),
        ("POST", f"{V3}/login", {"type": "m.login.token", "token": login_token}, None),
        ("POST", f"{V3}/refresh", {"refresh_token": first["refresh_token"]}, None),
    ):
        assert (await api.call(method, path, body, used))[0] in (401, 403), path
    for table in ("devices", "access_tokens", "refresh_tokens", "login_tokens", "account_data", "filters"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_a_deactivated_user_leaves_all_rooms(api: Api, db: Database) -> None:
    alice, bob = await api.register("alice"), await api.register("bob")
    token = alice["access_token"]
    joined = (await api.call("POST", f"{V3}/createRoom", {"preset": "public_chat"}, bob["access_token"]))[1][
        "room_id"
    ]
    assert (await api.call("POST", f"{V3}/join/{joined}", {}, token))[0] == 200
    invited = (
        await api.call("POST", f"{V3}/createRoom", {"invite": [alice["user_id"]]}, bob["access_token"])
    )[1]["room_id"]
    assert (await api.call("POST", f"{V3}/account/deactivate", confirmed({}), token))[0] == 200
    await api.server.departures.check()
    for room in (joined, invited):
        path = f"{V3}/rooms/{room}/state/m.room.member/{alice['user_id']}"
        assert (await api.call("GET", path, token=bob["access_token"]))[1]["membership"] == "leave"
    assert await db.fetchval("SELECT count(*) FROM departures") == 0


async def test_c13_many_wrong_logins_at_once_wait_for_each_other(db: Database, tmp_path: Path) -> None:
    """Hashing has two threads; the limit by account and address refuses what is too much before."""
    api = await serve(db, tmp_path, {"limits": {"login": {"per_second": 0.001, "burst": 8}}})
    await api.register("alice")
    answers = await asyncio.gather(
        *(api.call("POST", f"{V3}/login", login("alice", "a wrong password")) for _ in range(60))
    )
    statuses = [status for status, _ in answers]
    assert (statuses.count(403), statuses.count(429)) == (8, 52)
    await api.close()


async def test_small_things_clients_ask(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    assert await api.call("GET", f"{V3}/account/3pid", token=token) == (200, {"threepids": []})
    status, answer = await api.call("GET", "/_matrix/client/v1/auth_metadata")
    assert (status, answer["errcode"]) == (404, "M_UNRECOGNIZED")
    capabilities = (await api.call("GET", f"{V3}/capabilities", token=token))[1]["capabilities"]
    assert capabilities["m.get_login_token"] == {"enabled": True}


async def test_a_request_does_not_wait_until_it_is_noted_when_it_came(
    api: Api, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.server.accounts.register("alice", PASSWORD)
    token = (await log_in(api))["access_token"]
    note, may_note = accounts.seen, asyncio.Event()

    async def late(*arguments: Any) -> None:
        await may_note.wait()
        await note(*arguments)

    monkeypatch.setattr(accounts, "seen", late)
    assert await asyncio.wait_for(works(api, token), HANGS)
    seen = "SELECT count(last_seen_ts) FROM devices"
    assert await db.fetchval(seen) == 0
    may_note.set()

    async def noted() -> bool:
        return bool(await db.fetchval(seen) == 1)

    await eventually(noted)
