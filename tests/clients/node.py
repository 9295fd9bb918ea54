"""Running JavaScript clients: Node, and the packages that js/package-lock.json names."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "js"
MODULES = FOLDER / "node_modules"
OLDEST_NODE = 20
INSTALL_SECONDS = 180
SCRIPT_SECONDS = 600


@dataclass(frozen=True)
class Node:
    """A Node that can run the scripts of js/."""

    program: str

    def run(self, script: str, **arguments: Any) -> Any:
        """Run js/`script` with `arguments` as one JSON object. It must end with status 0; the answer is
        the last line it prints, as JSON. What it printed and thought is in the failure."""
        done = subprocess.run(
            [self.program, str(FOLDER / script), json.dumps(arguments)],
            cwd=FOLDER, capture_output=True, text=True, check=False, timeout=SCRIPT_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return json.loads(done.stdout.splitlines()[-1])

    async def run_with(
        self, script: str, actions: Mapping[str, Callable[[], Awaitable[None]]], **arguments: Any
    ) -> Any:
        """As `run`, for a script that asks for actions by their names, a line each, and waits for them."""
        process = await asyncio.create_subprocess_exec(
            self.program, str(FOLDER / script), json.dumps(arguments),
            cwd=FOLDER, stdin=PIPE, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        thoughts = asyncio.create_task(process.stderr.read())
        line = ""
        try:
            async with asyncio.timeout(SCRIPT_SECONDS):
                while printed := await process.stdout.readline():
                    line = printed.decode().rstrip("\n")
                    if line in actions:
                        await actions[line]()
                        process.stdin.write(printed)
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            told = (await thoughts).decode(errors="replace")
        assert status == 0, f"{script}\n{line}\n{told[-8000:]}"
        return json.loads(line)


def installed() -> Node:
    """Node, after `npm ci` where the packages are not there yet or the lock file has changed."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None:
        pytest.skip("Node is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node {OLDEST_NODE} or newer is needed, not {version.strip()}")
    wanted = (FOLDER / "package-lock.json").read_bytes()
    with (FOLDER / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = MODULES / ".installed"
        if not stamp.exists() or stamp.read_bytes() != wanted:
            if npm is None:
                pytest.skip("npm is not installed, and the packages are not there")
            _install(npm)
            stamp.write_bytes(wanted)
    return Node(program)


def _install(npm: str) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-progress", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm ci did not end within {INSTALL_SECONDS} s")
    if done.returncode != 0:
        pytest.skip(f"npm ci failed: {done.stderr.strip()[-300:]}")
