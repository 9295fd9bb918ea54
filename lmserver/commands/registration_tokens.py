"""`lmserver registration-token`: what people register with where `registration.mode` is `token`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime

from lmserver.accounts.registration_tokens import BadRegistrationToken, RegistrationTokens
from lmserver.composition import clock_ms
from lmserver.config import Config
from lmserver.server import open_database

DAY_MS = 24 * 3600 * 1000


def create(config: Config, token: str | None, uses: int | None, days: float | None) -> int:
    """Print the new token; 1 when it cannot be made."""
    expires = None if days is None else clock_ms() + int(days * DAY_MS)

    async def work(tokens: RegistrationTokens) -> int:
        try:
            made = await tokens.create(token, uses, expires)
        except BadRegistrationToken as error:
            _tell(str(error))
            return 1
        print(made.token)
        return 0

    return _with_tokens(config, work)


def show(config: Config, *, as_json: bool) -> int:
    """One line a token, the newest first."""

    async def work(tokens: RegistrationTokens) -> int:
        for token in await tokens.listed():
            usable = tokens.is_usable(token)
            if as_json:
                print(json.dumps({**asdict(token), "valid": usable}))
                continue
            allowed = "any number of" if token.uses_allowed is None else token.uses_allowed
            until = "" if token.expires_ts is None else f", until {_time(token.expires_ts)}"
            over = "" if usable else " [over]"
            print(f"{token.token} used {token.completed} of {allowed} times{until}{over}")
        return 0

    return _with_tokens(config, work)


def delete(config: Config, token: str) -> int:
    """1 when there is none."""

    async def work(tokens: RegistrationTokens) -> int:
        if await tokens.delete(token):
            return 0
        _tell("there is no such token")
        return 1

    return _with_tokens(config, work)


def _with_tokens(config: Config, work: Callable[[RegistrationTokens], Awaitable[int]]) -> int:
    async def run() -> int:
        async with open_database(config, _tell, migrate=True, beside=True) as db:
            return await work(RegistrationTokens(db, config.registration.tokens, clock_ms))

    return asyncio.run(run())


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
