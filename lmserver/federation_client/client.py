"""Signed requests to other servers (D04 §Request Authentication).

What is signed is what is sent: the uri goes on the wire byte for byte, the body is the canonical form of the
signed content, and a request without a body signs no `content`. Every answer is bounded in size and time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import structlog

from lmserver.federation_client.connector import PinnedHttp, Target, read_body
from lmserver.federation_client.errors import MAX_REASON, BadResponse, RemoteError, Unreachable, told
from lmserver.federation_client.resolver import Resolver
from lmserver.federation_client.streaming import StreamedResponse
from lmserver.protocol import canonical_json, ids, transport
from lmserver.protocol.errors import InvalidIdentifier, ProtocolError
from lmserver.protocol.signatures import SigningKey
from lmserver.web.request import MAX_VALUES, values_in

MAX_RESPONSE = 10 * 1024 * 1024
MAX_ERROR_RESPONSE = 64 * 1024
DEFAULT_TIMEOUT = 30.0
SIGNED_AT_ONCE = 16 * 1024
PARSED_AT_ONCE = 64 * 1024
BYTES_PER_VALUE = 16
"""Events have a value in some 35 bytes; the state of a large room is as large as it is."""
KEYS_PATH = "/_matrix/key/"

Query = Mapping[str, str] | Sequence[tuple[str, str]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """`json` is None when a status other than 200 came with a body that is not JSON."""

    status: int
    json: Any


def quote_path(*segments: str) -> str:
    """A path of literal segments, each percent-encoded whole. Raises InvalidIdentifier for an empty one."""
    quoted = []
    for segment in segments:
        if not segment:
            raise InvalidIdentifier("path segment is empty")
        try:
            text = quote(segment, safe="$!:@,*=")
        except UnicodeEncodeError as error:
            raise InvalidIdentifier("path segment is not valid text") from error
        quoted.append(text.replace(".", "%2E") if segment in (".", "..") else text)
    return "/" + "/".join(quoted)


class FederationClient:
    """Asks other servers in our name; `plain_http_servers` are the only ones reached without TLS, and those
    `blocked` are asked for nothing but keys."""

    def __init__(
        self,
        server_name: str,
        signing_key: SigningKey,
        resolver: Resolver,
        http: PinnedHttp,
        *,
        plain_http_servers: frozenset[str] = frozenset(),
        blocked: Container[str] = frozenset(),
    ) -> None:
        self._server_name = server_name
        self._key = signing_key
        self._resolver = resolver
        self._http = http
        self._plain = plain_http_servers
        self._blocked = blocked

    async def request(
        self,
        method: str,
        destination: str,
        path: str,
        *,
        query: Query | None = None,
        content: canonical_json.JsonObject | bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_response: int = MAX_RESPONSE,
    ) -> Response:
        """Any answer, whatever its status. `path` is quoted already (quote_path); bytes are canonical.

        Raises Unreachable or BadResponse; InvalidJson when `content` has no canonical form.
        """
        self._check(destination, path)
        uri = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
        body = canonical_json.encode(content) if isinstance(content, dict) else content
        headers = {
            "Authorization": await self._authorization(method, uri, destination, body),
            "Accept": "application/json",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        with self._failures(destination):
            async with asyncio.timeout(timeout):
                target = await self._resolver.resolve(destination, plain=destination in self._plain)
                return await self._exchange(method, target, uri, headers, body, max_response)

    async def _authorization(self, method: str, uri: str, destination: str, body: bytes | None) -> str:
        """A large body is hashed, twice, beside the event loop; the key may be rotated meanwhile."""
        sign = transport.authorization_header_of_body
        if body is None or len(body) <= SIGNED_AT_ONCE:
            return sign(method, uri, destination, body, self._key)
        return await asyncio.to_thread(sign, method, uri, destination, body, replace(self._key))

    async def send_json(
        self,
        method: str,
        destination: str,
        path: str,
        *,
        query: Query | None = None,
        content: canonical_json.JsonObject | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_response: int = MAX_RESPONSE,
    ) -> canonical_json.JsonObject:
        """The JSON object of a 200 answer. Raises also RemoteError for any other status."""
        response = await self.request(
            method,
            destination,
            path,
            query=query,
            content=content,
            timeout=timeout,
            max_response=max_response,
        )
        if response.status != 200:
            raise _remote_error(response)
        if not isinstance(response.json, dict):
            raise BadResponse("response is not a JSON object")
        return response.json

    @asynccontextmanager
    async def stream(
        self, destination: str, path: str, *, query: Query | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> AsyncIterator[StreamedResponse]:
        """GET of something too large to hold: the 200 answer, read inside the block. `timeout` is
        until its headers are there; how long its body may take is the reader's to say.

        Raises as `send_json` does.
        """
        self._check(destination, path)
        uri = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
        authorization = transport.authorization_header_of_body("GET", uri, destination, None, self._key)
        with self._failures(destination):
            async with asyncio.timeout(timeout) as deadline:
                target = await self._resolver.resolve(destination, plain=destination in self._plain)
                async with self._get(target, uri, {"Authorization": authorization}) as response:
                    if response.status != 200:
                        raise _remote_error(Response(response.status, await _error_body(response)))
                    deadline.reschedule(None)
                    yield StreamedResponse(response)

    @asynccontextmanager
    async def stream_url(
        self, url: str, *, plain: bool = False, timeout: float = DEFAULT_TIMEOUT
    ) -> AsyncIterator[StreamedResponse]:
        """GET of a URL that another server named: https (http too if `plain`), a DNS name, an address
        the guard lets through, no redirects, nothing of ours in the headers. Raises as `stream` does."""
        with self._failures(None):
            async with asyncio.timeout(timeout) as deadline:
                target, uri = await self._resolver.resolve_url(url, plain=plain)
                async with self._get(target, uri, {}) as response:
                    if response.status != 200:
                        raise RemoteError(response.status, "", "")
                    deadline.reschedule(None)
                    yield StreamedResponse(response)

    def is_plain(self, server: str) -> bool:
        """Whether the server is one of those reached without TLS."""
        return server in self._plain

    async def close(self) -> None:
        """Close the connections; the resolver and its lookups too."""
        await self._resolver.close()
        await self._http.close()

    def _check(self, destination: str, path: str) -> None:
        """Raises Unreachable for whom we do not ask; everybody is asked for keys."""
        if destination == self._server_name:
            raise Unreachable("a server does not ask itself")
        if destination in self._blocked and not path.startswith(KEYS_PATH):
            raise Unreachable("the operator has blocked the server")

    def _get(
        self, target: Target, uri: str, headers: dict[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        # Not compressed: a size is counted as it comes.
        plain = {**headers, "Accept": "*/*", "Accept-Encoding": "identity"}
        return self._http.request("GET", target, uri, headers=plain, body=None)

    @contextmanager
    def _failures(self, destination: str | None) -> Iterator[None]:
        """What aiohttp and the system raise, as FederationErrors."""
        try:
            yield
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise BadResponse("response is malformed", _detail(error)) from error
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError too
            if destination is not None:
                self._resolver.forget(destination)
            raise Unreachable(_detail(error)) from error

    async def _exchange(
        self, method: str, target: Target, uri: str, headers: dict[str, str], body: bytes | None, limit: int
    ) -> Response:
        async with self._http.request(method, target, uri, headers=headers, body=body) as response:
            status = response.status
            if status != 200:
                return Response(status, await _error_body(response))
            data = await read_body(response, limit)
        try:
            return Response(status, await _parsed(data))
        except ProtocolError as error:
            raise BadResponse("response is not acceptable JSON", str(error)) from error


async def _parsed(data: bytes) -> Any:
    """The value of an answer, sizes before work: a large one beside the event loop, one of little else
    than brackets not at all, or its sender would hold up everybody for seconds (attack F10)."""
    if len(data) <= PARSED_AT_ONCE:
        return canonical_json.parse(data)
    if values_in(data) > MAX_VALUES + len(data) // BYTES_PER_VALUE:
        raise BadResponse("response has too many values")
    return await asyncio.to_thread(canonical_json.parse, data)


async def _error_body(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an error, or None: many servers and every proxy answer errors with something else."""
    try:
        return canonical_json.parse(await read_body(response, MAX_ERROR_RESPONSE))
    except (ProtocolError, BadResponse):
        return None


def _remote_error(response: Response) -> RemoteError:
    body = response.json if isinstance(response.json, dict) else {}
    errcode, error, retry = (body.get(name) for name in ("errcode", "error", "retry_after_ms"))
    hub, version = body.get("org.lmserver.hub"), body.get("room_version")
    return RemoteError(
        response.status,
        told(errcode, 100),
        told(error, MAX_REASON),
        retry if type(retry) is int and retry >= 0 else None,
        hub if isinstance(hub, str) and ids.is_server_name(hub) else None,
        version if isinstance(version, str) and ids.is_room_version(version) else None,
    )


def _detail(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON]
