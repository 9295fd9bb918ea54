"""Where the server under test reaches the suite: one process, its server names told apart by Host."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import orjson
from aiohttp import web

from lmserver.conformance.paths import FEDERATION, UNSTABLE
from lmserver.conformance.persona import Inbound, Persona

MAX_BODY = 16 * 1024 * 1024
DEFAULT_PORT = 8448


class CannotListen(Exception):
    """An address cannot be listened on; the text says which and why."""


def server_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, private_key)
    return context


class Listener:
    """Serves the personas; a Host that names none of them is the first one's."""

    def __init__(
        self, personas: Sequence[Persona], contexts: Mapping[str, ssl.SSLContext | None], listen: str | None
    ) -> None:
        self._personas = {persona.name: persona for persona in personas}
        self._first = personas[0]
        self._contexts = contexts
        self._listen = listen
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=0.2)

    async def start(self) -> None:
        """Raises CannotListen."""
        await self._runner.setup()
        taken: set[tuple[str, int]] = set()
        for name in self._personas:
            address = self._address(name)
            if address in taken:
                continue
            taken.add(address)
            site = web.TCPSite(self._runner, *address, ssl_context=self._contexts[name], reuse_address=True)
            try:
                await site.start()
            except OSError as error:
                raise CannotListen(f"{address[0]}:{address[1]}: {error.strerror or error}") from error
            if address[0] == "127.0.0.1":
                with contextlib.suppress(OSError):  # `localhost` may mean this address to the server
                    await web.TCPSite(
                        self._runner, "::1", address[1], ssl_context=self._contexts[name], reuse_address=True
                    ).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def _address(self, name: str) -> tuple[str, int]:
        """--listen is for the first name; the others listen at the same host, on their own port."""
        everywhere = "0.0.0.0"  # noqa: S104 - the server that is judged must reach it
        host, port = _host_and_port(self._listen or "", "127.0.0.1" if _is_local(name) else everywhere)
        own = int(name.partition(":")[2] or DEFAULT_PORT)
        return host, port if port and (name == self._first.name or ":" not in name) else own

    async def _serve(self, raw: web.BaseRequest) -> web.StreamResponse:
        persona = self._personas.get(raw.headers.get("Host", ""), self._first)
        body = await raw.content.read(MAX_BODY)
        while not raw.content.at_eof() and len(body) < MAX_BODY:
            body += await raw.content.read(MAX_BODY)
        endpoint, arguments = _endpoint(raw.raw_path)
        request = Inbound(
            raw.method, raw.raw_path, _headers(raw.headers.items()), body, _json(body), endpoint, arguments
        )
        status, answer = await persona.answer(request)
        return web.json_response(body=orjson.dumps(answer), status=status)


def _is_local(name: str) -> bool:
    return name.partition(":")[0] == "localhost"


def _host_and_port(text: str, host: str) -> tuple[str, int]:
    given, _, port = text.rpartition(":")
    return given or host, int(port or 0)


def _headers(items: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in items]


def _json(body: bytes) -> object:
    try:
        value: object = orjson.loads(body)
    except ValueError:
        return None
    return value


def _endpoint(uri: str) -> tuple[str, list[str]]:
    """The first path segment after prefix and version, and those after it, decoded."""
    path = uri.partition("?")[0]
    if path.startswith(UNSTABLE + "/"):
        rest = path.removeprefix(UNSTABLE + "/")
    elif path.startswith(FEDERATION + "/v"):
        rest = path.removeprefix(FEDERATION + "/").partition("/")[2]
    else:
        return path, []
    endpoint, *arguments = [unquote(segment) for segment in rest.split("/")]
    return endpoint, arguments
