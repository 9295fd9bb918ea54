"""nginx with docs/nginx.conf.example, on ports and certificates of a test."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "docs/nginx.conf.example"
BINARY = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin:/usr/local/sbin")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where nginx listens, and where the server behind it does."""

    client: int
    federation: int
    client_behind: int
    federation_behind: int


class Nginx:
    """One nginx in the foreground, in a folder of its own."""

    def __init__(self, folder: Path, ports: Ports, certificate: Path, private_key: Path) -> None:
        self._folder = folder
        self._ports = ports
        folder.mkdir()
        site = _site(ports, certificate, private_key)
        (folder / "nginx.conf").write_text(_around(folder, site), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        assert BINARY is not None
        log = (self._folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            [BINARY, "-p", str(self._folder), "-c", "nginx.conf", "-e", "stderr"], stdout=log, stderr=log
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._ports.federation)
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


def _site(ports: Ports, certificate: Path, private_key: Path) -> str:
    """The example with every port, name and file replaced; each has to be there."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for old, new in (
        (r"server 127\.0\.0\.1:8008;", f"server 127.0.0.1:{ports.client_behind};"),
        (r"server 127\.0\.0\.1:8449;", f"server 127.0.0.1:{ports.federation_behind};"),
        (r"^    listen \[::\].*\n", ""),
        (r"listen 443 ssl http2;", f"listen 127.0.0.1:{ports.client} ssl http2;"),
        (r"listen 8448 ssl http2;", f"listen 127.0.0.1:{ports.federation} ssl http2;"),
        (r"/etc/letsencrypt/live/example\.org/fullchain\.pem", str(certificate)),
        (r"/etc/letsencrypt/live/example\.org/privkey\.pem", str(private_key)),
        (r"server_name example\.org;", "server_name localhost;"),
    ):
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        assert count, f"the example has no {old}"
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
