"""Stages of user-interactive authentication (CS API §Authentication types)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.errors import AccountError
from lmserver.accounts.interactive_auth import Stage, StageFailed, TooManyTries
from lmserver.web.limits import RateLimiter

PASSWORD = "m.login.password"  # noqa: S105 - the name of a login type
DUMMY = "m.login.dummy"
REGISTRATION_TOKEN = "m.login.registration_token"  # noqa: S105 - the name of a stage


def password_stage(accounts: Accounts, limiter: RateLimiter) -> Stage:
    """The user's own password; that of nobody else, whatever user the client names."""

    async def check(user_id: str, auth: Mapping[str, Any]) -> str:
        wait = limiter.take("login", user_id)
        if wait:
            raise TooManyTries(wait)
        password = auth.get("password")
        if (
            not isinstance(password, str)
            or not _names(accounts, user_id, auth)
            or not await accounts.check_password(user_id, password)
        ):
            raise StageFailed("M_FORBIDDEN", "Invalid password")
        return user_id

    return check


def _names(accounts: Accounts, user_id: str, auth: Mapping[str, Any]) -> bool:
    """Whether the stage names the user, as it should, or nobody, as some clients do."""
    identifier = auth.get("identifier")
    name = identifier.get("user") if isinstance(identifier, dict) else auth.get("user")
    if name is None:
        return identifier is None or isinstance(identifier, dict)
    if not isinstance(name, str):
        return False
    try:
        return accounts.user_id(name) == user_id
    except AccountError:
        return False


async def dummy_stage(user_id: str, auth: Mapping[str, Any]) -> str:
    """Nothing to prove (§Dummy Auth)."""
    return ""


def registration_token_stage(is_valid: Callable[[str], Awaitable[bool]]) -> Stage:
    """A token the operator has given out (§Token-authenticated registration)."""

    async def check(user_id: str, auth: Mapping[str, Any]) -> str:
        token = auth.get("token")
        if not isinstance(token, str) or not await is_valid(token):
            raise StageFailed("M_FORBIDDEN", "Unknown registration token")
        return token

    return check
