"""docs/nginx.conf.example in front of a server: HTTP/2 and TLS 1.3, and every signature still holds (D04 §Transport)."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import pytest
import pytest_asyncio
import yaml

from lmserver import dev_ca, own_keys
from lmserver.config import load_config
from lmserver.protocol import canonical_json, transport
from lmserver.protocol.signatures import SigningKey
from tests.kit.postgres import Cluster
from tests.kit.processes import ServerProcess, configure, lmserver
from tests.kit.proxies import NGINX, Nginx, Ports, Proxy, front
from tests.kit.users import register
from tests.kit.waiting import HANGS

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Site:
    """A server behind nginx, another one that signs, and an HTTP/2 client that trusts both."""

    behind: ServerProcess
    other: ServerProcess
    proxy: Proxy
    ports: Ports
    key: SigningKey
    http: httpx.AsyncClient
    ca: Path

    async def signed(
        self, method: str, uri: str, content: dict[str, Any] | None = None, *, sign: str | None = None
    ) -> httpx.Response:
        """A request of the other server; `sign` is a target to sign in place of the one that is sent."""
        body = None if content is None else canonical_json.encode(content)
        header = transport.authorization_header_of_body(method, sign or uri, self.behind.name, body, self.key)
        return await self.sent(method, uri, body, {"Authorization": header})

    async def sent(
        self, method: str, uri: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """To the federation port, the target byte for byte as given."""
        return await self.http.request(
            method, f"https://{self.behind.name}", content=body, headers=headers,
            extensions={"target": uri.encode()},
        )  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> AsyncIterator[Site]:
    tmp_path = tmp_path_factory.mktemp("nginx")
    async with cluster.database() as first, cluster.database() as second:
        behind, proxy = front(
            Nginx, tmp_path, "behind", database={"url": first}, federation={"well_known": "localhost:4433"}
        )
        other = configure(tmp_path, "other", database={"url": second})
        await asyncio.gather(behind.start(), other.start())
        config = load_config(other.config)
        key = own_keys.load(config.signing_key_path, other.name).signing
        ca = dev_ca.issue(tmp_path / "ca", other.name).ca
        trust = ssl.create_default_context(cafile=str(ca))
        await proxy.start()
        async with httpx.AsyncClient(http2=True, verify=trust, timeout=HANGS) as http:
            yield Site(behind, other, proxy, proxy.ports, key, http, ca)
        proxy.stop()
        assert (behind.stop(), other.stop()) == (0, 0)


async def test_http_2_with_signatures_over_encoded_targets(site: Site) -> None:
    async with aiohttp.ClientSession() as http:
        alice = await register(http, site.behind, "alice")
    profile = "/_matrix/federation/v1/query/profile?user_id=" + quote(alice.user_id, safe="")
    answer = await site.signed("GET", profile)
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")

    answer = await site.signed("PUT", "/_matrix/federation/v2/send/a%2Fb%21%7E", {"edus": [], "pdus": []})
    assert (answer.status_code, answer.json()["failed_pdus"]) == (200, {})

    # Believed, and answered in JSON by the server itself, whatever is encoded how.
    for uri in (
        "/_matrix/federation/v1/query/directory?room_alias=%23caf%C3%A9%2F%25%20%3F%26:x",
        "/_matrix/federation/v1/state_ids/%21r%2Fs%20t:localhost?event_id=%24e%2Bf",
        "/_matrix/federation/v2/event/%24%2E%2E",
        "/_matrix/federation/v2/event/$abc~-_",
    ):
        answer = await site.signed("GET", uri)
        assert answer.http_version == "HTTP/2"
        assert answer.status_code in (400, 403, 404), (uri, answer.text)
        assert answer.json()["errcode"] != "M_UNRECOGNIZED", uri


async def test_control_a_signature_over_another_spelling_is_refused(site: Site) -> None:
    """What a proxy that decodes or tidies targets would make of them."""
    for sent, signed in (
        ("/_matrix/federation/v2/event/%24abc", "/_matrix/federation/v2/event/$abc"),
        ("/_matrix/federation/v2/send/a%2Fb", "/_matrix/federation/v2/send/a/b"),
    ):
        method, content = ("PUT", {"pdus": []}) if "send" in sent else ("GET", None)
        answer = await site.signed(method, sent, content, sign=signed)
        assert (answer.status_code, answer.json()["errcode"]) == (401, "M_FORBIDDEN")


async def test_double_slashes_and_dots_are_left_to_the_server(site: Site) -> None:
    for uri in ("//_matrix/key/v2/server", "/_matrix//key/v2/server", "/_matrix/key/v2/server/"):
        answer = await site.sent("GET", uri)
        assert (answer.status_code, answer.json()["errcode"]) == (404, "M_UNRECOGNIZED"), uri
    answer = await site.sent("GET", "/_matrix/key/v2/../v2/server")
    assert answer.status_code == 404


async def test_every_door_of_the_client_port(site: Site) -> None:
    base = f"https://localhost:{site.ports.client}"
    for path, listener in (
        ("/_matrix/client/versions", "versions"),
        ("/.well-known/matrix/server", "m.server"),
        ("/_matrix/key/v2/server", "verify_keys"),
        ("/_matrix/federation/v1/version", "server"),
    ):
        answer = await site.http.get(base + path)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2"), path
        assert listener in answer.json()


async def test_tls_1_3_only(site: Site) -> None:
    for port in (site.ports.client, site.ports.federation):
        for newest, good in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.maximum_version = newest
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                assert good
                writer.close()
            except ssl.SSLError:
                assert not good


async def test_the_server_itself_says_what_is_too_large(site: Site) -> None:
    content = {"pdus": [], "x": "x" * 9 * 1024 * 1024}
    answer = await site.signed("PUT", "/_matrix/federation/v2/send/1", content)
    assert (answer.status_code, answer.json()["errcode"]) == (413, "M_TOO_LARGE")


async def test_nginx_takes_no_more_than_that_and_says_so_in_the_servers_words(site: Site) -> None:
    trust = ssl.create_default_context(cafile=str(site.ca))  # over HTTP/1.1: it offers no other
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", site.ports.federation, ssl=trust, server_hostname="localhost"
    )
    writer.write(b"PUT /_matrix/federation/v2/send/1 HTTP/1.1\r\nHost: localhost\r\n")
    writer.write(b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (20 * 1024 * 1024))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["errcode"] == "M_TOO_LARGE"
    writer.close()


async def test_a_server_that_is_away_is_said_in_json(site: Site) -> None:
    assert site.behind.stop() == 0
    answer = await site.sent("GET", "/_matrix/key/v2/server")
    await site.behind.start()
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["retry_after_ms"] == 2000


async def test_another_server_reaches_it_through_nginx(site: Site) -> None:
    done = await asyncio.to_thread(
        lmserver, "federation-check", site.behind.name, "--config", str(site.other.config), "--json"
    )
    report = json.loads(done.stdout)
    assert report["ok"], done.stdout
    told = {step["name"]: step["detail"] for step in report["steps"]}
    assert told["TLS"] == "TLSv1.3, HTTP h2"
    assert "believed" in told["signed request"]


async def test_a_plain_listener_on_loopback_is_no_reason_to_warn(tmp_path: Path) -> None:
    made = configure(tmp_path, "behind", federation={"tls_certificate": None, "tls_private_key": None})
    assert not any("plain HTTP" in warning for warning in load_config(made.config).warnings())
    raw = yaml.safe_load(made.config.read_text())
    raw["federation"]["host"] = "0.0.0.0"
    made.config.write_text(yaml.safe_dump(raw))
    assert any("plain HTTP" in warning for warning in load_config(made.config).warnings())
