"""Drills in their short form belong to `make test`; `make drills` sets LMSERVER_DRILLS=long for more rounds."""

from __future__ import annotations

import os

LONG = os.environ.get("LMSERVER_DRILLS") == "long"


def rounds(short: int, long: int) -> int:
    """How often a drill does what it does."""
    return long if LONG else short
