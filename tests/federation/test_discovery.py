"""What we serve for those who look for us (D04 §GET /.well-known/matrix/server)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from lmserver.composition import assemble
from lmserver.config import ConfigError, parse_config
from lmserver.federation_client.resolver import Address, Resolver, Target
from lmserver.protocol.signatures import SigningKey
from lmserver.storage.database import Database
from tests.federation_client.conftest import loopback
from tests.federation_client.fakes import LOOPBACK, Clock, FakeDns, Loopback

__all__ = ["loopback"]

KEY = SigningKey.from_seed("us.test", "ed25519:1", b"k" * 32)
PATH = "/.well-known/matrix/server"


def config(tmp_path: Path, well_known: object, name: str = "us.test") -> Any:
    return parse_config({"server_name": name, "federation": {"well_known": well_known}}, tmp_path)


@pytest.mark.parametrize(
    ("well_known", "status", "body"),
    [
        ("real.test:443", 200, {"m.server": "real.test:443"}),
        ("real.test", 200, {"m.server": "real.test"}),
        (None, 404, {"errcode": "M_NOT_FOUND", "error": "No delegation"}),
    ],
)
async def test_delegation_is_served_on_both_listeners(
    db: Database, tmp_path: Path, well_known: str | None, status: int, body: dict[str, str]
) -> None:
    server = assemble(config(tmp_path, well_known), db, KEY)
    try:
        for app in (server.client_app, server.federation_app):
            async with TestClient(TestServer(app)) as http:
                answer = await http.get(PATH)
                assert (answer.status, await answer.json()) == (status, body)
                assert answer.content_type == "application/json"
    finally:
        await server.close()


async def test_what_we_serve_is_what_we_understand(db: Database, tmp_path: Path, loopback: Loopback) -> None:
    server = assemble(config(tmp_path, "real.test:4433"), db, KEY)
    port = await loopback.serve_app(server.client_app, "us.test")
    dns, clock = FakeDns(), Clock()
    dns.hosts = {"us.test": ["127.0.0.1"], "real.test": ["127.0.0.9"]}
    resolver = Resolver(dns, LOOPBACK, loopback.http(), clock=clock, wall=clock, well_known_port=port)
    assert await resolver.resolve("us.test") == Target(
        "real.test:4433", "real.test", (Address("127.0.0.9", 4433),)
    )
    await server.close()


@pytest.mark.parametrize("value", ["real.test:99999", "https://real.test", "10.0.0.1:443", "", 443])
def test_a_delegation_nobody_could_follow_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="well_known"):
        config(tmp_path, value)


def test_a_delegation_nobody_asks_for_is_told(tmp_path: Path) -> None:
    assert any("never asked" in w for w in config(tmp_path, "real.test", "us.test:8448").warnings())
