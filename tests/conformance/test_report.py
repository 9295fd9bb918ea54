"""What a person and a script read of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

from lmserver.conformance import checks
from lmserver.conformance.model import Outcome, Result
from lmserver.conformance.options import Options
from lmserver.conformance.report import Printer, write_json

RESULTS = [
    Result(checks.ALL[0], Outcome.PASS),
    Result(checks.ALL[1], Outcome.FAIL, "answered \x1b[2J\x07", 0.5, [{"request": "GET /"}]),
    Result(checks.ALL[2], Outcome.SKIP, "needs more"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(out: io.StringIO) -> str:
    printer = Printer(out, verbose=False, total=len(RESULTS))
    for result in RESULTS:
        printer.result(result)
    printer.table(RESULTS)
    return out.getvalue()


def test_a_server_cannot_write_to_the_terminal() -> None:
    for out in (io.StringIO(), Terminal()):
        text = printed(out)
        assert "answered ?[2J?" in text
        assert "\x07" not in text


def test_colour_and_progress_are_for_terminals_alone() -> None:
    assert "\x1b" not in printed(io.StringIO()) and "\r" not in printed(io.StringIO())
    assert "\x1b[31;1mFAIL" in printed(Terminal()) and "2/3" in printed(Terminal())


def test_the_table_counts_and_says_why_checks_were_skipped() -> None:
    text = printed(io.StringIO())
    assert text.splitlines()[-2].split() == ["all", "1", "1", "-", "1"]
    assert text.splitlines()[-1] == "skipped 1: needs more"


def test_the_json_holds_the_exchanges_of_failures(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_json(file, Options("a.example.org", "b.example.org"), RESULTS)
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["counts"] == {"pass": 1, "fail": 1, "warn": 0, "skip": 1}
    assert report["checks"][1]["exchanges"] == [{"request": "GET /"}]
