"""One run against one server: the names we have, what is known of it, and what checks share."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeVar

from lmserver.conformance import draft
from lmserver.conformance.client_api import ClientApi
from lmserver.conformance.exchange import Answer, Trace, Wire
from lmserver.conformance.model import Failed, Skipped
from lmserver.conformance.options import Options
from lmserver.conformance.paths import KEYS, Paths
from lmserver.conformance.persona import Persona

T = TypeVar("T")
CLOSE_SECONDS = 5.0


class Session:
    """What a check is given. Shared things are made when the first check needs them (`once`)."""

    def __init__(
        self, options: Options, wire: Wire, trace: Trace, personas: list[Persona], expired: Persona | None
    ) -> None:
        self.options = options
        self.server = options.server
        self.wire = wire
        self.trace = trace
        self.personas = personas
        self.paths = Paths(options.stable)
        self.version = draft.STABLE_VERSION if options.stable else draft.UNSTABLE_VERSION
        self.client: ClientApi | None = None
        self._expired = expired
        self._shared: dict[str, asyncio.Future[Any]] = {}
        self._run = secrets.token_hex(4)
        self._numbers = count(1)
        self._closers: list[Callable[[], Awaitable[None]]] = []

    # -- our names ------------------------------------------------------------------------------

    @property
    def me(self) -> Persona:
        """The suite under its first name."""
        return self.personas[0]

    @property
    def other(self) -> Persona:
        """The suite as a second server."""
        if len(self.personas) < 2:
            raise Skipped("needs a second name: --also NAME")
        return self.personas[1]

    @property
    def expired(self) -> Persona:
        """A server whose keys have expired: it does nothing else."""
        if self._expired is None:
            raise Skipped("needs a third name: --also NAME, twice")
        return self._expired

    @property
    def user(self) -> ClientApi:
        """A user of the server under test."""
        if self.client is None:
            raise Skipped("needs a user of the server: --client-url")
        return self.client

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have something ended with the session."""
        self._closers.append(closer)

    async def close(self) -> None:
        """End what checks began, as well as that goes."""
        for closer in reversed(self._closers):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await closer()
        if self.client is not None:
            await self.client.close()

    def say(self, text: str) -> None:
        """Tell the person who waits for the result."""
        print(text, file=sys.stderr, flush=True)

    def fresh(self, label: str = "t") -> str:
        """A text used only once: a transaction ID or a part of one."""
        return f"{label}{self._run}{next(self._numbers)}"

    # -- the server under test -------------------------------------------------------------------

    async def key_document(self) -> dict[str, Any]:
        """The server's keys as it publishes them, asked for once."""
        return await self.once("keys", self._fetch_keys)

    async def _fetch_keys(self) -> dict[str, Any]:
        return (await self.wire.send("GET", KEYS)).expect(200)

    async def server_keys(self) -> draft.Keys:
        """The server's current keys by key ID."""
        listed = (await self.key_document()).get("verify_keys")
        entries = listed.items() if isinstance(listed, dict) else ()
        return {
            key_id: entry["key"]
            for key_id, entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("key"), str)
        }

    async def once(self, name: str, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` gives, made by the first check that needs it. When that fails, the checks that
        would use it are skipped: the fault is one check's to report."""
        known = self._shared.get(name)
        if known is None:
            known = self._shared[name] = asyncio.get_running_loop().create_future()
            try:
                known.set_result(await make())
            except Exception as error:
                known.set_exception(error)
        try:
            result: T = known.result()
        except Skipped:
            raise
        except Exception as error:
            raise Skipped(f"its {name} could not be had: {_said(error)}") from error
        return result

    # -- transactions ----------------------------------------------------------------------------

    async def transaction(
        self, pdus: list[Any], *, edus: list[Any] | None = None, persona: Persona | None = None,
        txn_id: str | None = None,
    ) -> Answer:  # fmt: skip
        """A send request of ours, whatever the answer."""
        content = {"pdus": pdus} | ({} if edus is None else {"edus": edus})
        uri = self.paths.send(txn_id or self.fresh())
        return await (persona or self.me).ask("PUT", uri, content)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
