"""Who reaches the admin API, from where, and what wrong requests are told: C15 to C17."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lmserver.config import ConfigError, parse_config
from lmserver.web.endpoint import Auth
from tests.admin_api.conftest import ALICE, OWN, ROOT, V1, V2, AdminApi
from tests.client_api.test_surface import concrete, registry
from tests.kit.client_api import NAME, V3

NOBODY = f"@nobody:{NAME}"

# (method, path, body, status, errcode)
TABLE: list[tuple[str, str, Any, int, str]] = [
    ("GET", f"{V2}/users?from=-1", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users?limit=many", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users?order_by=shoe_size", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users?dir=up", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users?deactivated=1", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users?name=%00", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users/{NOBODY}", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V2}/users/nobody", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V2}/users/@a:elsewhere.test", None, 400, "M_INVALID_PARAM"),
    ("PUT", f"{V2}/users/@n:elsewhere.test", {"password": "a long password"}, 400, "M_INVALID_PARAM"),
    ("PUT", f"{V2}/users/{NOBODY}", {}, 400, "M_MISSING_PARAM"),
    ("PUT", f"{V2}/users/{NOBODY}", {"password": "short"}, 400, "M_WEAK_PASSWORD"),
    ("PUT", f"{V2}/users/{ALICE}", {"password": 5}, 400, "M_BAD_JSON"),
    ("PUT", f"{V2}/users/{ALICE}", {"admin": 1}, 400, "M_BAD_JSON"),
    ("PUT", f"{V2}/users/{ALICE}", {"displayname": "a\0"}, 400, "M_INVALID_PARAM"),
    ("PUT", f"{V2}/users/{ALICE}", {"threepids": 5}, 400, "M_BAD_JSON"),
    ("PUT", f"{V2}/users/{ALICE}", [], 400, "M_BAD_JSON"),
    ("PUT", f"{V2}/users/{ROOT}", {"deactivated": True}, 400, "M_FORBIDDEN"),
    ("PUT", f"{V2}/users/{ROOT}", {"locked": True}, 400, "M_FORBIDDEN"),
    ("GET", f"{V1}/users/{NOBODY}/admin", None, 404, "M_NOT_FOUND"),
    ("PUT", f"{V1}/users/{NOBODY}/admin", {"admin": True}, 404, "M_NOT_FOUND"),
    ("PUT", f"{V1}/users/{ALICE}/admin", {}, 400, "M_MISSING_PARAM"),
    ("PUT", f"{V1}/users/{ROOT}/admin", {"admin": False}, 400, "M_FORBIDDEN"),
    ("POST", f"{V1}/reset_password/{NOBODY}", {"new_password": "a long password"}, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/reset_password/{ALICE}", {}, 400, "M_MISSING_PARAM"),
    ("POST", f"{V1}/reset_password/{ALICE}", {"new_password": "x"}, 400, "M_WEAK_PASSWORD"),
    ("POST", f"{V1}/deactivate/{NOBODY}", {}, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/deactivate/{ROOT}", {}, 400, "M_FORBIDDEN"),
    ("POST", f"{V1}/deactivate/{ALICE}", {"erase": "yes"}, 400, "M_BAD_JSON"),
    ("GET", f"{V1}/username_available", None, 400, "M_MISSING_PARAM"),
    ("GET", f"{V1}/username_available?username=alice", None, 400, "M_USER_IN_USE"),
    ("GET", f"{V1}/username_available?username=%20", None, 400, "M_INVALID_USERNAME"),
    ("GET", f"{V2}/users/{NOBODY}/devices", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V2}/users/{ALICE}/devices/NONE", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V2}/users/{ALICE}/devices/%00", None, 404, "M_NOT_FOUND"),
    ("DELETE", f"{V2}/users/{NOBODY}/devices/X", None, 404, "M_NOT_FOUND"),
    ("POST", f"{V2}/users/{ALICE}/delete_devices", {"devices": "all"}, 400, "M_BAD_JSON"),
    ("POST", f"{V2}/users/{ALICE}/delete_devices", {"devices": [5]}, 400, "M_BAD_JSON"),
    ("POST", f"{V1}/users/{NOBODY}/login", {}, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/users/{ROOT}/login", {}, 400, "M_FORBIDDEN"),
    ("POST", f"{V1}/users/{ALICE}/login", {"valid_until_ms": -1}, 400, "M_BAD_JSON"),
    ("GET", f"{V1}/whois/{NOBODY}", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V1}/users/{NOBODY}/joined_rooms", None, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/users/{ALICE}/shadow_ban", {}, 404, "M_UNRECOGNIZED"),
    ("GET", f"{V1}/registration_tokens?valid=maybe", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/registration_tokens/none", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V1}/registration_tokens/%00", None, 404, "M_NOT_FOUND"),
    ("PUT", f"{V1}/registration_tokens/none", {}, 404, "M_NOT_FOUND"),
    ("DELETE", f"{V1}/registration_tokens/none", None, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/registration_tokens/new", {"token": "a b"}, 400, "M_INVALID_PARAM"),
    ("POST", f"{V1}/registration_tokens/new", {"length": 65}, 400, "M_BAD_JSON"),
    ("POST", f"{V1}/registration_tokens/new", {"uses_allowed": -1}, 400, "M_INVALID_PARAM"),
    ("POST", f"{V1}/registration_tokens/new", {"uses_allowed": True}, 400, "M_BAD_JSON"),
    ("POST", f"{V1}/registration_tokens/new", {"expiry_time": 1}, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/event_reports?dir=x", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{V1}/event_reports/99", None, 404, "M_NOT_FOUND"),
    ("GET", f"{V1}/event_reports/x", None, 400, "M_INVALID_PARAM"),
    ("DELETE", f"{V1}/event_reports/99999999999999999999", None, 400, "M_INVALID_PARAM"),
    ("DELETE", f"{V1}/event_reports/99", None, 404, "M_NOT_FOUND"),
]  # fmt: skip


async def test_wrong_requests_are_told_what_is_wrong(admin: AdminApi) -> None:
    for method, path, body, status, errcode in TABLE:
        found, answer = await admin.call(method, path, body)
        assert (found, answer.get("errcode")) == (status, errcode), (method, path, body, answer)


async def test_c17_every_endpoint_is_for_administrators_alone(admin: AdminApi) -> None:
    entries = registry(admin.server.admin_app)
    assert len(entries) > 20
    for entry in entries:
        assert entry.auth is Auth.ADMIN and entry.doc, entry.path
        for token, status, errcode in (
            (admin.alice, 403, "M_FORBIDDEN"),
            ("", 401, "M_MISSING_TOKEN"),
            ("x", 401, "M_UNKNOWN_TOKEN"),
        ):
            found, answer = await admin.call(entry.method, concrete(entry.path), {}, token)
            assert (found, answer["errcode"]) == (status, errcode), (entry.path, token)


async def test_c17_clients_and_servers_find_no_admin_api(admin: AdminApi) -> None:
    for app in (admin.server.client_app, admin.server.federation_app):
        for entry in registry(app):
            assert entry.auth is not Auth.ADMIN
            assert not entry.path.startswith(("/_synapse", "/_lmserver", "/admin"))
    paths = {entry.path for entry in registry(admin.server.admin_app)}
    assert all(path.startswith(("/_synapse/admin/", OWN)) for path in paths)


async def test_c17_there_is_no_admin_listener_unless_it_is_asked_for(tmp_path: Path) -> None:
    def listener(**more: Any) -> Any:
        return parse_config({"server_name": NAME, **more}, tmp_path).admin

    assert listener() is None and listener(admin=None) is None
    made = listener(admin={})
    assert (made.host, made.port, made.page) == ("127.0.0.1", 8009, False)
    for wrong in ({"port": "x"}, {"port": 70000}, {"host": 5}, {"page": "yes"}, {"socket": 1}, []):
        with pytest.raises(ConfigError, match="admin"):
            listener(admin=wrong)
    config = parse_config({"server_name": NAME, "admin": {"host": "0.0.0.0"}}, tmp_path)
    assert any("admin listener" in warning for warning in config.warnings())


async def test_c16_no_other_origin_is_let_in(admin: AdminApi) -> None:
    """`call` asserts the same of every answer in this folder."""
    headers = {"Origin": "null", "Access-Control-Request-Method": "GET"}
    for path in (f"{V2}/users", "/"):
        async with admin.http.options(path, headers=headers) as response:
            assert response.status in (404, 405)
            assert not [name for name in response.headers if name.startswith("Access-Control")]


async def test_c17_messages_command_nothing(admin: AdminApi) -> None:
    """An administrator's messages are messages."""
    _, room = await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.token)
    path = f"{V3}/rooms/{room['room_id']}/send/m.room.message/1"
    text = {"msgtype": "m.text", "body": f"!admin users deactivate {ALICE}"}
    assert (await admin.clients.call("PUT", path, text, admin.token))[0] == 200
    assert (await admin.ok("GET", f"{V2}/users/{ALICE}"))["deactivated"] is False


async def test_an_administrator_that_is_none_any_longer(admin: AdminApi) -> None:
    await admin.ok("PUT", f"{V1}/users/{ALICE}/admin", {"admin": True})
    assert (await admin.call("GET", f"{V2}/users", token=admin.alice))[0] == 200
    await admin.ok("PUT", f"{V1}/users/{ALICE}/admin", {"admin": False})
    assert (await admin.call("GET", f"{V2}/users", token=admin.alice))[0] == 403
    await admin.ok("PUT", f"{V1}/users/{ALICE}/admin", {"admin": True})
    await admin.ok("PUT", f"{V2}/users/{ALICE}", {"locked": True})
    status, answer = await admin.call("GET", f"{V2}/users", token=admin.alice)
    assert (status, answer["errcode"]) == (401, "M_USER_LOCKED")


ODD = (
    "%00",
    "%FF",
    "x" * 300,
    "%ED%A0%80",
    "@a%00:b",
    f"@a%00:{NAME}",
    "!a%00:b",
    "-1",
    "9" * 30,
    "..",
    "%2F",
)
BODIES: list[Any] = [
    {}, [], {"user_id": ALICE, "content": {"body": "\0"}}, {"user_id": ALICE, "content": {"body": "x" * 100_000}},
    {"user_id": "\0", "admin": {}, "block": 1, "devices": [["x"]], "new_password": 5, "token": "\0"},
    {"valid_until_ms": 2**63, "length": 2**63, "uses_allowed": 2**63, "expiry_time": 2**63},
    {"displayname": "x" * 5000, "avatar_url": "\0", "reason": "\0", "purge": "x", "new_room_user_id": "\0"},
]  # fmt: skip
QUERY = "from={0}&limit={0}&before_ts={0}&size_gt={0}&name={1}&search_term={1}&user_id={1}&room_id={1}&destination={1}"


async def test_no_input_makes_it_fail(admin: AdminApi) -> None:
    """Nothing of these is a 5xx, whatever it is."""
    for entry in registry(admin.server.admin_app):
        for odd in ODD:
            path = re.sub(r"{\w+}", lambda _, odd=odd: odd, entry.path)
            status, answer = await admin.call(entry.method, path, {})
            assert status < 500, (entry.method, path, answer)
            if path == entry.path:
                break
    targets = {"user_id": ALICE, "room_id": f"!a:{NAME}"}
    for entry in registry(admin.server.admin_app):
        path = re.sub(r"{(\w+)}", lambda found: targets.get(found[1], "elsewhere.test"), entry.path)
        for body in BODIES if entry.method in ("PUT", "POST") else [None]:
            status, answer = await admin.call(entry.method, path, body)
            assert status < 500, (entry.method, path, answer)
        for number, text in (
            ("9" * 18, "%ED%A0%80%25_!"),
            ("9" * 30, "%00"),
            ("%D9%A3", "x" * 1000),
            ("-1", ""),
        ):
            status, answer = await admin.call(entry.method, f"{path}?{QUERY.format(number, text)}", {})
            assert status < 500, (entry.method, path, number, answer)
