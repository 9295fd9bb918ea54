"""Logging in to the page for operators, and out again."""

from __future__ import annotations

import secrets
from typing import Final

from lmserver.admin_api.page.rendering import SAFE, STYLE, page, see
from lmserver.admin_api.page.sessions import COOKIE, LOGIN, SESSION_MS, PageSessions, cookie, csrf_token, form
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import limited
from lmserver.web.limits import RateLimiter

FORM_COOKIE: Final = "lmserver_admin_login"
_COOKIE: Final = "Path=/admin; HttpOnly; SameSite=Strict"
MAX_FORM: Final = 16 * 1024


class LoginPage:
    """What nobody has to be logged in for, and the way out."""

    def __init__(self, our_name: str, sessions: PageSessions, limiter: RateLimiter) -> None:
        self._our_name = our_name
        self._sessions = sessions
        self._limiter = limiter

    @endpoint("GET", "/admin/admin.css", auth=Auth.NONE)
    async def style(self, request: Request) -> Reply:
        """How the pages look."""
        return Reply(200, STYLE, {"Content-Type": "text/css; charset=utf-8", **SAFE})

    @endpoint("GET", LOGIN, auth=Auth.NONE)
    async def login(self, request: Request) -> Reply:
        """The form. What it has to repeat is bound to a cookie: no other site can log somebody in here."""
        return self._form(200, "")

    @endpoint("POST", LOGIN, auth=Auth.NONE, rate="login", max_body=MAX_FORM)
    async def log_in(self, request: Request) -> Reply:
        """Name and password of an administrator; guesses are counted like those of other logins."""
        fields = await form(request, cookie(request, FORM_COOKIE))
        name, password = fields.get("name", ""), fields.get("password", "")
        wait = self._limiter.take("login", name[:255])
        if wait:
            raise limited(wait)
        token = await self._sessions.log_in(name, password)
        if token is None:
            return self._form(403, "That is not the name and password of an administrator.")
        lasting = f"{_COOKIE}; Max-Age={SESSION_MS // 1000}"
        return see("/admin/users", {"Set-Cookie": f"{COOKIE}={token}; {lasting}"})

    def _form(self, status: int, problem: str) -> Reply:
        secret = secrets.token_urlsafe(24)
        return page(
            "login",
            status,
            {"Set-Cookie": f"{FORM_COOKIE}={secret}; {_COOKIE}"},
            server=self._our_name,
            csrf=csrf_token(secret),
            problem=problem,
        )

    @endpoint("POST", "/admin/logout", auth=Auth.ADMIN_PAGE, max_body=MAX_FORM)
    async def log_out(self, request: Request) -> Reply:
        """End the session, here and on the server."""
        await form(request, cookie(request, COOKIE))
        await self._sessions.log_out(request.requester.user_id)
        return see(LOGIN, {"Set-Cookie": f"{COOKIE}=; {_COOKIE}; Max-Age=0"})
