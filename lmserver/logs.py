"""Logging: one line a record, JSON to collect or plain to read, nothing a peer can break out of."""

from __future__ import annotations

import logging
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

MAX_VALUE = 500


def configure(level: str, format_: str) -> None:
    """Set up logging for the process."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_Libraries()], force=True)
    renderer: Any
    if format_ == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=_traceback)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if format_ == "json" else []),
            _harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )


class _Libraries(logging.Handler):
    """What libraries log, as a record of ours: with what they quote of a request in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno,
            "library",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info or None,
        )


def _traceback(out: TextIO, exc_info: Any) -> None:
    """Every line of it behind a margin: what an exception quotes cannot look like a record."""
    for line in "".join(traceback.format_exception(*exc_info)).splitlines():
        out.write(f"\n    | {_printable(line)}")


def _printable(value: str) -> str:
    return value if value.isprintable() else value.encode("unicode_escape").decode("ascii")


def _harmless(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Text from outside cannot forge a line or steer a terminal, nor fill the disk."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            shown = _printable(value)
            event[key] = shown if len(shown) <= MAX_VALUE else shown[:MAX_VALUE] + "..."
    return event
