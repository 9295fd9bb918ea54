"""Who may do what: a line for every endpoint of the client API, a cell for every role.

A cell is a status, with the error code where it is not the usual one of that status:
`403` means 403 M_FORBIDDEN, `400:M_BAD_JSON` another code. Rows stand in the order in which they are
tried, so what ends something stands last. Paths are those of the declarations; what they name is the
owner's unless the row says otherwise. In texts `{name}` is filled from `World.values`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COLUMNS = ("owner", "member", "stranger", "banned", "admin", "nobody")
"""An operator has no more rights in a room than any stranger to it; the room directory is theirs to tidy."""

V3 = "/_matrix/client/v3"
V1 = "/_matrix/client/v1"
ROOM = V3 + "/rooms/{room_id}"
KEYS = V3 + "/room_keys"
RULES = V3 + "/pushrules/global"
DEHYDRATED = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
MEDIA = "/_matrix/media/v3"
FILE = V1 + "/media/{kind}/{server_name}/{media_id}"


@dataclass(frozen=True)
class Row:
    """One endpoint, asked once by everybody. `locked` is what a locked account gets, where that
    is not M_USER_LOCKED, `suspended` what a suspended stranger gets where it is neither what any stranger
    gets who reads (GET) nor M_USER_SUSPENDED; with `ends_login` every asker has a login of its own to lose."""

    method: str
    path: str
    cells: str
    body: Any = None
    query: str = ""
    fill: dict[str, str] = field(default_factory=dict)
    ends_login: bool = False
    locked: str = "401:M_USER_LOCKED"
    suspended: str | None = None

    @property
    def expected(self) -> dict[str, str]:
        return dict(zip(COLUMNS, self.cells.split(), strict=True))

    @property
    def while_suspended(self) -> str:
        default = self.expected["stranger"] if self.method == "GET" else "403:M_USER_SUSPENDED"
        return self.suspended or default


EVERYBODY = "200 200 200 200 200 200"
USERS = "200 200 200 200 200 401"
OWNER = "200 403 403 403 403 401"
OWN_ONLY = "200 404 404 404 404 401"
"""What hangs on the asker: others find nothing under the same name."""
JOINED = "200 200 403 403 403 401"
WAS_THERE = "200 200 403 200 403 401"
POWER = "200 403 403 403 403 401"
FOR_OPERATORS = "403 403 403 403 200 401"
PROVE = "401:None 401:None 401:None 401:None 401:None 401"
"""The password first: nothing is changed by a token alone."""

DISCOVERY = [
    Row("GET", "/_matrix/client/versions", EVERYBODY),
    Row("GET", "/.well-known/matrix/client", EVERYBODY),
    Row("GET", "/.well-known/matrix/server", "404 404 404 404 404 404"),
    Row("GET", V3 + "/capabilities", USERS),
    Row("GET", V3 + "/thirdparty/protocols", USERS),
    Row("GET", V3 + "/voip/turnServer", USERS),
    Row("GET", V1 + "/auth_metadata", " ".join(["404:M_UNRECOGNIZED"] * 6)),
]

LOGINS = [
    Row("GET", V3 + "/login", EVERYBODY),
    Row("GET", V3 + "/login/sso/redirect", " ".join(["400:M_MISSING_PARAM"] * 6)),
    Row(
        "GET",
        V3 + "/login/sso/redirect/{provider}",
        " ".join(["404"] * 6),
        query="redirectUrl=https://app.test/",
    ),
    Row("GET", "/_lmserver/sso/callback", " ".join(["400"] * 6)),
    Row("GET", "/_lmserver/sso/confirm", " ".join(["404:None"] * 6)),
    Row("GET", V3 + "/auth/{stage}/fallback/web", " ".join(["404:M_UNRECOGNIZED"] * 6)),
    Row(
        "POST",
        V3 + "/login",
        " ".join(["403"] * 6),
        {"type": "m.login.password", "user": "nobody", "password": "x"},
    ),
    Row("POST", V3 + "/refresh", " ".join(["401:M_UNKNOWN_TOKEN"] * 6), {"refresh_token": "guess"}),
    Row("GET", V3 + "/register/available", EVERYBODY, query="username=zoe"),
    Row("GET", V1 + "/register/m.login.registration_token/validity", EVERYBODY, query="token=guess"),
    Row("POST", V3 + "/register", " ".join(["401:None"] * 6), {}),
    Row("GET", V3 + "/account/whoami", USERS),
    Row("GET", V3 + "/account/3pid", USERS),
    Row("POST", V1 + "/login/get_token", PROVE, {}, suspended="401:None"),
    Row("POST", V3 + "/account/password", PROVE, {"new_password": "another long password"}),
    Row("POST", V3 + "/account/deactivate", PROVE, {}, suspended="401:None"),
]

SERVICES = [
    Row("POST", V1 + "/appservice/{service_id}/ping", "403 403 403 403 403 401", {}),
]

DEVICES = [
    Row("GET", V3 + "/devices", USERS),
    Row("GET", V3 + "/devices/{device_id}", OWN_ONLY),
    Row("PUT", V3 + "/devices/{device_id}", OWN_ONLY, {"display_name": "phone"}),
    Row("DELETE", V3 + "/devices/{device_id}", PROVE, {}, suspended="401:None"),
    Row("POST", V3 + "/delete_devices", PROVE, {"devices": ["{device_id}"]}, suspended="401:None"),
]

OF_A_USER = [
    Row("GET", V3 + "/profile/{user_id}", EVERYBODY),
    Row("GET", V3 + "/profile/{user_id}/{field}", EVERYBODY),
    Row("PUT", V3 + "/profile/{user_id}/{field}", OWNER, {"displayname": "Alice"}),
    Row("DELETE", V3 + "/profile/{user_id}/{field}", OWNER, fill={"field": "org.test.shoe"}),
    Row("PUT", V3 + "/user/{user_id}/account_data/{type}", OWNER, {"a": "{secret}"}, suspended="403"),
    Row("GET", V3 + "/user/{user_id}/account_data/{type}", OWNER),
    Row("PUT", V3 + "/user/{user_id}/rooms/{room_id}/account_data/{type}", OWNER, {"a": "{secret}"}),
    Row("GET", V3 + "/user/{user_id}/rooms/{room_id}/account_data/{type}", OWNER),
    Row("PUT", V3 + "/user/{user_id}/rooms/{room_id}/tags/{tag}", OWNER, {"order": 0.5}),
    Row("GET", V3 + "/user/{user_id}/rooms/{room_id}/tags", OWNER),
    Row("DELETE", V3 + "/user/{user_id}/rooms/{room_id}/tags/{tag}", OWNER),
    Row("POST", V3 + "/user/{user_id}/filter", OWNER, {"event_fields": ["{secret}"]}, suspended="403"),
    Row("GET", V3 + "/user/{user_id}/filter/{filter_id}", OWNER),
    Row("POST", V3 + "/user/{user_id}/openid/request_token", OWNER, {}),
    Row("PUT", V3 + "/presence/{user_id}/status", OWNER, {"presence": "online", "status_msg": "away"}),
    Row("GET", V3 + "/presence/{user_id}/status", "200 200 403 403 403 401"),
    Row("GET", V3 + "/admin/whois/{user_id}", "200 403 403 403 200 401"),
    Row("GET", V1 + "/admin/suspend/{user_id}", FOR_OPERATORS),
    Row("PUT", V1 + "/admin/suspend/{user_id}", FOR_OPERATORS, {"suspended": False}),
    Row("GET", V1 + "/admin/lock/{user_id}", FOR_OPERATORS),
    Row("PUT", V1 + "/admin/lock/{user_id}", FOR_OPERATORS, {"locked": False}),
    Row("POST", V3 + "/users/{user_id}/report", USERS, {"reason": "x"}),
    Row("POST", V3 + "/user_directory/search", USERS, {"search_term": "zzz"}, suspended="200"),
]

PUSH = [
    Row("GET", V3 + "/pushrules/", USERS),
    Row("GET", RULES + "/", USERS),
    Row("GET", RULES + "/{kind}/", USERS),
    Row("GET", RULES + "/{kind}/{rule_id}", OWN_ONLY),
    Row("GET", RULES + "/{kind}/{rule_id}/{field}", OWN_ONLY, fill={"field": "enabled"}),
    Row("PUT", RULES + "/{kind}/{rule_id}/{field}", OWN_ONLY, {"enabled": False}, fill={"field": "enabled"}),
    Row("DELETE", RULES + "/{kind}/{rule_id}", OWN_ONLY),
    Row("PUT", RULES + "/{kind}/{rule_id}", USERS, {"pattern": "x", "actions": []}, fill={"rule_id": "own"}),
    Row("GET", V3 + "/notifications", USERS),
    Row("GET", V3 + "/pushers", USERS),
    Row("POST", V3 + "/pushers/set", USERS, {"kind": None, "app_id": "app", "pushkey": "{secret} key"}),
]

ENCRYPTION = [
    Row(
        "POST",
        V3 + "/keys/upload",
        "200 400:M_BAD_JSON 400:M_BAD_JSON 400:M_BAD_JSON 400:M_BAD_JSON 401",
        {"device_keys": "{device_keys}"},
        suspended="400:M_BAD_JSON",
    ),
    Row("POST", V3 + "/keys/query", USERS, {"device_keys": {"{owner}": []}}, suspended="200"),
    Row("GET", V3 + "/keys/changes", USERS, query="from={since}&to={since}"),
    Row(
        "POST",
        V3 + "/keys/claim",
        USERS,
        {"one_time_keys": {"{owner}": {"{device_id}": "signed_curve25519"}}},
        suspended="200",
    ),
    Row("PUT", V3 + "/sendToDevice/{type}/{txn_id}", USERS, {"messages": {"{owner}": {"*": {}}}}),
    Row(
        "POST",
        V3 + "/keys/device_signing/upload",
        "200 400:M_INVALID_PARAM 400:M_INVALID_PARAM 400:M_INVALID_PARAM 400:M_INVALID_PARAM 401",
        {"master_key": "{master_key}"},
        suspended="400:M_INVALID_PARAM",
    ),
    Row(
        "POST",
        V3 + "/keys/signatures/upload",
        USERS,
        {"{owner}": {"{device_id}": "{device_keys}"}},
        suspended="200",
    ),
    Row("GET", KEYS + "/version", OWN_ONLY),
    Row("GET", KEYS + "/version/{version}", OWN_ONLY),
    Row(
        "PUT",
        KEYS + "/version/{version}",
        OWN_ONLY,
        {"algorithm": "m.test", "auth_data": {"{secret}": 1}},
        suspended="404",
    ),
    Row("GET", KEYS + "/keys", OWN_ONLY, query="version={version}"),
    Row("GET", KEYS + "/keys/{room_id}", OWN_ONLY, query="version={version}"),
    Row("GET", KEYS + "/keys/{room_id}/{session_id}", OWN_ONLY, query="version={version}"),
    Row("PUT", KEYS + "/keys", OWN_ONLY, {"rooms": {}}, "version={version}", suspended="404"),
    Row("PUT", KEYS + "/keys/{room_id}", OWN_ONLY, {"sessions": {}}, "version={version}", suspended="404"),
    Row(
        "PUT",
        KEYS + "/keys/{room_id}/{session_id}",
        OWN_ONLY,
        "{backed_up}",
        "version={version}",
        suspended="404",
    ),
    Row(
        "DELETE", KEYS + "/keys/{room_id}/{session_id}", OWN_ONLY, query="version={version}", suspended="404"
    ),
    Row("DELETE", KEYS + "/keys/{room_id}", OWN_ONLY, query="version={version}", suspended="404"),
    Row("DELETE", KEYS + "/keys", OWN_ONLY, query="version={version}", suspended="404"),
    Row("DELETE", KEYS + "/version/{version}", OWN_ONLY, suspended="404"),
    Row("POST", KEYS + "/version", USERS, {"algorithm": "m.test", "auth_data": {}}, suspended="200"),
    Row(
        "PUT",
        DEHYDRATED,
        "200 400:M_BAD_JSON 400:M_BAD_JSON 400:M_BAD_JSON 400:M_BAD_JSON 401",
        "{dehydrated}",
        suspended="400:M_BAD_JSON",
    ),
    Row("GET", DEHYDRATED, OWN_ONLY),
    Row("POST", DEHYDRATED + "/{device_id}/events", OWNER, {}, fill={"device_id": "ASLEEP"}, suspended="403"),
    Row("DELETE", DEHYDRATED, OWN_ONLY, suspended="404"),
]

READING = [
    Row(
        "GET",
        V3 + "/sync",
        "200 400:M_INVALID_PARAM 400:M_INVALID_PARAM 400:M_INVALID_PARAM 400:M_INVALID_PARAM 401",
        query="timeout=0&filter={filter_id}",
    ),
    Row("GET", V3 + "/sync", USERS, query="timeout=0&full_state=true"),
    Row("POST", "/_matrix/client/v4/sync", USERS, "{sliding}", suspended="200"),
    Row(
        "POST",
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
        USERS,
        "{sliding}",
        suspended="200",
    ),
    Row("GET", V3 + "/joined_rooms", USERS),
    Row("GET", ROOM + "/messages", WAS_THERE, query="dir=b"),
    Row("GET", ROOM + "/event/{event_id}", "200 200 403 404 403 401"),
    Row("GET", ROOM + "/context/{event_id}", "200 200 403 404 403 401"),
    Row("GET", V1 + "/rooms/{room_id}/relations/{event_id}", "200 200 403 404 403 401"),
    Row("GET", V1 + "/rooms/{room_id}/threads", WAS_THERE),
    Row("GET", ROOM + "/state", WAS_THERE),
    Row("GET", ROOM + "/state/{event_type}/{state_key}", WAS_THERE, fill={"state_key": ""}),
    Row("GET", ROOM + "/members", WAS_THERE),
    Row("GET", ROOM + "/joined_members", JOINED),
    Row("GET", ROOM + "/aliases", JOINED),
    Row("GET", V1 + "/rooms/{room_id}/timestamp_to_event", WAS_THERE, query="ts=1&dir=f"),
    Row("GET", V1 + "/rooms/{room_id}/hierarchy", JOINED),
    Row("GET", V1 + "/room_summary/{room}", "200 200 404 404 404 404"),
    Row(
        "POST",
        V3 + "/search",
        USERS,
        {"search_categories": {"room_events": {"search_term": "{said}"}}},
        suspended="200",
    ),
    Row("GET", V3 + "/directory/room/{alias}", EVERYBODY),
    Row("GET", V3 + "/directory/list/room/{room_id}", EVERYBODY),
    Row("GET", V3 + "/publicRooms", EVERYBODY),
    Row("POST", V3 + "/publicRooms", USERS, {}, suspended="200"),
]

MEDIA_ROWS = [
    Row("GET", V1 + "/media/config", USERS),
    Row("GET", V1 + "/media/preview_url", " ".join(["400:M_MISSING_PARAM"] * 5) + " 401"),
    Row("GET", V1 + "/media/download/{server_name}/{media_id}", USERS),
    Row("GET", V1 + "/media/download/{server_name}/{media_id}/{file_name}", USERS),
    Row("GET", V1 + "/media/thumbnail/{server_name}/{media_id}", USERS, query="width=8&height=8"),
    Row("POST", MEDIA + "/upload", USERS, b"a file"),
    Row("POST", "/_matrix/media/v1/create", USERS, {}),
    Row(
        "PUT",
        MEDIA + "/upload/{server_name}/{media_id}",
        OWNER,
        b"a file",
        fill={"media_id": "{reserved_id}"},
    ),
]

WRITING = [
    Row(
        "PUT",
        ROOM + "/send/{event_type}/{txn_id}",
        JOINED,
        {"body": "x"},
        fill={"event_type": "m.room.message"},
    ),
    Row("PUT", ROOM + "/state/{event_type}/{state_key}", POWER, {"name": "{said}"}, fill={"state_key": ""}),
    Row(
        "PUT",
        ROOM + "/redact/{event_id}/{txn_id}",
        "200 403 403 403 403 401",
        {},
        fill={"event_id": "{spare_event}"},
        suspended="403",
    ),
    Row("POST", ROOM + "/receipt/{receipt_type}/{event_id}", JOINED, {}),
    Row("POST", ROOM + "/read_markers", JOINED, {"m.fully_read": "{event_id}"}),
    Row("PUT", ROOM + "/typing/{user_id}", OWNER, {"typing": False}),
    Row("PUT", ROOM + "/typing/{user_id}", JOINED, {"typing": False}, fill={"user_id": "{me}"}),
    Row("POST", ROOM + "/report/{event_id}", "200 200 404 404 404 401", {"reason": "x"}),
    Row("POST", ROOM + "/report", USERS, {"reason": "x"}),
    Row("POST", V3 + "/createRoom", "200 200 200 200 200 401", {}),
    Row("PUT", V3 + "/directory/list/room/{room_id}", "200 403 403 403 200 401", {"visibility": "private"}),
    Row(
        "PUT",
        V3 + "/directory/room/{alias}",
        JOINED,
        {"room_id": "{room_id}"},
        fill={"alias": "#new-{txn_id}:{server_name}"},
    ),
    Row(
        "DELETE",
        V3 + "/directory/room/{alias}",
        "200 403 403 403 200 401",
        fill={"alias": "#of-{role}:{server_name}"},
    ),
]

MEMBERSHIP = [
    Row("POST", ROOM + "/invite", JOINED, {"user_id": "@victim:{server_name}"}),
    Row("POST", ROOM + "/kick", POWER, {"user_id": "@victim:{server_name}"}),
    Row("POST", ROOM + "/ban", POWER, {"user_id": "@victim:{server_name}"}),
    Row("POST", ROOM + "/unban", POWER, {"user_id": "@victim:{server_name}"}),
    Row("POST", ROOM + "/join", JOINED, {}),
    Row("POST", V3 + "/join/{room}", JOINED, {}),
    Row("POST", V3 + "/knock/{room}", "403 403 403 403 403 401", {}),
    Row("POST", ROOM + "/upgrade", POWER, {"new_version": "{room_version}"}),
    Row("POST", ROOM + "/leave", "200 200 403 403 403 401", {}, suspended="403"),
    Row("POST", ROOM + "/forget", "200 200 200 200 200 401", {}, suspended="200"),
]

ENDS = [
    Row("POST", V3 + "/logout", USERS, {}, ends_login=True, locked="200", suspended="200"),
    Row("POST", V3 + "/logout/all", USERS, {}, ends_login=True, locked="200", suspended="200"),
]

TABLE = [
    *DISCOVERY, *LOGINS, *SERVICES, *DEVICES, *OF_A_USER, *PUSH, *ENCRYPTION, *READING, *MEDIA_ROWS, *WRITING, *MEMBERSHIP, *ENDS,
]  # fmt: skip
