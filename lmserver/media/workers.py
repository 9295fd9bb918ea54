"""The pool of processes that decode what strangers made (attack M3).

A process is started when there is work and ended when there has been none for a minute, so an idle
server has none. Each job has limits of memory and CPU time set by the process itself
(`decoding/process.py`) and one of wall-clock time set here, after which the process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog

import lmserver
from lmserver.web.slots import Busy, Slots

log = structlog.get_logger(__name__)

PROCESSES = 2
WAITING = 64
WAIT_SECONDS = 20.0
JOB_SECONDS = 20.0
CPU_SECONDS = 10
IDLE_SECONDS = 60.0
MAX_OUTCOME = 8 << 20
_ROOT = Path(lmserver.__file__).resolve().parent.parent
_COMMAND = (sys.executable, "-E", "-s", "-m", "lmserver.media.decoding.process")


class JobRefused(Exception):
    """The input is nothing that is decoded, or one that a limit has stopped: it will not do later either."""


class WorkersBusy(Exception):
    """The job was not done now: too many wait, or it took too long."""


class Workers:
    """Runs jobs; as many at once as there are processes."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._processes = processes
        self._slots = Slots()
        self._idle: list[asyncio.subprocess.Process] = []
        self._retiring: asyncio.TimerHandle | None = None

    async def run(self, work: str, path: Path, **options: Any) -> bytes:
        """What the job makes of the file at an absolute path. Raises JobRefused or WorkersBusy."""
        job = {"work": work, "cpu_seconds": CPU_SECONDS, "path": str(path), **options}
        try:
            async with self._slots.hold("", self._processes, WAITING, WAIT_SECONDS):
                return await self._run(job)
        except Busy:
            raise WorkersBusy from None

    async def close(self) -> None:
        """End the processes."""
        if self._retiring is not None:
            self._retiring.cancel()
        while self._idle:
            await _end(self._idle.pop())

    async def _run(self, job: dict[str, Any]) -> bytes:
        process = await self._take()
        answered = False
        try:
            async with asyncio.timeout(JOB_SECONDS):
                outcome, data = await _exchange(process, job)
            answered = True
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            log.warning("media_job_stopped", work=job["work"], reason=type(error).__name__)
            raise WorkersBusy from None
        finally:
            if answered:
                self._give_back(process)
            else:
                await asyncio.shield(_end(process))
        if outcome != "done":
            log.info("media_job_refused", work=job["work"], outcome=outcome)
            raise JobRefused(outcome)
        return data

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        # No variable of ours, no directory but the package's, a group of its own to be killed with.
        return await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            cwd=_ROOT,
            start_new_session=True,
        )

    def _give_back(self, process: asyncio.subprocess.Process) -> None:
        self._idle.append(process)
        if self._retiring is not None:
            self._retiring.cancel()
        self._retiring = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._retire)

    def _retire(self) -> None:
        """Nothing has been done for a minute: standard input ends, and so do they."""
        while self._idle:
            process = self._idle.pop()
            if process.stdin is not None:
                process.stdin.close()


async def _exchange(process: asyncio.subprocess.Process, job: dict[str, Any]) -> tuple[str, bytes]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("the worker has no pipes")
    process.stdin.write(json.dumps(job).encode() + b"\n")
    await process.stdin.drain()
    head = json.loads(await process.stdout.readuntil(b"\n"))
    if not 0 <= head["size"] <= MAX_OUTCOME:
        raise ValueError("the worker's outcome is too large")
    return head["outcome"], await process.stdout.readexactly(head["size"])


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it with the child that may be at work."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
