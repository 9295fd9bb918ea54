"""Servers as their operators run them: own processes, configured by generate-config."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml

START_SECONDS = 300.0
STOP_SECONDS = 120.0


PORTS = range(10_000, 30_000)
"""Below those that connections are made from, which take any port that nobody listens at just now."""
BLOCK = 250


@functools.cache
def _block() -> Iterator[int]:
    """Ports of this test process alone: it holds the first of them for as long as it runs."""
    for first in random.sample(PORTS[::BLOCK], len(PORTS) // BLOCK):
        with contextlib.suppress(OSError):
            _HELD.bind(("127.0.0.1", first))
            return itertools.cycle(range(first + 1, first + BLOCK))
    raise RuntimeError("every block of ports is taken")


_HELD = socket.socket()


def free_port() -> int:
    """A port of loopback to listen at later, and again after a restart: no other test is given it."""
    for port in _block():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def lmserver(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "lmserver", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
    )


@dataclass
class ServerProcess:
    """One configured server; may be started, killed and started again."""

    name: str
    config: Path
    client_url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lmserver", "run", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession() as http:
            while time.monotonic() < deadline and self.process.poll() is None:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with http.get(self.client_url + "/_matrix/client/versions") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start: {self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """As a crash would: SIGKILL, no goodbye. The database is left running."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_SECONDS)
        self.process = None
        return status


@contextlib.asynccontextmanager
async def running(*servers: ServerProcess) -> AsyncIterator[None]:
    """All started at once, and stopped whatever happens."""
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield
    finally:
        for server in servers:
            server.stop()


def configure(folder: Path, label: str, **changes: dict[str, object]) -> ServerProcess:
    """A server in developer mode, its certificate from the authority in `folder`/ca; `changes`
    are merged into sections of its configuration."""
    federation_port, client_port = free_port(), free_port()
    name = f"localhost:{federation_port}"
    done = lmserver(
        "generate-config", "--server-name", name, "--data-dir", str(folder / label),
        "--client-port", str(client_port), "--dev", str(folder / "ca"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    config["limits"] = {"registration": {"burst": 1000}, "login": {"burst": 1000}}
    for section, values in changes.items():
        config[section] = {**(config[section] or {}), **values}
    path = folder / f"{label}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ServerProcess(name, path, f"http://127.0.0.1:{client_port}", folder / f"{label}.log")
