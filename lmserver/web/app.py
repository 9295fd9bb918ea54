"""From aiohttp to a handler and back: one door through which every request goes.

In order: the target's form, the endpoint, who is asking, the rate limit, the handler, all within
a deadline. Whatever goes wrong becomes a JSON error; input can cause no 5xx, and no exception's
text leaves the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import orjson
import structlog
from aiohttp import web

from lmserver.protocol.errors import ProtocolError
from lmserver.web.addresses import TrustedProxies, is_private
from lmserver.web.endpoint import MAX_AT_ONCE, Auth, Endpoint, Reply, Request, Streamed, endpoints_of
from lmserver.web.errors import ApiError, limited, of_protocol, user_suspended
from lmserver.web.limits import RateLimiter
from lmserver.web.request import STALL_SECONDS
from lmserver.web.routing import Router
from lmserver.web.slots import Busy, Held, Slots

log = structlog.get_logger(__name__)

Authenticator = Callable[[Request], Awaitable[None]]
"""Sets `requester` or `origin`; raises ApiError or a ProtocolError."""

Observer = Callable[[str, int, float], None]
"""Told of each request: the declared path, the status, the seconds."""

MAX_TARGET = 16 * 1024
BLOCK = 64 * 1024
LARGE_ANSWER = 4 * BLOCK
BODIES_AT_ONCE = 4
"""Bodies over 64 KB from one address that are read before their signature can be checked."""
UNAUTHORIZED = "unauthorized"
FAILURE_BYTES = 4096
"""A body whose signature is wrong has been read, hashed and perhaps parsed: so much of it costs its address
as much as one more failure."""
WAITING = 64
"""Requests that may wait for those in progress of the same user, server or address."""
WAIT_SECONDS = 10.0
RETRY_SECONDS = 1.0

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization, Date",
    "Access-Control-Expose-Headers": "Retry-After",
}
_JSON = {"Content-Type": "application/json"}
_SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Dispatcher:
    """The one handler of a listener."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        authenticators: Mapping[Auth, Authenticator],
        *,
        cors: bool,
        failures: Mapping[type[Exception], ApiError],
        limiter: RateLimiter | None,
        observe: Observer | None,
        proxies: TrustedProxies,
    ) -> None:
        self.endpoints = endpoints
        self._router = Router(endpoints)
        self._authenticators = authenticators
        self._headers = {**_SAFE_HEADERS, **(CORS_HEADERS if cors else {})}
        self._cors = cors
        self._failures = failures
        self._limiter = limiter
        self._observe = observe
        self._proxies = proxies
        self._slots = Slots()

    async def __call__(self, raw: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        path = "unknown"
        try:
            if self._cors and raw.method == "OPTIONS":
                return self._json(200, {})
            entry, params = self._find(raw)
            path = entry.path
            remote = self._proxies.client_of(raw.remote or "", raw.headers.getall("X-Forwarded-For", []))
            request = Request(raw, params, entry.max_body, remote, strict=entry.auth is Auth.SERVER)
            held: list[Held] = []
            try:
                result = await self._answer(entry, request, held)
                if isinstance(result, Streamed):
                    response = await self._stream(raw, result, entry.deadline)
                else:
                    response = result
            finally:
                for place in held:
                    place.release()
        except ApiError as error:
            response = self._error(error)
        except Exception as error:  # the last door: nothing gets past it
            log.error("request_failed", endpoint=path, error=type(error).__name__, exc_info=error)
            response = self._error(ApiError(500, "M_UNKNOWN", "Internal server error"))
        if self._observe is not None:
            self._observe(path, response.status, time.monotonic() - started)
        return response

    def _find(self, raw: web.BaseRequest) -> tuple[Endpoint, dict[str, str]]:
        target = raw.raw_path
        if len(target) > MAX_TARGET:
            raise ApiError(414, "M_UNKNOWN", "The request target is too long")
        # Only origin-form: a proxy or an attacker may send an absolute one, and what was signed
        # would not be what is served (attack X9).
        if not target.startswith("/"):
            raise ApiError(400, "M_UNKNOWN", "The request target must start with a slash")
        return self._router.find(raw.method, target.split("?", 1)[0])

    async def _answer(self, entry: Endpoint, request: Request, held: list[Held]) -> web.Response | Streamed:
        try:
            async with asyncio.timeout(entry.deadline):
                await self._admit(entry, request, held)
                result = await entry.handler(request)
        except Busy:
            raise limited(RETRY_SECONDS) from None
        except TimeoutError:
            if request.is_reading:
                raise ApiError(408, "M_UNKNOWN", "The body did not come in time") from None
            raise ApiError(503, "M_UNKNOWN", "The request took too long", {"retry_after_ms": 2000}) from None
        except ProtocolError as error:
            raise of_protocol(error) from error
        except tuple(self._failures) as error:
            raise next(api for kind, api in self._failures.items() if isinstance(error, kind)) from error
        if isinstance(result, Streamed):
            return result
        reply = result if isinstance(result, Reply) else Reply(200, result)
        if reply.status == 200 and isinstance(reply.body, bytes) and len(reply.body) > LARGE_ANSWER:
            return Streamed(_blocks(reply.body), len(reply.body), {**_JSON, **reply.headers})
        return self._json(reply.status, reply.body, reply.headers)

    async def _admit(self, entry: Endpoint, request: Request, held: list[Held]) -> None:
        """Who asks, how often, how much at once. What is held is given back after the answer."""
        if entry.auth is Auth.SERVER and not request.has_small_body:
            # Its body is held in memory before we can know whose it is.
            line = ("body", request.remote_key)
            held.append(await self._slots.take(line, BODIES_AT_ONCE, WAITING, WAIT_SECONDS))
        if entry.auth is not Auth.NONE:
            await self._authenticate(entry, request)
        if request.requester.suspended and not entry.suspended:
            raise user_suspended()
        if self._limiter is not None and request.requester.limited:
            key = request.requester.user_id or request.origin or request.remote_key
            wait = self._limiter.take(entry.rate, key)
            if wait:
                raise limited(wait)
        at_once = entry.at_once or MAX_AT_ONCE
        name = entry.name if entry.at_once else ""
        who = request.requester.user_id or request.origin or request.remote_key
        held.append(await self._slots.take((name, who), at_once, WAITING, WAIT_SECONDS))

    async def _authenticate(self, entry: Endpoint, request: Request) -> None:
        """Servers: who guesses signatures, or names servers whose keys we would have to fetch, is not
        listened to after so many failures from one address. A private address is most likely a
        proxy that nobody told us of, and stands for everybody."""
        authenticate = self._authenticators.get(entry.auth)
        if authenticate is None:
            raise ApiError(401, "M_FORBIDDEN", "Not available here")
        if self._limiter is None or entry.auth is not Auth.SERVER or is_private(request.remote):
            return await authenticate(request)
        wait = self._limiter.wait(UNAUTHORIZED, request.remote_key)
        if wait:
            raise limited(wait)
        try:
            await authenticate(request)
        except (ApiError, ProtocolError):
            self._limiter.spend(UNAUTHORIZED, request.remote_key, 1 + request.received // FAILURE_BYTES)
            raise

    async def _stream(self, raw: web.BaseRequest, reply: Streamed, deadline: float) -> web.StreamResponse:
        """Send what comes, at the reader's speed but not slower than it may be silent. What breaks
        in the middle breaks the connection: half a body must not look like a whole one."""
        response = web.StreamResponse(status=reply.status, headers={**self._headers, **reply.headers})
        if reply.length is not None:
            response.content_length = reply.length
        async with contextlib.aclosing(reply.body) as body:
            try:
                async with asyncio.timeout(deadline):
                    await response.prepare(raw)
                    async for block in body if raw.method != "HEAD" else _nothing():
                        async with asyncio.timeout(STALL_SECONDS):
                            await response.write(block)
                    await response.write_eof()
            except Exception as error:
                log.info("stream_broken_off", error=type(error).__name__)
                if raw.transport is not None:
                    raw.transport.abort()
        return response

    def _error(self, error: ApiError) -> web.Response:
        headers = dict(error.headers)
        if "retry_after_ms" in error.extra:
            headers["Retry-After"] = str(max(1, -(-int(error.extra["retry_after_ms"]) // 1000)))
        return self._json(error.status, error.body(), headers)

    def _json(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        extra = {**self._headers, **(headers or {})}
        if "Content-Type" in extra:
            return _Response(status=status, body=data, headers=extra)
        return _Response(status=status, body=data, headers=extra, content_type="application/json")


class _Response(web.Response):
    """Lets go of what it is made of once it is sent: the connection remembers its last response, and may
    wait an hour for the next request."""

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self._body = None
        self.headers.clear()


DISPATCHER: Final = web.AppKey("dispatcher", Dispatcher)
"""The handler of an application: a listener calls it without aiohttp's routes, which know one path."""


async def _blocks(data: bytes) -> AsyncGenerator[bytes, None]:
    """A large answer in pieces, so that it is let go of when its reader does not read."""
    view = memoryview(data)
    for start in range(0, len(view), BLOCK):
        yield bytes(view[start : start + BLOCK])


async def _nothing() -> AsyncIterator[bytes]:
    """The body of an answer to HEAD."""
    return
    yield


def build_app(
    endpoint_objects: Sequence[object],
    authenticators: Mapping[Auth, Authenticator],
    *,
    cors: bool = False,
    failures: Mapping[type[Exception], ApiError] | None = None,
    limiter: RateLimiter | None = None,
    observe: Observer | None = None,
    proxies: TrustedProxies | None = None,
) -> web.Application:
    """An application that serves the endpoints of these objects and nothing else.

    `failures` names what the layers below raise when they cannot serve a request now.
    """
    entries = [entry for owner in endpoint_objects for entry in endpoints_of(owner)]
    dispatcher = Dispatcher(
        entries,
        authenticators,
        cors=cors,
        failures=failures or {},
        limiter=limiter,
        observe=observe,
        proxies=proxies or TrustedProxies(),
    )

    async def handle(request: web.Request) -> web.StreamResponse:
        return await dispatcher(request)

    app = web.Application()
    app[DISPATCHER] = dispatcher
    # Every path, those with an encoded line break too: aiohttp would answer them with text of its own.
    app.router.add_route("*", r"/{path:[\s\S]*}", handle)
    return app
