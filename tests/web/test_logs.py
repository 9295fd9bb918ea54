"""Q2, R15: what is logged of hostile requests: few records, whole ones, and nothing that steers a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kit.waiting import HANGS

FEW = 5
LONGEST = 5_000


def logged(kind: str) -> tuple[list[str], list[str]]:
    """The lines of the attacks on single records, and those of the storm."""
    command = [sys.executable, "-m", "tests.web.hostile_log", kind]
    done = subprocess.run(command, capture_output=True, timeout=4 * HANGS, check=True)
    assert not done.stderr, done.stderr.decode()[-2000:]
    records, storm = done.stdout.decode("utf-8").split("STORM\n")
    return records.removesuffix("\n").split("\n"), storm.removesuffix("\n").split("\n")


def test_q2_nothing_from_outside_forges_a_record() -> None:
    lines, _ = logged("json")
    for line in lines:
        assert line.isascii() and line.isprintable() and len(line) < LONGEST
        assert {"event", "level", "timestamp"} <= set(json.loads(line))
    assert any(json.loads(line).get("user_id") == "a\\r\\nb\\x1b" for line in lines)


def test_q2_nothing_from_outside_steers_a_terminal() -> None:
    lines, _ = logged("console")
    for line in lines:
        assert line.isprintable() and len(line) < LONGEST
        assert line.startswith(("20", "    | ")), line
    assert any("ValueError: a" in line for line in lines)


@pytest.mark.parametrize("kind", ["json", "console"])
def test_r15_a_storm_of_bad_requests_is_a_few_lines(kind: str) -> None:
    _, lines = logged(kind)
    assert 1 <= len(lines) <= FEW and any("requests_malformed" in line for line in lines), lines
