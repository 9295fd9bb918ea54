"""Requests to the server under test: any bytes, any headers, and a record of what was said."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from lmserver.conformance.model import Failed
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.connector import PinnedHttp, Target, tls_context
from lmserver.federation_client.dns_lookup import SystemDns
from lmserver.federation_client.resolver import Resolver

TIMEOUT = 20.0
MAX_ANSWER = 32 * 1024 * 1024
MAX_SHOWN = 2000
LONGEST_WAIT = 15.0

Header = tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """What the server answered; `json` is None when the body is not JSON."""

    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object of the body, or an empty one."""
        value = self.json
        return value if isinstance(value, dict) else {}

    @property
    def errcode(self) -> object:
        return self.fields.get("errcode")

    def expect(self, status: int, errcode: str | None = None) -> dict[str, Any]:
        """Fail unless status and error code are these; the body."""
        if self.status != status or (errcode is not None and self.errcode != errcode):
            wanted = f"{status}" if errcode is None else f"{status} {errcode}"
            raise Failed(f"expected {wanted}, the answer is {self}")
        return self.fields

    def __str__(self) -> str:
        return f"{self.status} {shown(self.body)[:200] or '(empty)'}"


def shown(data: bytes | None) -> str:
    text = "" if data is None else data.decode("utf-8", "replace")
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


class Trace:
    """What went over the wire since the check began."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, direction: str, line: str, sent: bytes | None, status: int, got: bytes | None) -> None:
        self.entries.append(
            {"direction": direction, "request": line, "body": shown(sent), "status": status,
             "answer": shown(got)}
        )  # fmt: skip


class _Pinned(AbstractResolver):
    """Every name is where the server under test is."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=address.ip, port=address.port, proto=socket.IPPROTO_TCP,
                family=socket.AF_INET6 if ":" in address.ip else socket.AF_INET,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._target.addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass


async def resolve(server: str, *, plain: bool, ca_file: Path | None) -> Target:
    """Where a server is (D04 §Resolving Server Names). Raises Unreachable."""
    guard = AddressGuard(tuple(ip_network(text) for text in ("0.0.0.0/0", "::/0")))
    http = PinnedHttp(guard, tls_context(ca_file))
    resolver = Resolver(SystemDns(), guard, http)
    try:
        return await resolver.resolve(server, plain=plain)
    finally:
        await resolver.close()
        await http.close()


class Wire:
    """Connections to the server under test."""

    def __init__(self, target: Target, ca_file: Path | None, trace: Trace) -> None:
        self.target = target
        self.trace = trace
        self.context: ssl.SSLContext = tls_context(ca_file)
        self._session: aiohttp.ClientSession | None = None

    @property
    def plain(self) -> bool:
        return self.target.tls_name is None

    async def send(
        self, method: str, uri: str, body: bytes | None = None, headers: Sequence[Header] = ()
    ) -> Answer:
        """One request, byte for byte; a rate limit is waited out as it says."""
        waited = 0.0
        while True:
            answer = await self._once(method, uri, body, headers)
            self.trace.add("to the server", f"{method} {uri}", body, answer.status, answer.body)
            if answer.status != 429 or waited >= LONGEST_WAIT:
                return answer
            after = answer.fields.get("retry_after_ms")
            pause = min(after / 1000 if isinstance(after, int) else 1.0, LONGEST_WAIT)
            waited += max(pause, 0.05)
            await asyncio.sleep(max(pause, 0.05))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _once(self, method: str, uri: str, body: bytes | None, headers: Sequence[Header]) -> Answer:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=_Pinned(self.target), use_dns_cache=False)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT),
                skip_auto_headers=["Content-Type"],
                headers={"User-Agent": "lmserver-conformance"},
            )
        scheme = "http" if self.plain else "https"
        url = URL(f"{scheme}://server-under-test.invalid{uri}", encoded=True)
        try:
            async with self._session.request(
                method, url, data=body, headers=[*headers, ("Host", self.target.host_header)],
                allow_redirects=False, ssl=self.context, server_hostname=self.target.tls_name,
            ) as response:  # fmt: skip
                data = await response.content.read(MAX_ANSWER)
                while not response.content.at_eof():
                    data += await response.content.read(MAX_ANSWER)
                return Answer(response.status, response.content_type, data)
        except TimeoutError as error:
            raise Failed(f"no answer to {method} {uri} in {TIMEOUT:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Failed(f"{method} {uri}: {type(error).__name__}: {error}") from error
