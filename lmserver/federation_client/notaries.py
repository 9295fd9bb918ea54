"""Asking the configured notaries for a server's keys (D04 §Retrieving Server Keys; attack K1).

Who asks has asked the server itself before. A document counts if the server signed it with a key in
it and the notary signed it too. All notaries are asked at once; of a key ID that two of them tell
differently the first configured is believed, and the difference is kept as a conflict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog

from lmserver.config_notaries import Notary
from lmserver.federation_client.keys_fetch import KeyDocument, Requests, fetch_from_notary
from lmserver.protocol.signatures import VerifyKey

MAX_SECONDS: Final = 15.0

KeysOf = Callable[[str], Awaitable[Mapping[str, VerifyKey]]]
"""The keys that a server lists as current; raises KeysUnavailable."""

log = structlog.get_logger(__name__)


class Notaries:
    """The configured notaries; `told` is never about ourselves, nor by a server about itself."""

    def __init__(self, client: Requests, notaries: Sequence[Notary], our_name: str) -> None:
        self._client = client
        self._notaries = [notary for notary in notaries if notary.name != our_name]

    async def told(self, server: str, now: int, keys_of: KeysOf) -> list[tuple[str, KeyDocument]]:
        """(notary, document) for each document that counts, in the order of the configuration."""
        asked = [notary for notary in self._notaries if notary.name != server]
        tasks = [asyncio.create_task(self._ask(notary, server, now, keys_of)) for notary in asked]
        if not tasks:
            return []
        try:
            await asyncio.wait(tasks, timeout=MAX_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        told: list[tuple[str, KeyDocument]] = []
        for notary, answer in zip(asked, answers, strict=True):
            if isinstance(answer, list):
                told += [(notary.name, document) for document in answer]
            else:
                log.info("notary_failed", notary=notary.name, server=server, reason=str(answer))
        return told

    async def _ask(self, notary: Notary, server: str, now: int, keys_of: KeysOf) -> list[KeyDocument]:
        keys = notary.keys or await keys_of(notary.name)
        return await fetch_from_notary(self._client, notary.name, keys, server, now)
