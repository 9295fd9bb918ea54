"""Accounts, tokens, keys and access over the assembled client API."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lmserver.storage.database import Database
from lmserver.web.endpoint import endpoints_of
from tests.kit.client_api import NAME, PASSWORD, V3, Api, login, serve


async def test_register_log_in_and_out(api: Api) -> None:
    alice = await api.register("alice")
    assert alice["user_id"] == f"@alice:{NAME}"
    assert (await api.call("GET", f"{V3}/account/whoami", token=alice["access_token"]))[1] == {
        "user_id": alice["user_id"], "device_id": alice["device_id"], "is_guest": False,
    }  # fmt: skip
    for user in ("alice", "ALICE", alice["user_id"]):
        assert (await api.call("POST", f"{V3}/login", login(user)))[0] == 200
    assert (await api.call("POST", f"{V3}/login", {**login(""), "identifier": None, "user": "alice"}))[
        0
    ] == 200
    assert (await api.call("POST", f"{V3}/logout", {}, alice["access_token"]))[0] == 200
    status, answer = await api.call("GET", f"{V3}/account/whoami", token=alice["access_token"])
    assert (status, answer["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_wrong_password_and_unknown_user_get_the_same_answer(api: Api) -> None:
    await api.register("alice")
    wrong = await api.call("POST", f"{V3}/login", login("alice", "another password"))
    assert wrong == await api.call("POST", f"{V3}/login", login("nobody"))
    assert (wrong[0], wrong[1]["errcode"]) == (403, "M_FORBIDDEN")
    assert (await api.call("POST", f"{V3}/login", login("alice", "x" * 100_000)))[0] == 403


async def test_c1_only_the_whole_token_is_one(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    assert len(token) > 40
    for guess in ("", " ", token[:-1], token + "x", token.swapcase(), token.upper(), "null"):
        status, answer = await api.call("GET", f"{V3}/account/whoami", token=guess)
        assert (status, answer["errcode"] in ("M_UNKNOWN_TOKEN", "M_MISSING_TOKEN")) == (401, True), guess
    assert (await api.call("GET", f"{V3}/account/whoami?access_token="))[0] == 401
    assert (await api.call("GET", f"{V3}/account/whoami?access_token={token}"))[0] == 200
    assert (
        await api.server.db.fetchval(
            "SELECT count(*) FROM access_tokens WHERE token_hash = $1", token.encode()
        )
        == 0
    )


async def test_c12_registration_is_closed_unless_opened(db: Database, tmp_path: Path) -> None:
    for registration, auth, wanted in (
        ({"mode": "closed"}, {"type": "m.login.dummy"}, 403),
        ({"mode": "token", "tokens": ["let-me-in-1"]}, {"type": "m.login.dummy"}, 401),
        ({"mode": "token", "tokens": ["let-me-in-1"]}, {"type": "m.login.registration_token", "token": "no"}, 401),
        ({"mode": "token", "tokens": ["let-me-in-1"]}, {"type": "m.login.registration_token", "token": "let-me-in-1"}, 200),
    ):  # fmt: skip
        api = await serve(db, tmp_path, **registration)
        body = {"username": "carol", "password": PASSWORD, "auth": auth}
        status, answer = await api.call("POST", f"{V3}/register", body)
        assert status == wanted, answer
        assert wanted != 401 or answer["session"]
        await api.close()


@pytest.mark.parametrize(
    ("change", "errcode"),
    [
        ({"username": "alice"}, "M_USER_IN_USE"),
        ({"username": "a b"}, "M_INVALID_USERNAME"),
        ({"username": "\u0430lice"}, "M_INVALID_USERNAME"),
        ({"username": "_bridge"}, "M_EXCLUSIVE"),
        ({"username": "a" * 300}, "M_INVALID_USERNAME"),
        ({"password": "short"}, "M_WEAK_PASSWORD"),
        ({"password": 5}, "M_BAD_JSON"),
        ({"device_id": 5}, "M_BAD_JSON"),
    ],
)
async def test_registrations_that_cannot_be(api: Api, change: dict[str, Any], errcode: str) -> None:
    await api.register("alice")
    body = {"username": "dave", "password": PASSWORD, "auth": {"type": "m.login.dummy"}, **change}
    status, answer = await api.call("POST", f"{V3}/register", body)
    assert (status, answer["errcode"]) == (400, errcode)


async def test_c3_a_deactivated_user_is_refused_everywhere(api: Api) -> None:
    alice = await api.register("alice")
    token = alice["access_token"]
    status, answer = await api.call("POST", f"{V3}/account/deactivate", {}, token)
    assert (status, answer["flows"]) == (401, [{"stages": ["m.login.password"]}])
    auth = {"type": "m.login.password", "password": PASSWORD, "session": answer["session"]}
    assert (await api.call("POST", f"{V3}/account/deactivate", {"auth": auth}, token))[0] == 200
    assert (await api.call("GET", f"{V3}/sync?timeout=0", token=token))[0] == 401
    assert (await api.call("POST", f"{V3}/login", login("alice")))[0] == 403
    body = {"username": "alice", "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    assert (await api.call("POST", f"{V3}/register", body))[1]["errcode"] == "M_USER_IN_USE"


async def test_one_time_keys_are_handed_out_once_each(api: Api) -> None:
    alice, bob = await api.register("alice"), await api.register("bob")
    keys = {f"signed_curve25519:{n}": {"key": f"k{n}"} for n in range(10)}
    upload = {"one_time_keys": keys, "fallback_keys": {"signed_curve25519:f": {"key": "f", "fallback": True}}}
    status, answer = await api.call("POST", f"{V3}/keys/upload", upload, alice["access_token"])
    assert (status, answer["one_time_key_counts"]) == (200, {"signed_curve25519": 10})
    wanted = {"one_time_keys": {alice["user_id"]: {alice["device_id"]: "signed_curve25519"}}}
    answers = await asyncio.gather(
        *(api.call("POST", f"{V3}/keys/claim", wanted, bob["access_token"]) for _ in range(12))
    )
    claimed = [next(iter(a["one_time_keys"][alice["user_id"]][alice["device_id"]])) for _, a in answers]
    assert sorted(claimed)[:10] == sorted(keys)
    assert claimed.count("signed_curve25519:f") == 2
    clash = {"one_time_keys": {"signed_curve25519:11": {"key": "a"}}}
    await api.call("POST", f"{V3}/keys/upload", clash, alice["access_token"])
    clash["one_time_keys"]["signed_curve25519:11"] = {"key": "b"}
    assert (await api.call("POST", f"{V3}/keys/upload", clash, alice["access_token"]))[0] == 400


@pytest.mark.parametrize("junk", [5, [], {"user_id": "@bob:hub.test"}, {"device_id": "X"}])
async def test_c9_device_keys_of_others_and_junk_are_refused(api: Api, junk: Any) -> None:
    alice = await api.register("alice")
    status, answer = await api.call("POST", f"{V3}/keys/upload", {"device_keys": junk}, alice["access_token"])
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")


async def test_to_device_messages_wait_until_the_next_sync_has_them(api: Api) -> None:
    alice, bob = await api.register("alice"), await api.register("bob")
    messages = {"messages": {alice["user_id"]: {"*": {"secret": 1}}}}
    for _ in range(2):
        assert (await api.call("PUT", f"{V3}/sendToDevice/m.x/1", messages, bob["access_token"]))[0] == 200
    seen = []
    since = ""
    for _ in range(3):
        answer = (await api.call("GET", f"{V3}/sync?timeout=0{since}", token=alice["access_token"]))[1]
        seen.append([e["content"] for e in answer["to_device"]["events"]] if "to_device" in answer else [])
        assert "signed_curve25519" in answer["device_one_time_keys_count"]
        since = f"&since={answer['next_batch']}"
    assert seen == [[{"secret": 1}], [], []]


async def test_push_rules_are_there_and_can_be_changed(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    rules = (await api.call("GET", f"{V3}/pushrules/", token=token))[1]["global"]
    assert rules["override"][0]["rule_id"] == ".m.rule.master"
    assert rules["content"][0]["pattern"] == "alice"
    own = {"actions": ["notify"], "conditions": [{"kind": "event_match", "key": "type", "pattern": "m.x"}]}
    assert (await api.call("PUT", f"{V3}/pushrules/global/override/mine", own, token))[0] == 200
    assert (await api.call("PUT", f"{V3}/pushrules/global/override/mine/enabled", {"enabled": False}, token))[
        0
    ] == 200
    assert (await api.call("GET", f"{V3}/pushrules/global/override/mine", token=token))[1]["enabled"] is False
    assert (await api.call("DELETE", f"{V3}/pushrules/global/override/mine", token=token))[0] == 200
    assert (await api.call("GET", f"{V3}/pushrules/global/override/mine", token=token))[0] == 404
    assert (await api.call("DELETE", f"{V3}/pushrules/global/override/.m.rule.master", token=token))[0] == 400


async def test_a_new_name_is_told_to_the_rooms(api: Api) -> None:
    alice = await api.register("alice")
    token = alice["access_token"]
    room = (await api.call("POST", f"{V3}/createRoom", {}, token))[1]["room_id"]
    path = f"{V3}/profile/{alice['user_id']}/displayname"
    assert (await api.call("PUT", path, {"displayname": "Alice A."}, token))[0] == 200
    member = (
        await api.call("GET", f"{V3}/rooms/{room}/state/m.room.member/{alice['user_id']}", token=token)
    )[1]
    assert member == {"membership": "join", "displayname": "Alice A."}
    assert (await api.call("GET", path))[1] == {"displayname": "Alice A."}


async def test_unknown_paths_methods_and_preflights(api: Api) -> None:
    assert await api.call("GET", "/_matrix/client/v3/nothing") == (
        404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})  # fmt: skip
    assert (await api.call("DELETE", f"{V3}/login"))[0] == 405
    assert (await api.call("OPTIONS", f"{V3}/anything/at/all"))[0] == 200
    assert (await api.call("GET", "/_matrix/client/r0/login"))[0] == 200
    versions = (await api.call("GET", "/_matrix/client/versions"))[1]
    assert "v1.11" in versions["versions"]
    # Clients offer fields of profiles and blocking invites only where they find these.
    assert {"uk.tcpip.msc4133.stable", "org.matrix.msc4155", "org.matrix.msc4380.stable"} <= set(
        versions["unstable_features"]
    )
    assert list(endpoints_of(object())) == []
