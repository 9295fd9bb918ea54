"""What each endpoint of a user's own data answers to a wrong request: a table, one line a mistake.

Who may ask for what is told by tests/access."""

from __future__ import annotations

from typing import Any

from tests.kit.client_api import NAME, PASSWORD, V3, Api

ALICE = f"%40alice:{NAME}"
ROOM = f"%21room:{NAME}"
LONG = "x" * 256

# (method, path below /v3, body or None, status, errcode)
TABLE: list[tuple[str, str, Any, int, str]] = [
    # devices
    ("GET", "/devices/NOPE", None, 404, "M_NOT_FOUND"),
    ("GET", "/devices/%00", None, 404, "M_NOT_FOUND"),
    ("PUT", "/devices/NOPE", {"display_name": "x"}, 404, "M_NOT_FOUND"),
    ("PUT", "/devices/NOPE", {"display_name": 5}, 400, "M_BAD_JSON"),
    ("PUT", "/devices/NOPE", {"display_name": "x" * 257}, 400, "M_BAD_JSON"),
    ("PUT", "/devices/NOPE", {"display_name": "a\0b"}, 400, "M_BAD_JSON"),
    ("PUT", "/devices/NOPE", [], 400, "M_BAD_JSON"),
    ("POST", "/delete_devices", {}, 400, "M_BAD_JSON"),
    ("POST", "/delete_devices", {"devices": "all"}, 400, "M_BAD_JSON"),
    ("POST", "/delete_devices", {"devices": [5]}, 400, "M_BAD_JSON"),
    ("DELETE", "/devices/NOPE", {"auth": {"type": "m.login.password", "identifier":
        {"type": "m.id.user", "user": "alice"}, "password": "wrong"}}, 401, "M_FORBIDDEN"),
    # profile
    ("GET", f"/profile/%40nobody:{NAME}", None, 404, "M_NOT_FOUND"),
    ("GET", "/profile/alice", None, 400, "M_INVALID_PARAM"),
    ("GET", f"/profile/{ALICE}/shoe_size", None, 404, "M_NOT_FOUND"),
    ("PUT", f"/profile/{ALICE}/displayname", {"displayname": 5}, 400, "M_BAD_JSON"),
    ("PUT", f"/profile/{ALICE}/displayname", {"displayname": "a\0b"}, 400, "M_BAD_JSON"),
    ("PUT", f"/profile/{ALICE}/displayname", {"displayname": "x" * 5000}, 400, "M_BAD_JSON"),
    ("PUT", f"/profile/{ALICE}/avatar_url", {"avatar_url": {}}, 400, "M_BAD_JSON"),
    # account data
    ("GET", f"/user/{ALICE}/account_data/org.test.unset", None, 404, "M_NOT_FOUND"),
    ("PUT", f"/user/{ALICE}/account_data/org.test", [], 400, "M_BAD_JSON"),
    ("PUT", f"/user/{ALICE}/account_data/{LONG}", {}, 400, "M_INVALID_PARAM"),
    ("PUT", f"/user/{ALICE}/account_data/a%00b", {}, 400, "M_INVALID_PARAM"),
    ("PUT", f"/user/{ALICE}/account_data/m.fully_read", {}, 405, "M_BAD_JSON"),
    ("PUT", f"/user/{ALICE}/account_data/m.push_rules", {}, 405, "M_BAD_JSON"),
    ("GET", f"/user/{ALICE}/rooms/{ROOM}/account_data/org.test", None, 404, "M_NOT_FOUND"),
    ("GET", f"/user/{ALICE}/rooms/room/account_data/org.test", None, 400, "M_INVALID_PARAM"),
    # tags
    ("GET", f"/user/{ALICE}/rooms/room/tags", None, 400, "M_INVALID_PARAM"),
    ("PUT", f"/user/{ALICE}/rooms/{ROOM}/tags/{LONG}", {}, 400, "M_INVALID_PARAM"),
    ("PUT", f"/user/{ALICE}/rooms/{ROOM}/tags/u.work", {"order": "first"}, 400, "M_BAD_JSON"),
    ("PUT", f"/user/{ALICE}/rooms/{ROOM}/tags/u.work", [], 400, "M_BAD_JSON"),
    # filters
    ("GET", f"/user/{ALICE}/filter/99", None, 404, "M_NOT_FOUND"),
    ("POST", f"/user/{ALICE}/filter", {"room": {"timeline": {"limit": "ten"}}}, 400, "M_BAD_JSON"),
    ("POST", f"/user/{ALICE}/filter", {"room": 5}, 400, "M_BAD_JSON"),
    # push rules
    ("GET", "/pushrules/global/override/nope", None, 404, "M_NOT_FOUND"),
    ("GET", "/pushrules/global/shoes/nope", None, 404, "M_NOT_FOUND"),
    ("PUT", "/pushrules/global/content/x", {"actions": "notify", "pattern": "x"}, 400, "M_BAD_JSON"),
    ("PUT", "/pushrules/global/content/x", {"actions": ["notify"]}, 400, "M_BAD_JSON"),
    ("PUT", "/pushrules/global/override/.m.mine", {"actions": [], "conditions": []}, 400, "M_BAD_JSON"),
    ("DELETE", "/pushrules/global/override/.m.rule.master", None, 400, "M_BAD_JSON"),
    ("PUT", "/pushrules/global/override/.m.rule.master/enabled", {"enabled": 1}, 400, "M_BAD_JSON"),
    ("PUT", "/pushrules/global/override/.m.rule.master/enabled", {}, 400, "M_MISSING_PARAM"),
    ("GET", "/pushrules/global/override/.m.rule.master/colour", None, 404, "M_NOT_FOUND"),
    # directory
    ("GET", f"/directory/room/%23nope:{NAME}", None, 404, "M_NOT_FOUND"),
    ("GET", "/directory/room/nope", None, 400, "M_INVALID_PARAM"),
    ("PUT", f"/directory/room/%23a:{NAME}", {}, 400, "M_INVALID_PARAM"),
    ("PUT", f"/directory/room/%23a:{NAME}", {"room_id": 5}, 400, "M_INVALID_PARAM"),
    ("DELETE", f"/directory/room/%23nope:{NAME}", None, 404, "M_NOT_FOUND"),
    ("PUT", f"/directory/list/room/{ROOM}", {"visibility": "public"}, 404, "M_NOT_FOUND"),
    ("PUT", f"/directory/list/room/{ROOM}", {"visibility": "secret"}, 400, "M_INVALID_PARAM"),
    ("GET", "/publicRooms?limit=many", None, 400, "M_INVALID_PARAM"),
    ("GET", "/publicRooms?since=x", None, 400, "M_INVALID_PARAM"),
    ("POST", "/publicRooms", {"limit": "x"}, 400, "M_BAD_JSON"),
    ("POST", "/user_directory/search", {}, 400, "M_BAD_JSON"),
    # keys and to-device
    ("POST", "/keys/upload", {"device_keys": 5}, 400, "M_BAD_JSON"),
    ("POST", "/keys/query", {}, 400, "M_BAD_JSON"),
    ("POST", "/keys/claim", {"one_time_keys": []}, 400, "M_BAD_JSON"),
    ("PUT", "/sendToDevice/m.test/1", {}, 400, "M_BAD_JSON"),
    ("PUT", "/sendToDevice/m.test/1", {"messages": {"alice": {}}}, 400, "M_BAD_JSON"),
]  # fmt: skip


async def test_every_mistake_gets_its_error_and_none_a_5xx(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    await api.register("bob")
    wrong = []
    for method, path, body, status, errcode in TABLE:
        answer = await api.call(method, V3 + path, body, token)
        if (answer[0], answer[1].get("errcode")) != (status, errcode):
            wrong.append(f"{method} {path} {body}: {status} {errcode} expected, {answer}")
    assert not wrong, "\n".join(wrong)


async def test_the_right_requests_work(api: Api) -> None:
    """The control of the table: the same endpoints answer 200 to what is right."""
    alice = await api.register("alice")
    token, device = alice["access_token"], alice["device_id"]
    user = f"/user/{ALICE}"
    steps: list[tuple[str, str, Any]] = [
        ("PUT", f"/devices/{device}", {"display_name": "phone"}),
        ("PUT", f"/profile/{ALICE}/displayname", {"displayname": "Alice"}),
        ("PUT", f"{user}/account_data/org.test", {"a": 1}),
        ("PUT", f"{user}/rooms/{ROOM}/account_data/org.test", {"b": 2}),
        ("PUT", f"{user}/rooms/{ROOM}/tags/u.work", {"order": 0.5}),
        ("PUT", "/pushrules/global/content/x", {"actions": ["notify"], "pattern": "x"}),
        ("PUT", "/pushrules/global/content/x/enabled", {"enabled": False}),
    ]
    for method, path, body in steps:
        assert await api.call(method, V3 + path, body, token) == (200, {}), path
    reads: list[tuple[str, Any]] = [
        (f"/profile/{ALICE}/displayname", {"displayname": "Alice"}),
        (f"{user}/account_data/org.test", {"a": 1}),
        (f"{user}/rooms/{ROOM}/account_data/org.test", {"b": 2}),
        (f"{user}/rooms/{ROOM}/tags", {"tags": {"u.work": {"order": 0.5}}}),
        ("/pushrules/global/content/x/enabled", {"enabled": False}),
    ]
    for path, expected in reads:
        assert await api.call("GET", V3 + path, None, token) == (200, expected), path
    assert (await api.call("GET", f"{V3}/devices/{device}", None, token))[1]["display_name"] == "phone"
    assert (await api.call("DELETE", f"{V3}{user}/rooms/{ROOM}/tags/u.work", None, token))[0] == 200
    assert (await api.call("GET", f"{V3}{user}/rooms/{ROOM}/tags", None, token))[1] == {"tags": {}}
    assert (await api.call("DELETE", f"{V3}/pushrules/global/content/x", None, token))[0] == 200
    assert (await api.call("GET", f"{V3}/pushrules/global/content/x", None, token))[0] == 404


async def test_a_device_is_deleted_with_the_password_and_only_with_it(api: Api) -> None:
    alice = await api.register("alice")
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    other = (await api.call("POST", f"{V3}/login", {**login, "password": PASSWORD}))[1]
    path = f"{V3}/devices/{other['device_id']}"
    status, flows = await api.call("DELETE", path, {}, alice["access_token"])
    assert (status, "session" in flows) == (401, True)
    auth = {**login, "password": PASSWORD, "session": flows["session"]}
    assert (await api.call("DELETE", path, {"auth": auth}, alice["access_token"]))[0] == 200
    assert (await api.call("GET", f"{V3}/account/whoami", None, other["access_token"]))[0] == 401
