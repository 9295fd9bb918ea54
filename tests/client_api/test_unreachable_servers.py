"""A client learns nothing about hosts and ports from the servers that cannot be reached (attack F12)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lmserver.composition import assemble
from lmserver.config import parse_config
from lmserver.federation_client.dns_lookup import SrvRecord
from lmserver.storage.database import Database
from tests.federation_client.conftest import loopback
from tests.federation_client.fakes import FakeDns, Loopback
from tests.kit.processes import free_port
from tests.kit.rooms import key_of

__all__ = ["loopback"]

NAME = "hub.test"
V3 = "/_matrix/client/v3"


@pytest.fixture
async def hosts(loopback: Loopback) -> tuple[FakeDns, list[str]]:
    """Names of servers that cannot be reached, each for a reason of its own."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"{}")

    dns = FakeDns()
    dns.hosts = {"open.test": ["127.0.0.1"], "inside.test": ["10.0.0.1"], "meta.test": ["169.254.169.254"]}
    dns.services["_matrix._tcp.ssh.test"] = [SrvRecord(0, 0, 22, "open.test")]
    return dns, [
        f"open.test:{free_port()}",  # closed
        f"open.test:{await loopback.serve(answer)}",  # open, without TLS
        f"open.test:{await loopback.serve(answer, 'other.test')}",  # open, for another name
        "open.test:22",
        "inside.test:8448",
        "meta.test:80",
        "ssh.test",
        "none.test:8448",
    ]


@pytest.fixture
async def client(
    db: Database, tmp_path: Path, hosts: tuple[FakeDns, list[str]]
) -> AsyncIterator[TestClient[Any, Any]]:
    config = parse_config(
        {
            "server_name": NAME,
            "registration": {"mode": "open"},
            "federation": {"allowed_networks": ["127.0.0.1/32"]},
        },
        tmp_path,
    )
    server = assemble(config, db, key_of(NAME), dns=hosts[0])
    async with TestClient(TestServer(server.client_app)) as http:
        yield http
    await server.close()


async def test_f12_no_answer_tells_one_unreachable_server_from_another(
    client: TestClient[Any, Any], hosts: tuple[FakeDns, list[str]]
) -> None:
    body = {"username": "alice", "password": "a long password", "auth": {"type": "m.login.dummy"}}
    token = (await (await client.post(f"{V3}/register", json=body)).json())["access_token"]
    headers = {"Authorization": f"Bearer {token}"}

    async def told(method: str, path: str, server: str, body: Any = None) -> tuple[int, str]:
        answer = await client.request(method, path, json=body, headers=headers)
        return answer.status, (await answer.text()).replace(quote(server), "S").replace(server, "S")

    for ask in (
        lambda s: told("POST", f"{V3}/join/{quote('!r:' + s)}", s, {}),
        lambda s: told("POST", f"{V3}/join/{quote('#a:' + s)}", s, {}),
        lambda s: told("GET", f"{V3}/directory/room/{quote('#a:' + s)}", s),
        lambda s: told("GET", f"{V3}/profile/{quote('@u:' + s)}", s),
        lambda s: told("POST", f"{V3}/keys/query", s, {"device_keys": {f"@u:{s}": []}, "timeout": 2000}),
        lambda s: told(
            "POST", f"{V3}/keys/claim", s, {"one_time_keys": {f"@u:{s}": {"D": "signed_curve25519"}}}
        ),
        lambda s: told("GET", f"/_matrix/client/v1/media/download/{s}/abc", s),
    ):
        answers = {server: await ask(server) for server in hosts[1]}
        assert len(set(answers.values())) == 1, answers
        assert next(iter(answers.values()))[0] < 600
