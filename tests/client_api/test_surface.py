"""What holds for every path of the client API, whatever it does: old prefixes, browsers, odd requests."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from yarl import URL

from lmserver.web.app import DISPATCHER
from lmserver.web.endpoint import Endpoint
from tests.client_api.test_ignoring import Club, club
from tests.kit.client_api import NAME, V3, Api

__all__ = ["club"]

R0 = "/_matrix/client/r0"
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization, Date",
}
PROTOCOL_FIELDS = {
    "hub_server", "hashes", "signatures", "auth_events", "prev_events", "depth", "lpdu", "origin",
}  # fmt: skip


def registry(app: web.Application) -> list[Endpoint]:
    return list(app[DISPATCHER].endpoints)


async def raw(api: Api, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
    async with api.http.request(method, URL(path, encoded=True), **more) as response:
        text = await response.text()
        return response.status, response.headers, text


async def test_what_a_full_room_refuses_may_be_tried_again(
    club: Club, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: 429 with whole milliseconds, whatever one wanted of the room."""
    monkeypatch.setattr("lmserver.rooms.turns.MAX_WAITING", 0)
    room = club.room
    for who, method, path, body in (
        ("carol", "POST", f"{room}/join", {}),
        ("bob", "POST", f"{room}/leave", {}),
        ("alice", "POST", f"{room}/invite", {"user_id": f"@carol:{NAME}"}),
        ("alice", "POST", f"{room}/kick", {"user_id": f"@bob:{NAME}"}),
        ("alice", "POST", f"{room}/upgrade", {"new_version": "9"}),
        ("alice", "PUT", f"{room}/send/m.room.message/t", {"body": "x"}),
    ):
        status, answer = await club.call(who, method, path, body)
        assert (status, answer["errcode"], answer["retry_after_ms"]) == (429, "M_LIMIT_EXCEEDED", 1000), path


async def test_every_v3_path_answers_under_r0_too(api: Api) -> None:
    entries = registry(api.server.client_app)
    known = {(entry.method, entry.path): entry.name for entry in entries}
    v3 = [entry for entry in entries if entry.path.startswith(V3)]
    assert len(v3) > 80
    for entry in v3:
        assert known[entry.method, entry.path.replace(V3, R0, 1)] == entry.name


async def test_every_path_answers_a_preflight_and_refuses_other_methods(api: Api) -> None:
    entries = registry(api.server.client_app)
    methods: dict[str, set[str]] = {}
    for entry in entries:
        methods.setdefault(concrete(entry.path), set()).add(entry.method)
    for path in sorted(methods):
        status, headers, _ = await raw(api, "OPTIONS", path)
        assert status == 200, path
        assert {name: headers[name] for name in CORS} == CORS, path
        wrong = next(m for m in ("DELETE", "PATCH", "POST") if m not in methods[path])
        status, headers, text = await raw(api, wrong, path)
        if (status, "M_UNRECOGNIZED" in text) != (405, True):
            # A parameter may take what stands literally in another path.
            assert any(wrong in methods[other] for other in methods if covers(other, path)), (wrong, path)
        assert headers["Access-Control-Allow-Origin"] == "*", path


def concrete(path: str) -> str:
    return "/".join("x" if part.startswith("{") else part for part in path.split("/"))


def covers(pattern: str, path: str) -> bool:
    ours, theirs = pattern.split("/"), path.split("/")
    return len(ours) == len(theirs) and all(a in (b, "x") for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("path", ["/", "/_matrix", "/_matrix/client/v3", f"{V3}/nothing", f"{V3}/login/",
    "/_matrix/client/unstable/org.example/x", "/_matrix/media/v9/x", "//", f"{V3}//login"])  # fmt: skip
async def test_an_unknown_path_is_told_in_json(api: Api, path: str) -> None:
    status, headers, text = await raw(api, "GET", path)
    assert (status, "M_UNRECOGNIZED" in text, headers["Content-Type"]) == (404, True, "application/json")
    assert headers["Access-Control-Allow-Origin"] == "*"


async def test_answers_of_every_kind_are_for_browsers_too(api: Api) -> None:
    kinds = {
        ("GET", f"{V3}/sync"): 401, ("GET", "/.well-known/matrix/client"): 404, ("POST", f"{V3}/login"): 400,
        ("GET", "/_matrix/client/v1/media/download/x/y"): 401, ("GET", f"{V3}/profile/%FF"): 400,
        ("GET", "/_matrix/client/versions"): 200,
    }  # fmt: skip
    for (method, path), expected in kinds.items():
        status, headers, _ = await raw(api, method, path)
        assert (status, headers["Access-Control-Allow-Origin"]) == (expected, "*"), path


async def test_bodies_without_a_type_and_no_body_at_all(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    who = {"Authorization": f"Bearer {token}"}
    status, _, text = await raw(api, "POST", f"{V3}/createRoom", headers=who)
    assert status == 200, text
    room = quote((await api.call("POST", f"{V3}/createRoom", {}, token))[1]["room_id"], safe="")
    untyped = {**who, "Content-Type": ""}
    path = f"{V3}/rooms/{room}/send/m.room.message/m1.1%2Fx"
    status, _, text = await raw(api, "PUT", path, headers=untyped, data=b'{"body":"a","msgtype":"m.text"}')
    assert status == 200, text
    for action in ("leave", "forget"):
        assert (await raw(api, "POST", f"{V3}/rooms/{room}/{action}", headers=who))[0] == 200
    assert (await raw(api, "POST", f"{V3}/logout", headers=who))[0] == 200


async def test_state_keys_of_every_shape(api: Api) -> None:
    """Empty with and without a slash behind it, and with everything that means something in a URL."""
    token = (await api.register("alice"))["access_token"]
    room = quote((await api.call("POST", f"{V3}/createRoom", {}, token))[1]["room_id"], safe="")
    state = f"{V3}/rooms/{room}/state"
    for n, path in enumerate(["/m.room.topic", "/m.room.topic/"]):
        assert (await api.call("PUT", state + path, {"topic": str(n)}, token))[0] == 200
        for again in ("/m.room.topic", "/m.room.topic/"):
            assert (await api.call("GET", state + again, None, token))[1] == {"topic": str(n)}
    for key in ("a/b", "#?%&=", "a b:é", "%2F"):
        path = f"{state}/org.test.type/{quote(key, safe='')}"
        assert (await api.call("PUT", path, {"key": key}, token))[0] == 200
        _, event = await api.call("GET", f"{path}?format=event", None, token)
        assert (event["state_key"], event["content"]) == (key, {"key": key})


async def test_no_field_of_the_protocol_reaches_a_client(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    bob = (await api.register("bob"))["access_token"]
    body = {"invite": [f"@bob:{NAME}"], "name": "n", "topic": "t"}
    room = quote((await api.call("POST", f"{V3}/createRoom", body, token))[1]["room_id"], safe="")
    path = f"{V3}/rooms/{room}"
    event = (await api.call("PUT", f"{path}/send/m.room.message/1", {"body": "x"}, token))[1]["event_id"]
    await api.call("PUT", f"{path}/redact/{event}/2", {"reason": "r"}, token)
    answers = [
        (await api.call("GET", path + what, None, token))[1]
        for what in (f"/event/{event}", f"/context/{event}", "/messages?dir=b", "/state", "/members")
    ]
    answers += [(await api.call("GET", f"{V3}/sync", None, t))[1] for t in (token, bob)]
    found = [key for answer in answers for key in keys_of(answer)]
    assert "redacted_because" in found
    assert not PROTOCOL_FIELDS & set(found)
    redactions = [e for e in answers[2]["chunk"] if e["type"] == "m.room.redaction"]
    assert redactions[0]["redacts"] == redactions[0]["content"]["redacts"] == event


def keys_of(value: Any) -> list[str]:
    if isinstance(value, list):
        return [key for item in value for key in keys_of(item)]
    if isinstance(value, dict):
        return [*value, *[key for item in value.values() for key in keys_of(item)]]
    return []


async def test_a_room_of_a_version_of_matrix(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    versions = (await api.call("GET", f"{V3}/capabilities", None, token))[1]["capabilities"][
        "m.room_versions"
    ]
    assert versions["available"][versions["default"]] == "stable"
    for asked, status in (("7", 200), ("12", 200), (None, 200), ("13", 400), ("", 400), (7, 400)):
        answer = await api.call("POST", f"{V3}/createRoom", {"room_version": asked}, token)
        assert answer[0] == status, answer
        if status == 200:
            room = quote(answer[1]["room_id"], safe="")
            _, create = await api.call("GET", f"{V3}/rooms/{room}/state/m.room.create", None, token)
            assert create["room_version"] == versions["default"]
        else:
            assert answer[1]["errcode"] in ("M_UNSUPPORTED_ROOM_VERSION", "M_BAD_JSON")


async def test_i4_invites_of_a_new_room_are_counted(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    invite = [f"@nobody{n}:{NAME}" for n in range(45)]
    assert (await api.call("POST", f"{V3}/createRoom", {"invite": invite}, token))[0] == 200
    status, answer = await api.call("POST", f"{V3}/createRoom", {"invite": invite}, token)
    assert (status, answer["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert (await api.call("POST", f"{V3}/createRoom", {}, token))[0] == 200
