"""How many answers one request may get, and how much of them is parsed at once (attack F10).

aiohttp reads interim answers (1xx) without end and parses all it has received in one go: a server that
floods us with them would hold up everybody else. There is no setting for it, so its protocol class is
narrowed here; tests/federation_client/test_outbound_attacks.py notices if that stops working.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

MAX_ANSWERS = 8  # to one request: a few interim ones and the final one
HEAD_PIECE = 4 * 1024
BODY_PIECE = 64 * 1024


class LimitedConnector(aiohttp.TCPConnector):
    """Makes connections that end when too many answers come."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        limited: Callable[[], ResponseHandler] = functools.partial(_LimitedHandler, loop=self._loop)
        self._factory = functools.partial(limited)


class _LimitedHandler(ResponseHandler):
    _answers = 0

    def set_response_params(self, **params: Any) -> None:
        """Called once for each request on the connection."""
        self._answers = 0
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Called once for each answer."""
        self._answers += 1
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        piece = HEAD_PIECE if self._payload is None or self._payload.is_eof() else BODY_PIECE
        for start in range(0, max(1, len(data)), piece):  # empty data resumes what was paused
            super().data_received(data[start : start + piece])
            if self._answers > MAX_ANSWERS:
                if self.transport is not None:
                    self.transport.abort()
                return
