"""A server of the suite: a name, keys, what it was asked, and how it answers.

By default it answers as the draft says a well-behaved server does; a check that wants it to
misbehave intercepts an endpoint for as long as it needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

from lmserver.conformance import draft
from lmserver.conformance.draft import Event, Key
from lmserver.conformance.exchange import Answer, Trace, Wire
from lmserver.conformance.model import Failed

T = TypeVar("T")
Reply = tuple[int, dict[str, Any]]
DAY_MS = 24 * 3600 * 1000
WAIT = 10.0
RETRY_SECONDS = 40.0
"""Two retries of a sender that backs off."""
TIME_ENOUGH = 0.5
"""For a second transaction to come, if the server sends one before the first is answered."""
PATIENCE = 5
IMPATIENT = 2.0

UNKNOWN: Reply = (404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})
NOT_FOUND: Reply = (404, {"errcode": "M_NOT_FOUND", "error": "Not found"})


@dataclass
class Inbound:
    """A request to us. `endpoint` and `arguments` are the path without its prefix and version."""

    method: str
    uri: str
    headers: list[tuple[str, str]]
    body: bytes
    json: Any
    endpoint: str
    arguments: list[str]
    status: int = 0
    at: float = field(default_factory=time.monotonic)

    def query(self, name: str) -> list[str]:
        pairs = (pair.partition("=") for pair in self.uri.partition("?")[2].split("&"))
        return [unquote(value) for key, _, value in pairs if key == name]

    @property
    def fields(self) -> dict[str, Any]:
        return self.json if isinstance(self.json, dict) else {}


@dataclass
class Held:
    """Requests that wait: `open` by their URI, and the `most` there were at once."""

    came: asyncio.Event = field(default_factory=asyncio.Event)
    free: asyncio.Event = field(default_factory=asyncio.Event)
    open: set[str] = field(default_factory=set)
    most: set[str] = field(default_factory=set)


Handler = Callable[[Inbound], Awaitable[Reply]]
Interceptor = Callable[[Inbound], Awaitable[Reply | None]]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Persona:
    """One server name of the suite, its keys derived from `seed`.

    `key` signs; `second_key` is published too, `old_key` has expired.
    """

    def __init__(self, name: str, server: str, wire: Wire, trace: Trace, seed: bytes) -> None:
        self.name = name
        self.server = server
        self.wire = wire
        self.trace = trace
        self.key, self.second_key, self.old_key = (
            Key.derive(name, seed, use) for use in ("suite", "second", "old")
        )
        self.lifetime_ms = DAY_MS
        self.received: list[Inbound] = []
        self.pdus: list[Event] = []
        self.edus: list[Event] = []
        self.invites: list[Event] = []
        self.handlers: dict[str, Handler] = {"send": self._receive, "invite": self._invited}
        self.on_lpdu: Callable[[Event], Awaitable[dict[str, Any] | None]] | None = None
        self._interceptors: list[tuple[str, Interceptor]] = []
        self._news = asyncio.Event()
        self._in_vain = 0

    def user(self, localpart: str) -> str:
        return f"@{localpart}:{self.name}"

    # -- what the server asks of us ---------------------------------------------------------------

    def key_document(self) -> Event:
        """With a member no server knows, which a notary has to keep: our signature covers it."""
        document = {
            "server_name": self.name,
            "valid_until_ts": now_ms() + self.lifetime_ms,
            "m.linearized": True,
            "org.lmserver.conformance": {"keep": "this"},
            "verify_keys": {key.key_id: {"key": key.public} for key in (self.key, self.second_key)},
            "old_verify_keys": {
                self.old_key.key_id: {"key": self.old_key.public, "expired_ts": now_ms() - DAY_MS}
            },
        }
        return self.second_key.sign_object(self.key.sign_object(document))

    async def answer(self, request: Inbound) -> Reply:
        """Answer a request and remember it."""
        self.received.append(request)
        status, body = await self._answer(request)
        request.status = status
        self.trace.add("from the server", f"{request.method} {request.uri}", request.body, status,
                       draft.canonical(body))  # fmt: skip
        self.tell()
        return status, body

    async def _answer(self, request: Inbound) -> Reply:
        for endpoint, intercept in reversed(self._interceptors):
            if endpoint == request.endpoint:
                reply = await intercept(request)
                if reply is not None:
                    return reply
        if request.uri == "/_matrix/key/v2/server":
            return 200, self.key_document()
        handler = self.handlers.get(request.endpoint)
        return UNKNOWN if handler is None else await handler(request)

    async def _receive(self, request: Inbound) -> Reply:
        failed: dict[str, Any] = {}
        for event in request.fields.get("pdus", []):
            if isinstance(event, dict) and "auth_events" in event:
                self.remember(event)
            elif isinstance(event, dict) and self.on_lpdu is not None:
                failed |= await self.on_lpdu(event) or {}
        self.edus += [edu for edu in request.fields.get("edus", []) if isinstance(edu, dict)]
        return 200, {"failed_pdus": failed}

    async def _invited(self, request: Inbound) -> Reply:
        """Sign an invite of a user of ours, as the target's server does (D04 §Invites)."""
        self.invites.append(request.fields)
        event, version = request.fields.get("event"), request.fields.get("room_version")
        if not isinstance(event, dict) or not isinstance(version, str):
            return 400, {"errcode": "M_BAD_JSON", "error": "Not an invite"}
        signed = self.key.sign_event(event, version)
        return 200, {"pdu": signed, "event": signed}

    def remember(self, pdu: Event) -> None:
        if pdu not in self.pdus:
            self.pdus.append(pdu)

    @contextmanager
    def intercepting(self, endpoint: str, answer: Interceptor) -> Iterator[None]:
        """Let `answer` answer an endpoint, or leave it (None) to those before."""
        entry = (endpoint, answer)
        self._interceptors.append(entry)
        try:
            yield
        finally:
            self._interceptors.remove(entry)

    @contextmanager
    def holding(self, endpoint: str) -> Iterator[Held]:
        """Leave requests to an endpoint unanswered until the block ends or `free` is set."""
        held = Held()

        async def hold(request: Inbound) -> Reply | None:
            held.open.add(request.uri)
            held.most = max(held.most, set(held.open), key=len)
            held.came.set()
            await held.free.wait()
            held.open.discard(request.uri)
            return None

        try:
            with self.intercepting(endpoint, hold):
                yield held
        finally:
            held.free.set()

    def requests(self, endpoint: str, since: int = 0) -> list[Inbound]:
        return [request for request in self.received[since:] if request.endpoint == endpoint]

    def tell(self) -> None:
        """Wake whoever waits in `until`."""
        self._news.set()

    async def until(self, probe: Callable[[], T | None], what: str, seconds: float = WAIT) -> T:
        """What `probe` gives once it is not None; fails after `seconds`, sooner where much was in vain."""
        if self._in_vain >= PATIENCE and seconds <= WAIT:
            seconds = IMPATIENT
        deadline = time.monotonic() + seconds
        while True:
            self._news.clear()
            found = probe()
            if found is not None:
                return found
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except TimeoutError:
                self._in_vain += 1
                raise Failed(f"waited {seconds:.0f} s for {what}") from None

    # -- what we ask of the server ------------------------------------------------------------------

    def signature(
        self, method: str, uri: str, content: Any = None, *, key: Key | None = None,
        destination: str | None = None,
    ) -> str:  # fmt: skip
        """The signature of a request; without content none is signed, as Matrix has it."""
        request = {
            "method": method, "uri": uri, "origin": self.name, "destination": destination or self.server,
        }  # fmt: skip
        if content is not None:
            request["content"] = content
        return (key or self.key).sign(draft.canonical(request))

    def header(self, sig: str | None, **changes: str | None) -> str:
        """An Authorization value; `changes` replace parameters, or leave them out (None)."""
        parameters = {
            "origin": self.name, "destination": self.server, "key": self.key.key_id, "sig": sig,
            **changes,
        }  # fmt: skip
        return "X-Matrix " + ",".join(f'{k}="{v}"' for k, v in parameters.items() if v is not None)

    async def ask(self, method: str, uri: str, content: Any = None) -> Answer:
        """A properly signed request."""
        return await self.ask_with(method, uri, content, self.header(self.signature(method, uri, content)))

    async def ask_with(self, method: str, uri: str, content: Any, *authorization: str) -> Answer:
        """A request with these Authorization headers."""
        body = None if content is None else draft.canonical(content)
        return await self.ask_raw(method, uri, body, *authorization)

    async def ask_raw(self, method: str, uri: str, body: bytes | None, *authorization: str) -> Answer:
        headers = [("Authorization", value) for value in authorization]
        if body is not None:
            headers.append(("Content-Type", "application/json"))
        return await self.wire.send(method, uri, body, headers)
