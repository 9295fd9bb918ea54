"""What came out: a line for each check, a table of sections, a file of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from lmserver.conformance.model import Check, Outcome, Result
from lmserver.conformance.options import Options

_MARKS = {Outcome.PASS: "pass", Outcome.FAIL: "FAIL", Outcome.WARN: "warn", Outcome.SKIP: "skip"}
_COLOURS = {Outcome.PASS: "32", Outcome.FAIL: "31;1", Outcome.WARN: "33", Outcome.SKIP: "90"}


class Printer:
    """Tells a person how it goes; colour only on a terminal."""

    def __init__(self, out: TextIO, *, verbose: bool, total: int) -> None:
        self._out = out
        self._verbose = verbose
        self._total = total
        self._done = 0
        self._terminal = out.isatty()

    def result(self, result: Result) -> None:
        """A line for what failed, with --verbose for everything; else a count that moves."""
        self._done += 1
        if self._verbose or result.outcome in (Outcome.FAIL, Outcome.WARN):
            self._clear()
            self._line(result)
        if self._terminal and not self._verbose:
            self._out.write(f"\r{self._done}/{self._total} {result.check.id:<50.50}")
            self._out.flush()

    def table(self, results: Sequence[Result]) -> None:
        """Counts by section of the draft, then by outcome."""
        self._clear()
        sections = dict.fromkeys(result.check.section for result in results)
        width = max(len(section) for section in sections)
        self._say(f"\n{'section':<{width}}  pass  fail  warn  skip")
        for section in sections:
            of_section = [r for r in results if r.check.section == section]
            self._say(f"{section:<{width}}  " + "  ".join(self._count(of_section, o) for o in _MARKS))
        self._say(f"{'all':<{width}}  " + "  ".join(self._count(results, o) for o in _MARKS))
        self._skips(results)

    def _skips(self, results: Sequence[Result]) -> None:
        reasons = [r.detail for r in results if r.outcome is Outcome.SKIP]
        for reason in dict.fromkeys(reasons):
            self._say(f"skipped {reasons.count(reason)}: {_plain(reason)}")

    def _line(self, result: Result) -> None:
        check = result.check
        mark = self._paint(result.outcome, _MARKS[result.outcome])
        self._say(f"{mark}  {check.id}  [{check.level.value}, {check.section}]  {check.text}")
        if result.detail:
            self._say(f"      {_plain(result.detail)}")
        if self._verbose:
            for entry in result.exchanges:
                self._say(f"      {entry['direction']}: {_plain(entry['request'])} {_plain(entry['body'])}")
                self._say(f"        {entry['status']} {_plain(entry['answer'])}")

    def _count(self, results: Sequence[Result], outcome: Outcome) -> str:
        number = sum(r.outcome is outcome for r in results)
        text = f"{number or '-':>4}"
        return self._paint(outcome, text) if number else text

    def _paint(self, outcome: Outcome, text: str) -> str:
        return f"\x1b[{_COLOURS[outcome]}m{text}\x1b[0m" if self._terminal else text

    def _clear(self) -> None:
        if self._terminal and not self._verbose:
            self._out.write("\r\x1b[K")

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def _plain(text: str) -> str:
    """Text that a server may have had a hand in, without what a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text)


def print_list(checks: Sequence[Check]) -> None:
    """Every check by section."""
    for section in dict.fromkeys(check.section for check in checks):
        print(section)
        for check in checks:
            if check.section == section:
                print(f"  {check.id:<36} {check.level.value:<6} {check.role.value:<11} {check.text}")
    print(f"{len(checks)} checks")


def write_json(path: Path, options: Options, results: Sequence[Result]) -> None:
    """The whole report; raises OSError."""
    document: dict[str, Any] = {
        "server": options.server,
        "as": options.name,
        "form": "stable" if options.stable else "unstable",
        "counts": {o.value: sum(r.outcome is o for r in results) for o in Outcome},
        "checks": [_as_json(result) for result in results],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "id": result.check.id,
        "section": result.check.section,
        "text": result.check.text,
        "level": result.check.level.value,
        "role": result.check.role.value,
        "outcome": result.outcome.value,
        "detail": result.detail,
        "seconds": round(result.seconds, 3),
        "exchanges": result.exchanges,
    }


def printer(*, verbose: bool, total: int) -> Printer:
    return Printer(sys.stdout, verbose=verbose, total=total)
