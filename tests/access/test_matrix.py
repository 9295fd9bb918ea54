"""Attack C5: every endpoint of the client API, asked by everybody, about what is the owner's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from lmserver.rooms import access
from lmserver.rooms.visible_ranges import EVERYTHING
from lmserver.storage.database import Database
from lmserver.web.endpoint import Auth, Endpoint
from tests.access.table import COLUMNS, TABLE, V3, Row
from tests.access.world import BRIDGE, PERSONAL, SAID, World
from tests.client_api.test_surface import registry

WITH_TOKENS = ("expired", "locked", "suspended", "guess", "bridge")
"""The last is an application service that says it acts as the owner, who is none of its users."""
ORDER = ("nobody", *WITH_TOKENS, "admin", "banned", "stranger", "member", "owner")
"""Whoever may least asks first, so that what the owner does is not what they are refused for."""
REFUSED = {"expired": "401:M_UNKNOWN_TOKEN", "guess": "401:M_UNKNOWN_TOKEN", "bridge": "403"}
USUAL = {401: "M_MISSING_TOKEN", 403: "M_FORBIDDEN", 404: "M_NOT_FOUND"}
HIDDEN = {PERSONAL: {"owner"}, SAID: {"owner", "member"}}


def entries_of(app: Any) -> list[Endpoint]:
    return [entry for entry in registry(app) if "/r0/" not in entry.path]


def differences(entries: Sequence[Endpoint], table: Sequence[Row]) -> list[str]:
    """Endpoints without a line and lines without an endpoint; the paths of one endpoint count once."""
    names = {(entry.method, entry.path): entry.name for entry in entries}
    listed = {(row.method, row.path) for row in table}
    told = {names[key] for key in listed & set(names)}
    return [f"{method} {path} has no line" for (method, path), name in names.items() if name not in told] + [
        f"{method} {path} is no endpoint" for method, path in sorted(listed - set(names))
    ]


def wanted(row: Row, role: str, entry: Endpoint) -> str:
    if role in COLUMNS or entry.auth is Auth.NONE:
        return row.expected[role if role in COLUMNS else "nobody"]
    special = {"locked": row.locked, "suspended": row.while_suspended}
    return special.get(role) or REFUSED[role]


def cell(status: int, text: bytes) -> str:
    errcode = None
    if status >= 400 and text.startswith(b"{"):
        errcode = orjson.loads(text).get("errcode")
    return str(status) if status < 400 or errcode == USUAL.get(status) else f"{status}:{errcode}"


async def wrong_cells(world: World, rows: Sequence[Row], entries: Sequence[Endpoint]) -> list[str]:
    """Ask everything; what came out otherwise, and what was said to whom it is not for."""
    known = {(entry.method, entry.path): entry for entry in entries}
    wrong = []
    for row in rows:
        for role in ORDER:
            method, target, body = world.request(row, role)
            tokens = {"nobody": [None], "guess": ["guess"], "bridge": [BRIDGE], **world.tokens}[role]
            token = tokens.pop() if row.ends_login and role in world.tokens else tokens[0]
            status, text = await world.ask(method, target, token, body)
            entry = known[row.method, row.path]
            found, expected = cell(status, text), wanted(row, role, entry)
            if found != expected:
                wrong.append(f"{role}: {method} {target}: {found}, not {expected}: {text[:200]!r}")
            if role == "expired" and entry.auth is not Auth.NONE and b'"soft_logout":true' not in text:
                wrong.append(f"{method} {target}: an expired token is not told to refresh")
            wrong += [
                f"{role}: {method} {target} shows {secret}"
                for secret, readers in HIDDEN.items()
                if role not in readers and secret.encode() in text
            ]
    return wrong


async def test_c5_every_endpoint_and_everybody(db: Database, tmp_path: Path) -> None:
    world = await World.make(db, tmp_path)
    try:
        entries = entries_of(world.api.server.client_app)
        assert not differences(entries, TABLE)
        undocumented = [entry.path for entry in entries if not entry.doc]
        assert not undocumented
        wrong = await wrong_cells(world, TABLE, entries)
        assert not wrong, "\n".join(wrong)
    finally:
        await world.close()


async def test_c4_no_account_is_reached_by_mail(db: Database, tmp_path: Path) -> None:
    """No endpoint takes or confirms an address, and no flow asks for one: there is no session to take over."""
    world = await World.make(db, tmp_path)
    try:
        by_mail = ("3pid", "email", "msisdn", "requestToken", "submit_token")
        entries = entries_of(world.api.server.client_app)
        found = [(e.method, e.path) for e in entries if any(part in e.path for part in by_mail)]
        assert found == [("GET", f"{V3}/account/3pid")]
        assert await world.ok("GET", f"{V3}/account/3pid") == {"threepids": []}
        body = {"new_password": "another long password"}
        for path in ("/account/password", "/account/deactivate", "/register"):
            _, answer = await world.ask("POST", V3 + path, world.tokens["owner"][0], body)
            assert b"flows" in answer and b"email" not in answer and b"msisdn" not in answer, path
    finally:
        await world.close()


async def test_an_endpoint_without_a_line_and_a_line_without_an_endpoint_are_noticed(
    db: Database, tmp_path: Path
) -> None:
    world = await World.make(db, tmp_path)
    try:
        entries = entries_of(world.api.server.client_app)
        gone = Row("GET", f"{V3}/gone", "200 200 200 200 200 200")
        assert differences(entries, [*TABLE, gone]) == [f"GET {V3}/gone is no endpoint"]
        short = [row for row in TABLE if not row.path.endswith("/rooms/{room_id}/aliases")]
        assert differences(entries, short) == [f"GET {V3}/rooms/{{room_id}}/aliases has no line"]
    finally:
        await world.close()


async def test_the_matrix_notices_what_leaks(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: rooms that show everything to everybody, and settings that are anybody's."""
    monkeypatch.setattr(access, "visible_to_user", lambda memberships, visibilities: EVERYTHING)
    monkeypatch.setattr("lmserver.client_api.account_data._own", lambda request: request.params["user_id"])
    world = await World.make(db, tmp_path)
    try:
        entries = entries_of(world.api.server.client_app)
        rows = [row for row in TABLE if row.path.endswith(("/messages", "/account_data/{type}"))]
        wrong = "\n".join(await wrong_cells(world, rows, entries))
        assert f"banned: GET {V3}/rooms/" in wrong and f"shows {SAID}" in wrong
        assert f"stranger: GET {V3}/user/" in wrong and f"shows {PERSONAL}" in wrong
    finally:
        await world.close()
