"""Servers to measure: lmserver and stock Synapse, each on a database of one PostgreSQL cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import yaml

from lmserver.config_limits import DEFAULT_LIMITS

SYNAPSE_VENV = Path(__file__).resolve().parent / ".synapse-venv"
TICK = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Measured:
    """A running server: its client URL, process and PostgreSQL's."""

    label: str
    name: str
    url: str
    command: list[str]
    folder: Path
    federation_port: int = 0
    tls: bool = False
    process: subprocess.Popen[bytes] | None = None
    ready_seconds: float = 0.0

    async def start(self) -> None:
        started = time.monotonic()
        with (self.folder / f"{self.label}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)
        async with aiohttp.ClientSession() as http:
            while True:
                if self.process.poll() is not None or time.monotonic() - started > 120:
                    log_text = (self.folder / f"{self.label}.log").read_text(errors="replace")
                    raise RuntimeError(f"{self.label} did not start:\n{log_text[-2000:]}")
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with http.get(self.url + "/_matrix/client/versions") as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.01)
        self.ready_seconds = time.monotonic() - started

    @property
    def federation_url(self) -> str:
        return f"http{'s' * self.tls}://127.0.0.1:{self.federation_port}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def rss_mb(self) -> float:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def cpu_seconds(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK


async def fresh_database(admin_dsn: str, name: str) -> None:
    connection = await asyncpg.connect(admin_dsn)
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await connection.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    await connection.close()


def lmserver(
    folder: Path,
    dsn: str,
    plain_peers: list[str],
    label: str = "lmserver",
    *,
    pool: int = 10,
    tls: bool = False,
) -> Measured:
    """An lmserver with its limits out of the way; `tls` for federation as operators run it, with
    the certificate authority that all of `folder` share."""
    client_port, federation_port = free_port(), free_port()
    name = f"localhost:{federation_port}"
    done = subprocess.run(
        [sys.executable, "-m", "lmserver", "generate-config", "--server-name", name, "--data-dir",
         str(folder / f"{label}-data"), "--client-port", str(client_port), "--database-url", dsn,
         "--dev", str(folder / "ca")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    config = yaml.safe_load(done.stdout)
    config["limits"] = {name: {"per_second": 1e6, "burst": 10**6} for name in DEFAULT_LIMITS}
    config["federation"] |= {"plain_http_servers": plain_peers}
    if not tls:
        config["federation"] |= {"tls_certificate": None, "tls_private_key": None}
    config["database"] = {**(config["database"] or {}), "pool_size": pool}
    config["logging"] = {"level": "warning", "format": "json"}
    path = folder / f"{label}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lmserver", "run", "--config", str(path)]
    url = f"http://127.0.0.1:{client_port}"
    return Measured(label, name, url, command, folder, federation_port, tls)


def install_synapse() -> Path:
    """Stock Synapse in a virtual environment of its own."""
    python = SYNAPSE_VENV / "bin/python"
    if not (SYNAPSE_VENV / ".installed").exists():
        print("Installing Synapse from PyPI for comparison ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(SYNAPSE_VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "matrix-synapse[postgres]"], check=True)
        (SYNAPSE_VENV / ".installed").touch()
    return python


def synapse(folder: Path, socket_dir: str, port: str, user: str, database: str) -> Measured:
    python = install_synapse()
    client_port = free_port()
    config = {
        "server_name": "synapse.test",
        "pid_file": str(folder / "synapse.pid"),
        "listeners": [{"port": client_port, "type": "http", "bind_addresses": ["127.0.0.1"], "tls": False,
                       "resources": [{"names": ["client"]}]}],
        "database": {"name": "psycopg2", "args": {"user": user, "dbname": database, "host": socket_dir,
                                                  "port": port, "cp_min": 5, "cp_max": 10}},
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "report_stats": False,
        "presence": {"enabled": False},
        "signing_key_path": str(folder / "synapse.key"),
        "media_store_path": str(folder / "media"),
        "macaroon_secret_key": secrets.token_hex(16),
        "log_config": str(folder / "synapse-log.yaml"),
        "trusted_key_servers": [],
        **{f"rc_{k}": {"per_second": 1e5, "burst_count": 10**6} for k in ("message", "registration")},
        "rc_login": {k: {"per_second": 1e5, "burst_count": 10**6} for k in ("address", "account", "failed_attempts")},
        "rc_joins": {k: {"per_second": 1e5, "burst_count": 10**6} for k in ("local", "remote")},
        "rc_joins_per_room": {"per_second": 1e5, "burst_count": 10**6},
        "rc_room_creation": {"per_second": 1e5, "burst_count": 10**6},
    }  # fmt: skip
    (folder / "synapse.yaml").write_text(yaml.safe_dump(config))
    log = {"version": 1, "root": {"level": "WARNING", "handlers": ["c"]},
           "handlers": {"c": {"class": "logging.StreamHandler"}}}  # fmt: skip
    (folder / "synapse-log.yaml").write_text(yaml.safe_dump(log))
    base = [str(python), "-m", "synapse.app.homeserver", "-c", str(folder / "synapse.yaml")]
    subprocess.run([*base, "--generate-keys"], check=True, capture_output=True)
    return Measured("synapse", "synapse.test", f"http://127.0.0.1:{client_port}", base, folder)
