"""The reverse proxies of docs/, on ports and certificates of a test."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lmserver import dev_ca
from tests.kit.processes import ServerProcess, configure, free_port
from tests.kit.waiting import HANGS

DOCS = Path(__file__).parent.parent.parent / "docs"


def installed(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")


NGINX, HAPROXY = installed("nginx"), installed("haproxy")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where nginx listens, and where the server behind it does."""

    client: int
    federation: int
    client_behind: int
    federation_behind: int


def front(
    proxy: type[Proxy], folder: Path, label: str, **changes: dict[str, object]
) -> tuple[ServerProcess, Proxy]:
    """A configured server and the proxy in front of it, which listens at the server's name."""
    behind = free_port()
    sections = {
        **changes,
        "federation": {
            **changes.get("federation", {}),
            "port": behind,
            "tls_certificate": None,
            "tls_private_key": None,
        },
    }
    server = configure(folder, label, **sections)
    certificate = dev_ca.issue(folder / "ca", server.name)
    ports = Ports(
        client=free_port(),
        federation=int(server.name.rsplit(":", 1)[1]),
        client_behind=int(server.client_url.rsplit(":", 1)[1]),
        federation_behind=behind,
    )
    return server, proxy(folder / "proxy", ports, certificate.certificate, certificate.private_key)


class Proxy:
    """One proxy in the foreground, in a folder of its own."""

    def __init__(self, folder: Path, ports: Ports, certificate: Path, private_key: Path) -> None:
        self.ports = ports
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        (folder / "conf").write_text(self._configuration(certificate, private_key), encoding="utf-8")

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _configuration(self, certificate: Path, private_key: Path) -> str:
        raise NotImplementedError

    async def start(self) -> None:
        log = (self._folder / "stderr").open("wb")
        self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        async with asyncio.timeout(HANGS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.ports.federation)
                    writer.close()
                    return
                except OSError:
                    if self._process.poll() is not None:
                        raise RuntimeError((self._folder / "stderr").read_text()) from None
                    await asyncio.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)


class Nginx(Proxy):
    def _command(self) -> list[str]:
        return [str(NGINX), "-p", str(self._folder), "-c", "conf", "-e", "stderr"]

    def _configuration(self, certificate: Path, private_key: Path) -> str:
        site = _replaced(
            "nginx.conf.example",
            (r"server 127\.0\.0\.1:8008;", f"server 127.0.0.1:{self.ports.client_behind};"),
            (r"server 127\.0\.0\.1:8449;", f"server 127.0.0.1:{self.ports.federation_behind};"),
            (r"^    listen \[::\].*\n", ""),
            (r"listen 443 ssl http2;", f"listen 127.0.0.1:{self.ports.client} ssl http2;"),
            (r"listen 8448 ssl http2;", f"listen 127.0.0.1:{self.ports.federation} ssl http2;"),
            (r"/etc/letsencrypt/live/example\.org/fullchain\.pem", str(certificate)),
            (r"/etc/letsencrypt/live/example\.org/privkey\.pem", str(private_key)),
            (r"server_name example\.org;", "server_name localhost;"),
        )
        return _around(self._folder, site)


class Haproxy(Proxy):
    def _command(self) -> list[str]:
        return [str(HAPROXY), "-db", "-f", str(self._folder / "conf")]

    def _configuration(self, certificate: Path, private_key: Path) -> str:
        both = self._folder / "tls.pem"
        both.write_bytes(certificate.read_bytes() + private_key.read_bytes())
        return _replaced(
            "haproxy.cfg.example",
            (r"127\.0\.0\.1:8008$", f"127.0.0.1:{self.ports.client_behind}"),
            (r"127\.0\.0\.1:8449$", f"127.0.0.1:{self.ports.federation_behind}"),
            (r"bind :443 ", f"bind 127.0.0.1:{self.ports.client} "),
            (r"bind :8448 ", f"bind 127.0.0.1:{self.ports.federation} "),
            (r"/etc/haproxy/example\.org\.pem", str(both)),
        )


def _replaced(example: str, *changes: tuple[str, str]) -> str:
    """The example with every port, name and file replaced; each has to be there."""
    text = (DOCS / example).read_text(encoding="utf-8")
    for old, new in changes:
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        assert count, f"{example} has no {old}"
    return text


def _around(folder: Path, site: str) -> str:
    user = "user root;" if os.geteuid() == 0 else ""
    folders = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off;
{user}
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
access_log off;
{folders}
{site}
}}
"""
