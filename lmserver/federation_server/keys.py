"""Our keys for the world, and other servers' keys as a notary (D04 §Retrieving Server Keys)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lmserver.federation_client.keys_fetch import MAX_TRUST
from lmserver.own_keys import OldKey
from lmserver.protocol import ids, unpadded_base64
from lmserver.protocol.signatures import SigningKey, sign_json
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param

VALID_MS = 12 * 3600 * 1000
MAX_NAMES = 100
MAX_OLD_KEYS = 100
"""Others read only so many; whoever came late to a room asks for those of its last years."""
MAX_TS = 2**53 - 1
MAX_BODY = 64 * 1024
_RATE = "key_query"


class KeyDocuments(Protocol):
    """Key documents of other servers, as they signed them, by server name and newest first.

    `wanted` is name to the time (ms) until which keys have to be valid; 0: whatever there is.
    """

    async def documents(self, wanted: Mapping[str, int]) -> Mapping[str, Sequence[dict[str, Any]]]: ...


class KeyEndpoints:
    """/_matrix/key/v2: open to everybody, X-Matrix ignored (attack X13)."""

    def __init__(
        self,
        key: SigningKey,
        old_keys: Mapping[str, OldKey],
        documents: KeyDocuments,
        clock: Callable[[], int],
        *,
        linearized: bool,
    ) -> None:
        self._key = key
        self._old_keys = old_keys
        self._documents = documents
        self._clock = clock
        self._linearized = linearized

    @endpoint("GET", "/_matrix/key/v2/server", auth=Auth.NONE)
    async def server(self, request: Request) -> dict[str, Any]:
        """Our own keys, valid for twelve hours."""
        return self._own()

    @endpoint("GET", "/_matrix/key/v2/query/{server_name}", auth=Auth.NONE, rate=_RATE)
    async def query(self, request: Request) -> dict[str, Any]:
        """One server's keys, signed by us too."""
        name = request.params["server_name"]
        if not ids.is_server_name(name):
            raise bad_param("The server name is not valid")
        text = request.query.get("minimum_valid_until_ts", "0")
        if not (text.isascii() and text.isdecimal() and len(text) <= 16):
            raise bad_param("minimum_valid_until_ts is an integer")
        return await self._answer({name: {}}, {name: int(text)})

    @endpoint("POST", "/_matrix/key/v2/query", auth=Auth.NONE, max_body=MAX_BODY, rate=_RATE)
    async def query_many(self, request: Request) -> dict[str, Any]:
        """Several servers' keys: documents in which a requested key ID stands, or all without key IDs."""
        wanted = (await request.json()).get("server_keys")
        if not isinstance(wanted, dict) or len(wanted) > MAX_NAMES:
            raise bad_json(f"server_keys is an object of at most {MAX_NAMES} servers")
        by_name = {name: _minimums(keys) for name, keys in wanted.items() if ids.is_server_name(name)}
        return await self._answer(by_name, {name: min(m.values(), default=0) for name, m in by_name.items()})

    async def _answer(
        self, by_name: Mapping[str, Mapping[str, int]], least: Mapping[str, int]
    ) -> dict[str, Any]:
        others = {name: until for name, until in least.items() if name != self._key.server_name}
        found = await self._documents.documents(others)
        now = self._clock()
        answer = [self._own()] if least.get(self._key.server_name, MAX_TS) <= now + VALID_MS else []
        for name in others:
            answer += [sign_json(d, self._key) for d in found[name] if _asked_for(d, by_name[name], now)]
        return {"server_keys": answer}

    def _own(self) -> dict[str, Any]:
        newest = sorted(self._old_keys.items(), key=lambda item: -item[1].expired_ts)[:MAX_OLD_KEYS]
        document: dict[str, Any] = {
            "server_name": self._key.server_name,
            "valid_until_ts": self._clock() + VALID_MS,
            "verify_keys": {
                self._key.key_id: {"key": unpadded_base64.encode(self._key.verify_key.key_bytes)}
            },
            "old_verify_keys": {
                key_id: {"expired_ts": old.expired_ts, "key": unpadded_base64.encode(old.key.key_bytes)}
                for key_id, old in newest
            },
        }
        if self._linearized:
            document["m.linearized"] = True
        return sign_json(document, self._key)


def _minimums(criteria: object) -> dict[str, int]:
    """Key ID to minimum_valid_until_ts; what is malformed asks for nothing in particular."""
    items = criteria.items() if isinstance(criteria, dict) else ()
    times = {i: c.get("minimum_valid_until_ts") if isinstance(c, dict) else None for i, c in items}
    return {i: t if type(t) is int and 0 <= t <= MAX_TS else 0 for i, t in times.items()}


def _asked_for(document: Mapping[str, Any], minimums: Mapping[str, int], now: int) -> bool:
    """Whether a key ID that was asked for stands in it and is valid for long enough."""
    valid = min(document["valid_until_ts"], now + MAX_TRUST)
    listed = {*document["verify_keys"], *document.get("old_verify_keys", {})}
    return not minimums or any(i in listed and valid >= until for i, until in minimums.items())
