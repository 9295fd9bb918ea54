"""Accounts, their logins, registration tokens and reports through the admin API."""

from __future__ import annotations

import pytest

from lmserver.storage import reports
from lmserver.storage.reports import Report
from tests.admin_api.conftest import ALICE, BOB, ROOT, V1, V2, AdminApi
from tests.kit.client_api import NAME, PASSWORD, V3, login

CAROL = f"@carol:{NAME}"


async def names(admin: AdminApi, query: str) -> list[str]:
    answer = await admin.ok("GET", f"{V2}/users{query}")
    return [user["name"].split(":")[0][1:] for user in answer["users"]]


async def test_accounts_are_found_in_pages(admin: AdminApi) -> None:
    first = await admin.ok("GET", f"{V2}/users?limit=2")
    assert (first["total"], first["next_token"], len(first["users"])) == (3, "2", 2)
    rest = await admin.ok("GET", f"{V2}/users?limit=2&from=2")
    assert "next_token" not in rest
    assert [u["name"] for u in first["users"] + rest["users"]] == [ALICE, BOB, ROOT]
    assert await names(admin, "?dir=b") == ["root", "bob", "alice"]
    assert await names(admin, "?admins=true") == ["root"]
    assert await names(admin, "?admins=false&order_by=creation_ts&dir=b") == ["bob", "alice"]
    assert await names(admin, "?order_by=admin&dir=b") == ["root", "alice", "bob"]
    assert await names(admin, "?order_by=is_guest&guests=true") == ["alice", "bob", "root"]
    assert await names(admin, "?name=ALI") == ["alice"]
    assert await names(admin, "?user_id=%25") == [] == await names(admin, "?name=_")
    await admin.ok("PUT", f"{V2}/users/{BOB}", {"displayname": "100% Bob_", "locked": True})
    assert await names(admin, "?name=0%25%20b&locked=true") == ["bob"]
    assert await names(admin, "?name=0%25%20b") == []
    await admin.ok("POST", f"{V1}/deactivate/{ALICE}", {"erase": True})
    assert await names(admin, "") == ["root"]
    assert await names(admin, "?deactivated=true&locked=true") == ["alice", "bob", "root"]


async def test_an_account_is_made_and_changed(admin: AdminApi) -> None:
    body = {"password": PASSWORD, "displayname": "Carol", "admin": True, "threepids": [], "user_type": None}
    status, made = await admin.call("PUT", f"{V2}/users/{CAROL}", body)
    assert (status, made["name"], made["displayname"], made["admin"]) == (201, CAROL, "Carol", True)
    _, carol = await admin.clients.call("POST", f"{V3}/login", login("carol"))
    assert (await admin.call("GET", f"{V2}/users", token=carol["access_token"]))[0] == 200
    _, room = await admin.clients.call("POST", f"{V3}/createRoom", {}, carol["access_token"])
    changed = await admin.ok("PUT", f"{V2}/users/{CAROL}", {"displayname": "C.", "admin": False})
    assert (changed["displayname"], changed["admin"]) == ("C.", False)
    member = f"{V3}/rooms/{room['room_id']}/state/m.room.member/{CAROL}"
    assert (await admin.clients.call("GET", member, None, carol["access_token"]))[1]["displayname"] == "C."
    await admin.ok("PUT", f"{V2}/users/{CAROL}", {"displayname": ""})
    assert (await admin.ok("GET", f"{V2}/users/{CAROL}"))["displayname"] is None
    for name, body in (("dave", {}), (None, {"displayname": ""})):
        who = f"{V2}/users/@{name or 'erin'}:{NAME}"
        status, made = await admin.call("PUT", who, {"password": PASSWORD, **body})
        assert (status, made["displayname"]) == (201, name)
    await admin.ok("PUT", f"{V2}/users/{CAROL}", {"password": "another password"})
    assert (await admin.clients.call("GET", member, None, carol["access_token"]))[0] == 401
    assert (await admin.clients.call("POST", f"{V3}/login", login("carol", "another password")))[0] == 200


async def test_c3_a_deactivated_account_comes_back_with_a_password_alone(admin: AdminApi) -> None:
    for _ in range(2):
        await admin.ok("PUT", f"{V2}/users/{ALICE}", {"deactivated": True})
    assert (await admin.clients.call("POST", f"{V3}/login", login("alice")))[0] == 403
    found = await admin.ok("GET", f"{V2}/users/{ALICE}")
    assert (found["deactivated"], found["displayname"]) == (True, None)
    new = {"new_password": "another password"}
    assert (await admin.call("POST", f"{V1}/reset_password/{ALICE}", new))[0] == 400
    assert (await admin.call("PUT", f"{V2}/users/{ALICE}", {"deactivated": False}))[0] == 400
    await admin.ok("PUT", f"{V2}/users/{ALICE}", {"deactivated": False, "password": "another password"})
    assert (await admin.ok("GET", f"{V2}/users/{ALICE}"))["displayname"] == "alice"
    assert (await admin.clients.call("POST", f"{V3}/login", login("alice")))[0] == 403
    assert (await admin.clients.call("POST", f"{V3}/login", login("alice", "another password")))[0] == 200


async def test_a_password_is_reset(admin: AdminApi) -> None:
    who = f"{V3}/account/whoami"
    new = {"new_password": "another password", "logout_devices": False}
    await admin.ok("POST", f"{V1}/reset_password/{ALICE}", new)
    assert (await admin.clients.call("GET", who, None, admin.alice))[0] == 200
    await admin.ok("POST", f"{V1}/reset_password/{ALICE}", {"new_password": "a third password"})
    assert (await admin.clients.call("GET", who, None, admin.alice))[0] == 401
    assert (await admin.clients.call("POST", f"{V3}/login", login("alice", "a third password")))[0] == 200


async def test_devices_are_shown_and_logged_out(admin: AdminApi) -> None:
    for device in ("ONE", "TWO", "THREE"):
        await admin.clients.call("POST", f"{V3}/login", login("alice", device_id=device))
    found = await admin.ok("GET", f"{V2}/users/{ALICE}/devices")
    assert found["total"] == 4 and {"ONE", "TWO", "THREE"} <= {d["device_id"] for d in found["devices"]}
    assert (await admin.ok("GET", f"{V2}/users/{ALICE}/devices/ONE"))["user_id"] == ALICE
    await admin.ok("DELETE", f"{V2}/users/{ALICE}/devices/ONE")
    await admin.ok("POST", f"{V2}/users/{ALICE}/delete_devices", {"devices": ["TWO", "NONE"]})
    left = await admin.ok("GET", f"{V2}/users/{ALICE}/devices")
    assert "THREE" in {d["device_id"] for d in left["devices"]} and left["total"] == 2


async def test_an_administrator_acts_for_a_user_visibly_and_not_for_ever(admin: AdminApi) -> None:
    until = admin.server.accounts._clock() + 60_000
    made = await admin.ok("POST", f"{V1}/users/{ALICE}/login", {"valid_until_ms": until})
    who = f"{V3}/account/whoami"
    status, answer = await admin.clients.call("GET", who, None, made["access_token"])
    assert (status, answer["user_id"]) == (200, ALICE)
    _, devices = await admin.clients.call("GET", f"{V3}/devices", None, admin.alice)
    assert "An administrator of the server" in [d["display_name"] for d in devices["devices"]]
    ended = await admin.ok("POST", f"{V1}/users/{ALICE}/login", {"valid_until_ms": 1})
    assert (await admin.clients.call("GET", who, None, ended["access_token"]))[0] == 401
    assert (await admin.call("GET", f"{V2}/users", token=made["access_token"]))[0] == 403
    assert (await admin.ok("GET", f"{V2}/users/{ALICE}/devices"))["total"] == 3
    await admin.server.accounts.tidy()
    assert (await admin.ok("GET", f"{V2}/users/{ALICE}/devices"))["total"] == 2


async def test_whois_on_both_listeners(admin: AdminApi) -> None:
    await admin.clients.call("GET", f"{V3}/account/whoami", None, admin.alice)
    found = await admin.ok("GET", f"{V1}/whois/{ALICE}")
    [device] = found["devices"].values()
    assert device["sessions"][0]["connections"][0]["ip"] == "127.0.0.1"
    path = f"{V3}/admin/whois/{ALICE}"
    assert (await admin.clients.call("GET", path, None, admin.alice))[0] == 200
    assert (await admin.clients.call("GET", path, None, admin.token))[0] == 200
    status, answer = await admin.clients.call("GET", path, None, admin.bob)
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    for user, status in ((f"@nobody:{NAME}", 404), ("@a:elsewhere.test", 404), ("alice", 400)):
        assert (await admin.clients.call("GET", f"{V3}/admin/whois/{user}", None, admin.token))[0] == status


async def test_joined_rooms_and_the_version(admin: AdminApi) -> None:
    _, room = await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.alice)
    assert await admin.ok("GET", f"{V1}/users/{ALICE}/joined_rooms") == {
        "joined_rooms": [room["room_id"]], "total": 1,
    }  # fmt: skip
    assert (await admin.ok("GET", f"{V1}/users/@x:elsewhere.test/joined_rooms"))["total"] == 0
    assert (await admin.ok("GET", f"{V1}/server_version"))["server_version"].startswith("lmserver ")
    assert await admin.ok("GET", f"{V1}/username_available?username=free") == {"available": True}


async def test_registration_tokens(admin: AdminApi) -> None:
    tokens = f"{V1}/registration_tokens"
    made = await admin.ok("POST", f"{tokens}/new", {"token": "one", "uses_allowed": 2})
    assert made == {"token": "one", "uses_allowed": 2, "pending": 0, "completed": 0, "expiry_time": None}
    random = await admin.ok("POST", f"{tokens}/new", {"length": 24})
    assert len(random["token"]) == 24
    assert (await admin.call("POST", f"{tokens}/new", {"token": "one"}))[0] == 400
    assert (await admin.ok("PUT", f"{tokens}/one", {"uses_allowed": 0}))["uses_allowed"] == 0
    assert [t["token"] for t in (await admin.ok("GET", f"{tokens}?valid=false"))["registration_tokens"]] == [
        "one"
    ]
    assert len((await admin.ok("GET", tokens))["registration_tokens"]) == 2
    assert (await admin.ok("PUT", f"{tokens}/one", {"uses_allowed": None}))["uses_allowed"] is None
    assert (await admin.ok("GET", f"{tokens}/one"))["uses_allowed"] is None
    await admin.ok("DELETE", f"{tokens}/one")
    assert (await admin.call("GET", f"{tokens}/one"))[0] == 404


async def test_reports(admin: AdminApi) -> None:
    db = admin.server.db
    _, room = await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.alice)
    path = f"{V3}/rooms/{room['room_id']}"
    _, sent = await admin.clients.call("PUT", f"{path}/send/m.room.message/1", {"body": "x"}, admin.alice)
    await admin.clients.call(
        "POST", f"{path}/report/{sent['event_id']}", {"reason": "bad", "score": -50}, admin.alice
    )
    other = await reports.file(db, Report(BOB, "user", None, None, ALICE, "rude", None, 5))
    listed = await admin.ok("GET", f"{V1}/event_reports?limit=1")
    assert (listed["total"], listed["next_token"], listed["event_reports"][0]["id"]) == (2, 1, other)
    mine = await admin.ok("GET", f"{V1}/event_reports?user_id={ALICE}&dir=f")
    [report] = mine["event_reports"]
    assert (report["reason"], report["score"], report["sender"]) == ("bad", -50, ALICE)
    full = await admin.ok("GET", f"{V1}/event_reports/{report['id']}")
    assert full["event_json"]["content"] == {"body": "x"}
    await admin.ok("DELETE", f"{V1}/event_reports/{other}")
    assert (await admin.ok("GET", f"{V1}/event_reports"))["total"] == 1


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("by_user", [False, True])
async def test_what_an_erased_user_uploaded_is_hidden(admin: AdminApi, erase: bool, by_user: bool) -> None:
    headers = {"Authorization": f"Bearer {admin.alice}"}
    async with admin.clients.http.post("/_matrix/media/v3/upload", data=b"hers", headers=headers) as response:
        uri = (await response.json())["content_uri"]
    download = f"/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"

    async def status() -> int:
        headers = {"Authorization": f"Bearer {admin.bob}"}
        async with admin.clients.http.get(download, headers=headers) as response:
            return response.status

    assert await status() == 200
    if by_user:
        proof = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": ALICE},
            "password": PASSWORD,
        }
        body = {"auth": proof, "erase": erase}
        wrong = {**body, "erase": "yes"}
        path = f"{V3}/account/deactivate"
        assert (await admin.clients.call("POST", path, wrong, admin.alice))[1]["errcode"] == "M_BAD_JSON"
        assert (await admin.clients.call("POST", path, body, admin.alice))[0] == 200
    else:
        await admin.ok("POST", f"{V1}/deactivate/{ALICE}", {"erase": erase})
    assert await status() == (404 if erase else 200)
    found = await admin.ok("GET", f"{V2}/users/{ALICE}")
    assert (found["deactivated"], found["erased"]) == (True, erase)
    last = "alice" if erase else "root"
    assert (await names(admin, "?deactivated=true&order_by=erased"))[-1] == last
