"""User-interactive authentication: sessions are good for one operation of one device, and hold no secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lmserver.accounts.interactive_auth import (
    SESSION_MS,
    SESSIONS_PER_USER,
    InteractiveAuth,
    Operation,
    OtherOperation,
    StageFailed,
    UnknownSession,
    Unproven,
)
from lmserver.storage import interactive_auth
from lmserver.storage.database import Database
from tests.kit.client_api import NAME, PASSWORD, V3, Api, login, serve
from tests.kit.clock import Clock

DELETE = f"{V3}/delete_devices"


def password(session: str | None = None, **more: Any) -> dict[str, Any]:
    identifier = {"type": "m.id.user", "user": "alice"}
    auth = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD, **more}
    return auth if session is None else {**auth, "session": session}


async def begin(api: Api, token: str, body: dict[str, Any] | None = None) -> str:
    status, answer = await api.call("POST", DELETE, body or {"devices": ["X"]}, token)
    assert (status, answer["flows"], answer["params"], answer["completed"]) == (
        401, [{"stages": ["m.login.password"]}], {}, []
    )  # fmt: skip
    assert "errcode" not in answer
    return str(answer["session"])


async def test_a_failed_stage_says_why_and_the_session_goes_on(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    session = await begin(api, token)
    for wrong in (
        password(session, password="another password"),
        password(session, password=5),
        password(session, identifier={"type": "m.id.user", "user": "bob"}),
        password(session, identifier=5),
        {"session": session, "type": "m.login.dummy"},
        {"session": session, "type": ["m.login.password"]},
    ):
        status, answer = await api.call("POST", DELETE, {"devices": ["X"], "auth": wrong}, token)
        assert (status, answer["session"], answer["completed"]) == (401, session, []), wrong
        assert answer["errcode"] in ("M_FORBIDDEN", "M_UNRECOGNIZED")
        assert answer["error"]
    right = {"devices": ["X"], "auth": password(session)}
    assert await api.call("POST", DELETE, right, token) == (200, {})
    assert (await api.call("POST", DELETE, right, token))[0] == 400  # it was good for once


async def test_a_session_is_good_for_one_operation_of_one_device(api: Api) -> None:
    alice = (await api.register("alice"))["access_token"]
    other = (await api.call("POST", f"{V3}/login", login("alice")))[1]["access_token"]
    mallory = (await api.register("mallory"))["access_token"]
    session = await begin(api, alice)
    auth = password(session)
    for method, path, body, token in (
        ("POST", DELETE, {"devices": ["Y"]}, alice),
        ("POST", DELETE, {"devices": ["X"]}, other),
        ("POST", DELETE, {"devices": ["X"]}, mallory),
        ("DELETE", f"{V3}/devices/X", {"devices": ["X"]}, alice),
        ("POST", f"{V3}/account/deactivate", {}, alice),
    ):
        status, answer = await api.call(method, path, {**body, "auth": auth}, token)
        assert (status, answer["errcode"]) == (403, "M_UNKNOWN"), path
    status, _ = await api.call("POST", DELETE, {"devices": ["X"], "auth": auth}, alice)
    assert status == 200


@pytest.mark.parametrize("session", ["", "nope", 5, "x" * 1000, None])
async def test_sessions_that_are_none(api: Api, session: Any) -> None:
    token = (await api.register("alice"))["access_token"]
    body = {"devices": ["X"], "auth": {**password(), "session": session}}
    status, answer = await api.call("POST", DELETE, body, token)
    assert (status, answer.get("errcode")) == ((200, None) if session is None else (400, "M_UNKNOWN"))


async def test_what_is_no_auth_is_answered_with_the_flows(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    for auth in (None, 5, [], {}, {"type": None}):
        assert (await api.call("POST", DELETE, {"devices": [], "auth": auth}, token))[1]["session"]


async def test_c14_no_password_is_kept_with_sessions(api: Api, db: Database, caplog: Any) -> None:
    """Neither in plain nor as anything that a guess could be compared with."""
    token = (await api.register("alice"))["access_token"]
    body = {"new_password": "a brand new password"}
    status, answer = await api.call("POST", f"{V3}/account/password", body, token)
    assert status == 401
    wrong = password(answer["session"], password="a mistaken password")
    assert (await api.call("POST", f"{V3}/account/password", {**body, "auth": wrong}, token))[0] == 401
    tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    everything = ""
    for table in tables:
        everything += str(await db.fetch(f'SELECT * FROM "{table["tablename"]}"'))
    assert await db.fetchval("SELECT count(*) FROM interactive_auth_sessions") == 1
    assert "@alice" in everything
    for secret in (PASSWORD, "brand new", "mistaken", answer["session"]):
        assert secret not in everything
        assert secret not in caplog.text
    right = {**body, "auth": password(answer["session"])}
    assert (await api.call("POST", f"{V3}/account/password", right, token))[0] == 200
    assert await db.fetchval("SELECT count(*) FROM interactive_auth_sessions") == 0
    assert (await api.call("POST", f"{V3}/login", login("alice", "a brand new password")))[0] == 200


async def test_c13_passwords_cannot_be_guessed_through_sessions(db: Database, tmp_path: Path) -> None:
    api = await serve(db, tmp_path, {"limits": {"login": {"per_second": 0.001, "burst": 3}}})
    token = (await api.register("alice"))["access_token"]
    auth = password(password="another password")
    statuses = [(await api.call("POST", DELETE, {"devices": [], "auth": auth}, token))[0] for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    await api.close()


# -- flows of several stages, and time ----------------------------------------------------------------


async def _yes(user_id: str, auth: Mapping[str, Any]) -> str:
    if auth.get("answer") != "yes":
        raise StageFailed("M_FORBIDDEN", "no")
    return user_id


OPERATION = Operation(f"@alice:{NAME}", "D", "POST", "/x", {"a": 1}, f"@alice:{NAME}")
FLOWS = [["one", "two"], ["three"]]


@pytest.fixture
def auth(db: Database, clock: Clock) -> InteractiveAuth:
    return InteractiveAuth(db, dict.fromkeys(("one", "two", "three"), _yes), clock)


async def attempt(auth: InteractiveAuth, given: Any = None, operation: Operation = OPERATION) -> Unproven:
    with pytest.raises(Unproven) as caught:
        await auth.prove(operation, FLOWS, given)
    return caught.value


async def test_all_stages_of_a_flow_are_needed_and_the_session_keeps_them(
    db: Database, auth: InteractiveAuth, clock: Clock
) -> None:
    session = (await attempt(auth)).session_id
    assert (await attempt(auth, {"session": session, "type": "two"})).failure is not None
    after = await attempt(auth, {"session": session, "type": "two", "answer": "yes"})
    assert (set(after.completed), after.failure, after.session_id) == ({"two"}, None, session)
    restarted = InteractiveAuth(db, dict.fromkeys(("one", "two", "three"), _yes), clock)
    assert set((await attempt(restarted, {"session": session})).completed) == {"two"}
    done = await restarted.prove(OPERATION, FLOWS, {"session": session, "type": "one", "answer": "yes"})
    assert dict(done) == {"one": OPERATION.user_id, "two": OPERATION.user_id}
    with pytest.raises(UnknownSession):
        await auth.prove(OPERATION, FLOWS, {"session": session})


async def test_a_first_request_may_go_through_a_stage_at_once(auth: InteractiveAuth) -> None:
    after = await attempt(auth, {"type": "one", "answer": "yes"})
    assert set(after.completed) == {"one"}
    assert set((await attempt(auth, {"session": after.session_id})).completed) == {"one"}
    assert "three" in await auth.prove(OPERATION, FLOWS, {"type": "three", "answer": "yes"})


async def test_sessions_end_with_time_and_are_few(db: Database, auth: InteractiveAuth, clock: Clock) -> None:
    first = (await attempt(auth)).session_id
    clock.pass_(1)
    for _ in range(SESSIONS_PER_USER):
        last = (await attempt(auth)).session_id
    with pytest.raises(UnknownSession):
        await auth.prove(OPERATION, FLOWS, {"session": first})
    assert await db.fetchval("SELECT count(*) FROM interactive_auth_sessions") == SESSIONS_PER_USER
    other = Operation(OPERATION.user_id, "D", "POST", "/x", {"a": 2}, OPERATION.user_id)
    with pytest.raises(OtherOperation):
        await auth.prove(other, FLOWS, {"session": last})
    clock.pass_(SESSION_MS + 1000)
    with pytest.raises(UnknownSession):
        await auth.prove(OPERATION, FLOWS, {"session": last})
    await interactive_auth.purge(db, clock() - SESSION_MS)
    assert await db.fetchval("SELECT count(*) FROM interactive_auth_sessions") == 0
