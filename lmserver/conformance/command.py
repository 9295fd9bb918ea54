"""`lmserver conformance SERVER --as NAME`, from arguments to exit status."""

from __future__ import annotations

import argparse
import asyncio
import sys

from lmserver.conformance import report, runner
from lmserver.conformance.model import Outcome
from lmserver.conformance.options import options_of

CANNOT_RUN = 2


def run(parsed: argparse.Namespace) -> int:
    """0 when nothing failed, 1 when something did, 2 when the suite could not run."""
    if parsed.list:
        report.print_list(runner.chosen(parsed.only))
        return 0
    try:
        options = options_of(parsed)
        printer = report.printer(verbose=parsed.verbose, total=len(runner.chosen(options.only)))
        results = asyncio.run(runner.run(options, printer.result))
        printer.table(results)
        if parsed.json is not None:
            report.write_json(parsed.json, options, results)
    except (ValueError, OSError, runner.CannotRun) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return CANNOT_RUN
    bad = {Outcome.FAIL, Outcome.WARN} if parsed.strict else {Outcome.FAIL}
    return 1 if any(result.outcome in bad for result in results) else 0
