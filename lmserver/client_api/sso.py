"""Logging in through a browser (CS API §SSO client login/authentication, §Fallback)."""

from __future__ import annotations

import re
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.sso import SESSION_MS, STAGE, Begun, SingleSignOn, SsoFailed
from lmserver.client_api.sso_pages import Pages
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import bad_param, missing_param, not_found, unrecognized

CALLBACK: Final = "/_lmserver/sso/callback"
CONFIRM: Final = "/_lmserver/sso/confirm"
REDIRECT: Final = "/_matrix/client/v3/login/sso/redirect"
COOKIE: Final = "lmserver_sso"
MAX_URL: Final = 2048
_RATE: Final = "login"
# A client's address: on the web or an application's own scheme, and nothing that a browser would run.
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[!-~]+")
_NOT_FOLLOWED: Final = frozenset(
    {"javascript", "data", "vbscript", "file", "blob", "about", "view-source", "jar"}
)


class SsoEndpoints:
    """From the client to the provider and back. `public_url` is where browsers reach us; a login token
    goes without a question only to URLs that begin with one of `trusted`."""

    def __init__(
        self, sso: SingleSignOn, tokens: AccessTokens, public_url: str, trusted: tuple[str, ...]
    ) -> None:
        self._sso = sso
        self._tokens = tokens
        self._public_url = public_url
        self._trusted = trusted
        self._pages = Pages()

    @endpoint("GET", REDIRECT, auth=Auth.NONE)
    async def redirect(self, request: Request) -> Reply:
        """To the provider, or to a choice of several."""
        url, providers = _redirect_url(request), self._sso.providers
        if len(providers) == 1:
            return await self._begin(request, providers[0][0], url)
        query = urlencode({"redirectUrl": url})
        return self._pages.choose(
            [(f"{self._public_url}{REDIRECT}/{quote(i, safe='')}?{query}", n) for i, n in providers]
        )

    @endpoint("GET", f"{REDIRECT}/{{provider}}", auth=Auth.NONE)
    async def redirect_to(self, request: Request) -> Reply:
        """To one provider."""
        return await self._begin(request, request.params["provider"], _redirect_url(request))

    async def _begin(self, request: Request, provider: str, url: str) -> Reply:
        try:
            begun = await self._sso.begin(provider, url, request.remote_key)
        except SsoFailed as failed:
            return self._pages.failed(502, str(failed))
        if begun is None:
            raise not_found("Unknown identity provider")
        return self._leave(begun)

    def _leave(self, begun: Begun) -> Reply:
        """The cookie shows that it is the same browser that comes back: nobody can be logged in to
        somebody else's account by a link."""
        secure = "; Secure" if self._public_url.startswith("https:") else ""
        lasting = f"Path={CALLBACK}; Max-Age={SESSION_MS // 1000}; HttpOnly; SameSite=Lax{secure}"
        cookie = f"{COOKIE}={begun.browser}; {lasting}"
        return Reply(302, b"", {"Location": begun.url, "Set-Cookie": cookie, "Content-Type": "text/plain"})

    @endpoint("GET", CALLBACK, auth=Auth.NONE, rate=_RATE)
    async def callback(self, request: Request) -> Reply:
        """Back from the provider, with a code or with an error of which nothing is shown."""
        if "error" in request.query or not request.query.get("code") or not request.query.get("state"):
            return self._pages.failed(400, "The login provider has not logged you in.")
        try:
            finished = await self._sso.finish(request.query["state"], _cookie(request), request.query["code"])
        except SsoFailed as failed:
            return self._pages.failed(403, str(failed))
        if finished.redirect_url is None:
            return self._pages.done()
        link = _with_token(finished.redirect_url, await self._tokens.login_token(finished.user_id))
        if finished.redirect_url.startswith(self._trusted):
            return Reply(302, b"", {"Location": link, "Content-Type": "text/plain"})
        return self._pages.proceed(_shown(finished.redirect_url), finished.user_id, link)

    # -- confirming -----------------------------------------------------------------------------

    @endpoint("GET", "/_matrix/client/v3/auth/{stage}/fallback/web", auth=Auth.NONE)
    async def fallback(self, request: Request) -> Reply:
        """The page a client opens for the stage m.login.sso of user-interactive authentication."""
        if request.params["stage"] != STAGE:
            raise unrecognized(404)
        if not request.query.get("session"):
            raise missing_param("session is missing")
        query = urlencode({"session": request.query["session"][:MAX_URL]})
        return self._pages.confirm(f"{self._public_url}{CONFIRM}?{query}")

    @endpoint("GET", CONFIRM, auth=Auth.NONE)
    async def confirm(self, request: Request) -> Reply:
        """To the provider, to confirm something."""
        try:
            begun = await self._sso.begin_confirming(request.query.get("session", ""), request.remote_key)
        except SsoFailed as failed:
            return self._pages.failed(502, str(failed))
        if begun is None:
            return self._pages.failed(404, "There is nothing to confirm any more. Begin again.")
        return self._leave(begun)


def _redirect_url(request: Request) -> str:
    url: str | None = request.query.get("redirectUrl")
    if not url:
        raise missing_param("redirectUrl is missing")
    if len(url) > MAX_URL or not _URL.fullmatch(url) or url.split(":", 1)[0].lower() in _NOT_FOLLOWED:
        raise bad_param("redirectUrl is not an address of a client")
    try:
        urlsplit(url)
    except ValueError:
        raise bad_param("redirectUrl is not an address of a client") from None
    return url


def _with_token(url: str, token: str) -> str:
    """`loginToken` in the query, before the fragment."""
    parts = urlsplit(url)
    query = f"{parts.query}&loginToken={token}" if parts.query else f"loginToken={token}"
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))


def _shown(url: str) -> str:
    """Of a client's URL what says whose it is."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or f"{parts.scheme}:"


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("Cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
