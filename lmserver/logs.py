"""Logging: one line a record, JSON to collect or plain to read, nothing a peer can break out of."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog

MAX_VALUE = 500


def configure(level: str, format_: str) -> None:
    """Set up logging for the process."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.WARNING), format="%(levelname)s %(name)s %(message)s")
    renderer: Any
    if format_ == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        )
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


def _harmless(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Text from outside cannot forge a line or steer a terminal, nor fill the disk."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            shown = value if value.isprintable() else value.encode("unicode_escape").decode("ascii")
            event[key] = shown if len(shown) <= MAX_VALUE else shown[:MAX_VALUE] + "..."
    return event
