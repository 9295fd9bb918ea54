"""Who has logged in to the page: an access token of the administrator's in a cookie that no script reads and
no other site sends. So locking, logging out and losing the office end it like any other login."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qsl

from lmserver.accounts.access_tokens import AccessTokens, TokenExpired
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.errors import AccountError
from lmserver.web.endpoint import Request, Requester
from lmserver.web.errors import ApiError, bad_param, forbidden

COOKIE: Final = "lmserver_admin"
DEVICE: Final = "ADMINPAGE"
DEVICE_NAME: Final = "The admin page"
LOGIN: Final = "/admin/login"
SESSION_MS: Final = 8 * 3600 * 1000
MAX_FIELDS: Final = 20


def cookie(request: Request, name: str) -> str:
    """A cookie's value; the empty text for none."""
    try:
        found = SimpleCookie(request.headers.get("Cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def csrf_token(secret: str) -> str:
    """What a form has to repeat: whoever has not read our page does not know it."""
    return hmac.new(secret.encode(errors="replace"), b"lmserver admin form", hashlib.sha256).hexdigest()


async def form(request: Request, secret: str) -> dict[str, str]:
    """The fields of a form of ours; 403 for one that some other page made."""
    body = await request.body()
    try:
        fields = dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise bad_param("The form is not acceptable") from None
    given = fields.get("csrf", "").encode(errors="replace")
    if not secret or not hmac.compare_digest(given, csrf_token(secret).encode()):
        raise forbidden("The form is not of this page; load the page again")
    return fields


class PageSessions:
    """One session of each administrator: a new login ends the one before."""

    def __init__(
        self,
        accounts: Accounts,
        administration: AccountAdministration,
        access: AccessTokens,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._administration = administration
        self._access = access
        self._clock = clock

    async def authenticate(self, request: Request) -> None:
        """Sets `request.requester`; whoever is no administrator is sent to the login."""
        try:
            owner = await self._access.owner(cookie(request, COOKIE))
        except TokenExpired:
            owner = None
        if owner is None or owner.locked or not owner.is_admin or owner.device_id != DEVICE:
            raise ApiError(303, "M_UNKNOWN_TOKEN", "Log in first", headers={"Location": LOGIN})
        request.requester = Requester(owner.user_id, owner.device_id, owner.is_admin)

    async def log_in(self, name: str, password: str) -> str | None:
        """The secret of a new session; None unless name and password are an administrator's."""
        try:
            user_id = self._accounts.user_id(name)
        except AccountError:
            user_id = ""
        if not await self._accounts.check_password(user_id, password):
            return None
        try:
            if not (await self._administration.get(user_id)).is_admin:
                return None
            until = self._clock() + SESSION_MS
            login = await self._accounts.log_in(user_id, DEVICE, DEVICE_NAME, expires_ts=until)
        except AccountError:
            return None
        return login.access_token

    async def log_out(self, user_id: str) -> None:
        await self._accounts.log_out(user_id, [DEVICE])
