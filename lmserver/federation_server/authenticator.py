"""X-Matrix: which server is asking (D04 §Request Authentication)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping

from lmserver.protocol import transport
from lmserver.protocol.errors import ProtocolError, RequestAuthError
from lmserver.protocol.signatures import VerifyKey
from lmserver.web.errors import forbidden, limited
from lmserver.web.limits import RateLimiter
from lmserver.web.request import Request, check_values

KeysForRequest = Callable[[str, Iterable[str]], Awaitable[Mapping[str, VerifyKey]]]
Met = Callable[[str], Awaitable[bool]]

_RATE = "new_servers"


class ServerAuthenticator:
    """Sets `request.origin` when every Authorization header presented verifies.

    Whoever names a server in a header makes us ask it for its keys: one address may do so with so
    many that we have never `met`, then it has to wait. `limiter` knows the rate `new_servers`.
    """

    def __init__(
        self,
        our_name: str,
        keys: KeysForRequest,
        alive: Callable[[str], None],
        *,
        met: Met | None = None,
        limiter: RateLimiter | None = None,
        blocked: Container[str] = frozenset(),
    ) -> None:
        self._our_name = our_name
        self._keys = keys
        self._alive = alive
        self._met = met
        self._limiter = limiter
        self._blocked = blocked

    async def __call__(self, request: Request) -> None:
        """Raises RequestAuthError: 401 M_FORBIDDEN; InvalidJson or TooLarge for the body; ApiError 429."""
        values = request.headers.getall("Authorization", [])
        headers = transport.parse_authorization(values, self._our_name)
        if headers[0].origin in self._blocked:
            raise forbidden("This server has nothing to do with yours")
        if self._met is not None and self._limiter is not None and not await self._met(headers[0].origin):
            wait = self._limiter.take(_RATE, request.remote_key)
            if wait:
                raise limited(wait)
        body = await request.body() or None
        check_values(body or b"")  # it may have to be parsed before we know whose it is
        try:
            keys = await self._keys(headers[0].origin, [h.key_id for h in headers])
        except ProtocolError as error:
            raise RequestAuthError("the keys of the requesting server cannot be fetched") from error
        arguments = (headers, request.method, request.raw_uri, body, keys)
        if request.has_small_body:
            request.origin = transport.check_request(*arguments)
        else:  # hashing megabytes takes a while, and needs no lock of the interpreter
            request.origin = await asyncio.to_thread(transport.check_request, *arguments)
        self._alive(request.origin)
