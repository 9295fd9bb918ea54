"""The page for operators: who gets in, what forms it takes, and C15: nothing from outside runs in it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import CookieJar
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.storage import destinations, evidence, reports
from lmserver.storage.database import Database
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.reports import Report
from lmserver.web.endpoint import Auth
from tests.admin_api.conftest import ALICE, BOB, ROOT, AdminApi
from tests.client_api.test_surface import registry
from tests.kit.client_api import PASSWORD, V3, login, serve

SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
PAGES = ("users", "rooms", "destinations", "evidence", "reports")


class Browser:
    """Follows no redirects, keeps cookies, and finds the form's token in the last page."""

    def __init__(self, admin: AdminApi) -> None:
        self.http = TestClient(TestServer(admin.server.admin_app), cookie_jar=CookieJar(unsafe=True))
        self.csrf = ""

    async def get(self, path: str) -> tuple[int, Any, str]:
        async with self.http.get(URL(path, encoded=True), allow_redirects=False) as response:
            text = await response.text()
            found = re.search(r'name="csrf" value="(\w+)"', text)
            self.csrf = found[1] if found else self.csrf
            return response.status, response.headers, text

    async def post(self, path: str, **fields: str) -> tuple[int, Any]:
        data = {"csrf": self.csrf, **fields}
        async with self.http.post(URL(path, encoded=True), data=data, allow_redirects=False) as response:
            return response.status, response.headers

    async def log_in(self, name: str = "root", password: str = PASSWORD) -> int:
        await self.get("/admin/login")
        return (await self.post("/admin/login", name=name, password=password))[0]


@pytest.fixture
async def admin(db: Database, tmp_path: Path) -> AsyncIterator[AdminApi]:
    made = AdminApi(await serve(db, tmp_path, {"admin": {"page": True}}))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def browser(admin: AdminApi) -> AsyncIterator[Browser]:
    made = Browser(admin)
    await made.http.start_server()
    yield made
    await made.http.close()


async def test_an_administrator_logs_in_and_out(admin: AdminApi, browser: Browser) -> None:
    assert (await browser.get("/admin"))[0] == 303
    assert await browser.log_in() == 303
    status, _, text = await browser.get("/admin/users")
    assert status == 200 and ALICE in text and ROOT in text
    for name in PAGES:
        assert (await browser.get(f"/admin/{name}"))[0] == 200, name
    async with browser.http.get("/admin/admin.css") as response:
        assert response.status == 200 and response.content_type == "text/css"
    assert (await browser.post("/admin/logout"))[0] == 303
    status, headers, _ = await browser.get("/admin/users")
    assert (status, headers["Location"]) == (303, "/admin/login")


async def test_c17_nobody_else_gets_in(admin: AdminApi, browser: Browser) -> None:
    for name, password in (
        ("alice", PASSWORD),
        ("root", "wrong"),
        ("nobody", PASSWORD),
        ("", ""),
        ("@a b", "x"),
    ):
        assert await browser.log_in(name, password) == 403, name
    browser.http.session.cookie_jar.update_cookies({"lmserver_admin": admin.token}, URL("http://127.0.0.1/"))
    assert (await browser.get("/admin/users"))[0] == 303  # a client's token is no session
    assert await browser.log_in() == 303
    await admin.server.accounts.set_admin(ROOT, False)
    assert (await browser.get("/admin/users"))[0] == 303
    await admin.server.accounts.set_admin(ROOT, True)
    await admin.server.accounts.set_locked(ROOT, True)
    assert (await browser.get("/admin/users"))[0] == 303
    assert await browser.log_in() == 403


async def test_every_page_but_the_login_wants_a_session(admin: AdminApi, browser: Browser) -> None:
    entries = [e for e in registry(admin.server.admin_app) if e.path.startswith("/admin")]
    open_paths = {e.path for e in entries if e.auth is Auth.NONE}
    assert open_paths == {"/admin/login", "/admin/admin.css"} and len(entries) > 10
    for entry in entries:
        if entry.auth is not Auth.NONE:
            assert entry.auth is Auth.ADMIN_PAGE
            path = re.sub(r"{\w+}", "x", entry.path)
            async with browser.http.request(entry.method, path, allow_redirects=False) as response:
                assert (response.status, response.headers["Location"]) == (303, "/admin/login"), path


async def test_c15_a_form_of_another_page_does_nothing(admin: AdminApi, browser: Browser) -> None:
    assert await browser.log_in() == 303
    await browser.get("/admin/users")
    good, actions = browser.csrf, (f"/admin/users/{ALICE}/lock", "/admin/logout", "/admin/reports/1/dismiss",
                                   "/admin/destinations/a.test/retry")  # fmt: skip
    for forged in ("", "x", "ü" * 10, good[:-1]):
        browser.csrf = forged
        for action in actions:
            assert (await browser.post(action))[0] == 403, (forged, action)
    login_form = (await browser.get("/admin/login"))[2]
    assert 'type="hidden"' in login_form
    browser.csrf = good
    assert (await browser.post("/admin/login", name="root", password=PASSWORD))[0] == 403
    assert (await admin.clients.call("POST", f"{V3}/login", login("alice")))[0] == 200
    for body in (b"\xff", b"a=1&" * 100):
        async with browser.http.post(actions[0], data=body) as response:
            assert response.status == 400


async def test_c15_pages_run_nothing_and_are_framed_by_nobody(admin: AdminApi, browser: Browser) -> None:
    """Text of users and other servers is escaped wherever it is shown, and the policy allows no script."""
    db = admin.server.db
    for name, value in (("displayname", SCRIPT), ("avatar_url", "javascript:alert(1)")):
        await admin.server.accounts.set_profile(BOB, name, value)
    _, room = await admin.clients.call(
        "POST", f"{V3}/createRoom", {"name": SCRIPT, "topic": SCRIPT}, admin.bob
    )
    await reports.file(db, Report(BOB, "room", room["room_id"], SCRIPT, SCRIPT, SCRIPT, -1, 5))
    await evidence.add(db, room["room_id"], NewEvidence(SCRIPT, SCRIPT, SCRIPT, b"{}"), 5)
    lease = await destinations.take_lease(db, SCRIPT, "us", 1, 2)
    assert lease is not None
    await destinations.failed(db, SCRIPT, lease.fence, 1, 2**62, 5, SCRIPT)
    assert await browser.log_in() == 303
    for name in (*PAGES, "login"):
        for query in ("", "?q=%3Cscript%3E%22'"):
            status, headers, text = await browser.get(f"/admin/{name}{query}")
            assert status == 200, name
            assert "<script" not in text and "<img" not in text and "onerror=alert(1)>" not in text, name
            assert "script" not in headers["Content-Security-Policy"]
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert (headers["X-Frame-Options"], headers["Cache-Control"]) == ("DENY", "no-store")
            assert headers["X-Content-Type-Options"] == "nosniff"
        if name not in ("login",):
            assert "&lt;script&gt;" in text, name


async def test_the_session_is_in_a_cookie_that_scripts_and_other_sites_do_not_get(
    admin: AdminApi, browser: Browser
) -> None:
    await browser.get("/admin/login")
    status, headers = await browser.post("/admin/login", name="root", password=PASSWORD)
    assert status == 303
    for cookie in headers.getall("Set-Cookie"):
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/admin" in cookie


async def test_users_are_locked_unlocked_and_ended(admin: AdminApi, browser: Browser) -> None:
    assert await browser.log_in() == 303
    await browser.get("/admin/users?q=alice")
    for action, status in (("lock", 401), ("unlock", 200), ("deactivate", 403)):
        assert (await browser.post(f"/admin/users/{ALICE}/{action}"))[0] == 303
        assert (await admin.clients.call("POST", f"{V3}/login", login("alice")))[0] == status, action
    assert (await browser.post(f"/admin/users/{BOB}/suspend"))[0] == 303
    assert (await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.bob))[0] == 403
    assert ">suspended<" in str(await browser.get("/admin/users?q=bob"))
    assert (await browser.post(f"/admin/users/{BOB}/unsuspend"))[0] == 303
    assert (await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.bob))[0] == 200
    for path, status in (
        (f"/admin/users/{ROOT}/lock", 400), (f"/admin/users/{ALICE}/promote", 404), ("/admin/users/x/lock", 400),
        ("/admin/reports/x/dismiss", 400), ("/admin/destinations/none.test/retry", 404),
        ("/admin/destinations/a%20b/retry", 400), ("/admin/users/@none:hub.test/lock", 404),
    ):  # fmt: skip
        assert (await browser.post(path))[0] == status, path
    number = await reports.file(admin.server.db, Report(BOB, "user", None, None, ALICE, "rude", None, 5))
    assert (await browser.post(f"/admin/reports/{number}/dismiss"))[0] == 303
    assert await reports.one(admin.server.db, number) is None


async def test_long_lists_come_in_pages(admin: AdminApi, browser: Browser) -> None:
    for n in range(55):
        await admin.server.db.execute(
            "INSERT INTO accounts (user_id, password_hash, created_ts) VALUES ($1, '', 0)",
            f"@many{n:02}:hub.test",
        )
    assert await browser.log_in() == 303
    _, _, first = await browser.get("/admin/users?q=many")
    assert "@many00:" in first and "@many54:" not in first
    after = re.search(r'href="([^"]+)">More', first)
    assert after is not None
    _, _, second = await browser.get(after[1].replace("&amp;", "&"))
    assert "@many54:" in second and ">Back" in second and ">More" not in second
