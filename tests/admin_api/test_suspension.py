"""Suspended accounts: what they may still do, and how operators suspend them (CS API §Account suspension)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin_api.conftest import ALICE, BOB, ROOT, V1, V2, AdminApi
from tests.kit.client_api import NAME, V3, login

CLIENT_V1 = "/_matrix/client/v1/admin"
REFUSED = (403, "M_USER_SUSPENDED")


async def answer(
    admin: AdminApi, method: str, path: str, body: Any = None, token: str = ""
) -> tuple[int, Any]:
    """As alice unless a token is given: the status, and what went wrong if anything."""
    status, text = await admin.clients.call(method, path, body, token or admin.alice)
    return status, text.get("errcode") if isinstance(text, dict) else None


async def test_a_suspended_user_reads_leaves_redacts_what_is_theirs_and_logs_out(admin: AdminApi) -> None:
    _, made = await admin.clients.call("POST", f"{V3}/createRoom", {"preset": "public_chat"}, admin.bob)
    room = f"{V3}/rooms/{made['room_id']}"
    assert await answer(admin, "POST", f"{room}/join", {}) == (200, None)
    sent = {
        name: (await admin.clients.call("PUT", f"{room}/send/m.room.message/1", {"body": "x"}, token))[1]
        for name, token in (("alice", admin.alice), ("bob", admin.bob))
    }
    assert await admin.ok("PUT", f"{V1}/suspend/{ALICE}", {"suspend": True}) == {
        f"user_{ALICE}_suspended": True
    }
    assert await answer(admin, "PUT", f"{room}/send/m.room.message/2", {"body": "x"}) == REFUSED
    redaction = f"{room}/send/m.room.redaction/3", {"redacts": sent["alice"]["event_id"]}
    assert await answer(admin, "PUT", *redaction) == REFUSED
    assert await answer(admin, "PUT", f"{room}/state/m.room.name/", {"name": "x"}) == REFUSED
    assert await answer(admin, "PUT", f"{V3}/profile/{ALICE}/displayname", {"displayname": "x"}) == REFUSED
    assert await answer(admin, "POST", f"{V3}/createRoom", {}) == REFUSED
    to_bob, to_self = ({"messages": {user: {"*": {}}}} for user in (BOB, ALICE))
    assert await answer(admin, "PUT", f"{V3}/sendToDevice/m.x/1", to_bob) == REFUSED
    assert await answer(admin, "PUT", f"{V3}/sendToDevice/m.x/2", to_self) == (200, None)
    assert await answer(admin, "PUT", f"{room}/redact/{sent['bob']['event_id']}/4", {}) == REFUSED
    assert await answer(admin, "PUT", f"{room}/redact/{sent['alice']['event_id']}/5", {}) == (200, None)
    assert await answer(admin, "GET", f"{V3}/sync") == (200, None)
    assert await answer(admin, "GET", f"{room}/messages") == (200, None)
    assert await answer(admin, "POST", f"{room}/leave", {}) == (200, None)
    assert await answer(admin, "POST", f"{room}/join", {}) == REFUSED
    assert await answer(admin, "POST", f"{V3}/logout", {}) == (200, None)
    status, again = await admin.clients.call("POST", f"{V3}/login", login("alice"))
    assert status == 200
    token = again["access_token"]
    assert await answer(admin, "POST", f"{room}/join", {}, token) == REFUSED
    await admin.ok("PUT", f"{V1}/suspend/{ALICE}", {"suspend": False})
    assert await answer(admin, "POST", f"{room}/join", {}, token) == (200, None)


async def test_operators_see_who_is_suspended_and_change_it_with_the_rest(admin: AdminApi) -> None:
    assert (await admin.ok("PUT", f"{V2}/users/{BOB}", {"suspended": True}))["suspended"] is True
    assert (await admin.ok("GET", f"{V2}/users/{BOB}"))["suspended"] is True
    found = {user["name"]: user["suspended"] for user in (await admin.ok("GET", f"{V2}/users"))["users"]}
    assert found == {ALICE: False, BOB: True, ROOT: False}
    assert (await admin.call("PUT", f"{V1}/suspend/{ROOT}", {"suspend": True}))[0] == 400
    assert (await admin.call("PUT", f"{V1}/suspend/@nobody:{NAME}", {"suspend": True}))[0] == 404
    assert (await admin.call("PUT", f"{V1}/suspend/{BOB}", {"suspend": 1}))[0] == 400


@pytest.mark.parametrize(("what", "name"), [("suspend", "suspended"), ("lock", "locked")])
async def test_operators_moderate_accounts_through_their_clients(
    admin: AdminApi, what: str, name: str
) -> None:
    """CS API §Server Administration, Matrix 1.18."""
    path = f"{CLIENT_V1}/{what}"

    async def ask(method: str, user: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        return await admin.clients.call(method, f"{path}/{user}", body, token or admin.token)

    assert await ask("GET", ALICE) == (200, {name: False})
    assert await ask("PUT", ALICE, {name: True}) == (200, {name: True})
    assert await ask("GET", ALICE) == (200, {name: True})
    assert (await answer(admin, "POST", f"{V3}/createRoom", {}))[1] == f"M_USER_{name.upper()}"
    assert await ask("PUT", ALICE, {name: False}) == (200, {name: False})
    assert (await answer(admin, "POST", f"{V3}/createRoom", {}))[0] == 200
    assert (await ask("PUT", ALICE, {name: "yes"}))[1]["errcode"] == "M_BAD_JSON"
    assert (await ask("PUT", ROOT, {name: True}))[1]["errcode"] == "M_FORBIDDEN"
    assert (await ask("PUT", "@a:elsewhere.test", {name: True}))[1]["errcode"] == "M_INVALID_PARAM"
    assert (await ask("GET", f"@nobody:{NAME}"))[0] == 404
    for user in (ALICE, f"@nobody:{NAME}"):
        assert (await ask("GET", user, None, admin.bob))[1]["errcode"] == "M_FORBIDDEN"
        assert (await ask("PUT", user, {name: True}, admin.bob))[1]["errcode"] == "M_FORBIDDEN"


async def test_clients_of_operators_alone_are_told_what_these_may_do(admin: AdminApi) -> None:
    for token, told in ((admin.token, {"suspend": True, "lock": True}), (admin.bob, None)):
        _, found = await admin.clients.call("GET", f"{V3}/capabilities", None, token)
        assert found["capabilities"].get("m.account_moderation") == told
