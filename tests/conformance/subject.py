"""A whole lmserver in this process, over plain HTTP on loopback: what a mutant is made of.

The suite shares no protocol code with the server, so a patch to the server's modules breaks the
server alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web

from lmserver.composition import assemble
from lmserver.config import parse_config
from lmserver.config_limits import DEFAULT_LIMITS
from lmserver.conformance.model import Outcome, Result
from lmserver.conformance.options import Options
from lmserver.conformance.runner import run
from lmserver.storage.database import Database
from tests.kit.processes import free_port
from tests.kit.rooms import key_of

FAST = {name: {"per_second": 1000, "burst": 1000} for name in DEFAULT_LIMITS}


class Subject:
    """The server under test; `results` runs the suite against it."""

    def __init__(self, db: Database, folder: Path, **config: Any) -> None:
        self.name = f"localhost:{free_port()}"
        self.names = [f"localhost:{free_port()}" for _ in range(3)]
        self.client_port = free_port()
        raw = {
            "server_name": self.name,
            "registration": {"mode": "open"},
            "limits": FAST,
            "client": {"port": self.client_port},
            "federation": {
                "plain_http_servers": self.names,
                "allowed_networks": ["127.0.0.0/8", "::1/128"],
            },
            **config,
        }
        self._server = assemble(parse_config(raw, folder), db, key_of(self.name))
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        port = int(self.name.partition(":")[2])
        for app, where in ((self._server.federation_app, port), (self._server.client_app, self.client_port)):
            runner = web.AppRunner(app, access_log=None, auto_decompress=False)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", where).start()
            self._runners.append(runner)
        await self._server.sender.start()

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        await self._server.close()

    async def results(self, *only: str, **changes: Any) -> list[Result]:
        options = Options(
            server=self.name,
            name=self.names[0],
            also=tuple(self.names[1:]),
            plain_http=True,
            client_url=f"http://127.0.0.1:{self.client_port}",
            register=True,
            only=only,
            **changes,
        )
        return await run(options, lambda result: None)


def failed(results: list[Result]) -> set[str]:
    return {r.check.id for r in results if r.outcome in (Outcome.FAIL, Outcome.WARN)}
