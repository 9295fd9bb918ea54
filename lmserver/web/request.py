"""A request as handlers see it: decoded path parameters, a bounded body, who is asking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import HttpVersion11, web

from lmserver.protocol import canonical_json
from lmserver.protocol.errors import InvalidJson, SchemaError
from lmserver.web.addresses import rate_key
from lmserver.web.errors import ApiError, too_large

MAX_NESTING = 100
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What a peer waits for that asks before it sends a large body (RFC 9110 §10.1.1)."""
SMALL_BODY = 64 * 1024
MAX_VALUES = 300_000
"""Commas and opening brackets in a body of JSON, those inside of texts too: a full transaction of
long messages has a third of it."""

STALL_SECONDS = 30.0
"""How long the other end may be silent in the middle of a streamed body."""


@dataclass(frozen=True, slots=True)
class Requester:
    """The user and device behind an access token that ends at `expires_ts` (ms; None: never). `appservice`
    is the ID of the service that acts for the user, whose requests may be without limits. A suspended
    user may hardly do more than read."""

    user_id: str
    device_id: str
    is_admin: bool = False
    expires_ts: int | None = None
    appservice: str = ""
    limited: bool = True
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer other than 200 with a JSON object."""

    status: int
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer of exactly `length` bytes, or of as many as come where that is None, sent as they come.
    When `body` raises, the connection is broken off, so that the reader knows that it has not got all."""

    body: AsyncGenerator[bytes, None]
    length: int | None
    headers: Mapping[str, str]
    status: int = 200


class Request:
    """One request. `remote` is the address it comes from; `requester` is set for users, `origin` for
    servers, by the authenticator; `is_reading` while its body is still coming, `received` bytes of which
    are here."""

    def __init__(
        self, raw: web.BaseRequest, params: dict[str, str], max_body: int, remote: str, *, strict: bool
    ) -> None:
        self._raw = raw
        self.remote = remote
        self._max_body = max_body
        self._strict = strict
        self._body: bytes | None = None
        self.params = params
        self.is_reading = False
        self.received = 0
        self.requester = Requester("", "")
        self.origin = ""

    @property
    def method(self) -> str:
        return self._raw.method

    @property
    def query(self) -> Any:
        """The decoded query, a multi-dictionary."""
        return self._raw.query

    @property
    def raw_uri(self) -> str:
        """Path and query as they came over the wire: what a server's signature covers."""
        return self._raw.raw_path

    @property
    def headers(self) -> Any:
        return self._raw.headers

    @property
    def remote_key(self) -> str:
        """What the address it comes from is counted under."""
        return rate_key(self.remote)

    async def body(self) -> bytes:
        """The whole body, read once; 413 as soon as it is known to be too large."""
        if self._body is None:
            self._body = await self._read()
        return self._body

    async def _read(self) -> bytes:
        body = bytearray()
        async for chunk in self._chunks(self._max_body):
            body += chunk
        return bytes(body)

    async def stream(self, max_body: int) -> AsyncIterator[bytes]:
        """The body as it comes, for those too large to hold: 413 as soon as it is known to be over
        `max_body`, 408 when nothing comes for STALL_SECONDS."""
        chunks = self._chunks(max_body)
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise ApiError(408, "M_UNKNOWN", "The body stopped coming") from None
            if chunk is None:
                return
            yield chunk

    @property
    def has_small_body(self) -> bool:
        """Whether it says that its body is small, or that there is none."""
        length = self._raw.content_length
        return length <= SMALL_BODY if length is not None else not self._raw.can_read_body

    async def _chunks(self, max_body: int) -> AsyncIterator[bytes]:
        encoding = self._raw.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(415, "M_UNKNOWN", "Compressed requests are not accepted")
        length = self._raw.content_length
        if length is not None and length > max_body:
            raise too_large()
        self.is_reading = True
        try:
            await self._invite_body()
            async for chunk in self._raw.content.iter_any():
                self.received += len(chunk)
                if self.received > max_body:
                    raise too_large()
                yield chunk
        except ConnectionError:
            raise ApiError(400, "M_UNKNOWN", "The body broke off") from None
        self.is_reading = False

    async def _invite_body(self) -> None:
        """Tell a peer that waits for it to send its body; one of HTTP/1.0 knows of no such answer."""
        if self._raw.version < HttpVersion11 or self._raw.headers.get("Expect", "").lower() != "100-continue":
            return
        await self._raw.writer.write(CONTINUE)
        self._raw.writer.output_size = 0

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object; servers' bodies strictly, clients' with floats allowed.

        Raises InvalidJson or SchemaError.
        """
        data = await self.body()
        if len(data) <= SMALL_BODY:
            return self._parsed(data)
        # The event loop goes on beside it, a few milliseconds each.
        return await asyncio.to_thread(self._parsed_large, data)

    def _parsed_large(self, data: bytes) -> dict[str, Any]:
        check_values(data)
        return self._parsed(data)

    def _parsed(self, data: bytes) -> dict[str, Any]:
        if self._strict:
            return canonical_json.parse_object(data)
        try:
            return canonical_json.parse_object(data)
        except InvalidJson:
            return parse_client_object(data)

    async def json_or_empty(self) -> dict[str, Any]:
        """The same, with no body meaning {}."""
        return await self.json() if await self.body() else {}


def values_in(data: bytes) -> int:
    """About how many values a JSON text has, and so what it costs to parse: a megabyte of nothing but
    brackets takes most of a second, one of events a few milliseconds."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def check_values(data: bytes) -> None:
    """Sizes before work: raises ApiError 413 for a body that takes too long to parse."""
    if values_in(data) > MAX_VALUES:
        raise ApiError(413, "M_TOO_LARGE", "The body has too many values")


def parse_client_object(data: bytes) -> dict[str, Any]:
    """JSON of a client: floats and large numbers pass; ambiguity, depth and what we could not answer
    with do not: integers beyond 64 bits, lone surrogates."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidJson("not acceptable JSON") from error
    if not isinstance(value, dict):
        raise SchemaError("not a JSON object")
    _check_depth(value)
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise SchemaError("a number or a text in it cannot be kept") from error
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return result


def _refuse(_: str) -> Any:
    raise ValueError("not a JSON number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise InvalidJson("nested too deeply")
