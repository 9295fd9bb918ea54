"""A worker process: reads jobs, does each in a child of its own under limits, writes the outcomes.

A job is one line of JSON on standard input: `work`, its arguments, and `cpu_seconds`. The outcome is
one line of JSON on standard output, `{"outcome": "done" | "refused" | "failed", "size": n}`, and `n`
bytes after it. A child that is killed by a limit, or breaks, has "failed"; it has seen no other job's
input and takes nothing along.
The worker ends with its standard input.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from lmserver.media.decoding import images

MB = 1 << 20
MAX_MEMORY = 640 * MB
"""Address space of a child; that of the interpreter with its libraries, about 50 MB, is part of it."""

MAX_FILES = 32
MAX_OUTCOME = 8 * MB
NICENESS = 10
_CHUNK = 64 * 1024
_REFUSED = 3
"""Exit status of a child that would not do its job."""


def main() -> None:
    os.nice(NICENESS)
    for line in sys.stdin.buffer:
        outcome, data = _in_a_child(json.loads(line))
        head = json.dumps({"outcome": outcome, "size": len(data)}).encode() + b"\n"
        sys.stdout.buffer.write(head + data)
        sys.stdout.buffer.flush()


def _in_a_child(job: dict[str, Any]) -> tuple[str, bytes]:
    work, cpu_seconds = _work(job.pop("work")), job.pop("cpu_seconds")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(work, job, writing, cpu_seconds)
    os.close(writing)
    data = bytearray()
    with open(reading, "rb", buffering=0) as pipe:
        while len(data) <= MAX_OUTCOME and (chunk := pipe.read(_CHUNK)):
            data += chunk
    _, status = os.waitpid(child, 0)  # one that has more to say dies of the closed pipe
    code = os.waitstatus_to_exitcode(status)
    if code == 0 and len(data) <= MAX_OUTCOME:
        return "done", bytes(data)
    return ("refused" if code == _REFUSED else "failed"), b""


def _be_the_child(work: Callable[..., bytes], job: dict[str, Any], writing: int, cpu_seconds: int) -> None:
    """Never returns, never raises."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        _limit(cpu_seconds)
        data = work(**job)
        with open(writing, "wb") as pipe:
            pipe.write(data)
        code = 0
    except images.Refused:
        code = _REFUSED
    except BaseException:  # noqa: S110 - whatever a decoder raises, the exit status says enough
        pass
    finally:
        os._exit(code)


def _limit(cpu_seconds: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _work(name: str) -> Callable[..., bytes]:
    """What does this work. The reader of pages is loaded when the first page comes: few servers need it."""
    if name == "describe":
        describe: Callable[..., bytes] = importlib.import_module("lmserver.media.decoding.pages").describe
        return describe
    known: dict[str, Callable[..., bytes]] = {"thumbnail": images.thumbnail, "measure": images.measure}
    return known[name]


if __name__ == "__main__":
    main()
