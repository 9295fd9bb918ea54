"""Our signing keys, and those of others that we know (D04 §Retrieving Server Keys)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lmserver.protocol import ids, unpadded_base64
from lmserver.protocol.signatures import SigningKey, sign_json
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param

VALID_MS = 12 * 60 * 60 * 1000
MAX_NAMES = 100

Documents = Callable[[str, int], Awaitable[Sequence[dict[str, Any]]]]
"""Stored key documents of a server that are valid until a time, as their origin signed them."""


class KeyEndpoints:
    """Unauthenticated: keys are what authentication begins with."""

    def __init__(
        self, key: SigningKey, documents: Documents, clock: Callable[[], int], *, linearized: bool
    ) -> None:
        self._key = key
        self._documents = documents
        self._clock = clock
        self._linearized = linearized

    def own_document(self) -> dict[str, Any]:
        """Our keys, valid 12 hours, signed by themselves."""
        document: dict[str, Any] = {
            "server_name": self._key.server_name,
            "valid_until_ts": self._clock() + VALID_MS,
            "verify_keys": {
                self._key.key_id: {"key": unpadded_base64.encode(self._key.verify_key.key_bytes)}
            },
            "old_verify_keys": {},
        }
        if self._linearized:
            document["m.linearized"] = True
        return sign_json(document, self._key)

    @endpoint("GET", "/_matrix/key/v2/server", auth=Auth.NONE)
    async def server(self, request: Request) -> dict[str, Any]:
        """Our keys."""
        return self.own_document()

    @endpoint("GET", "/_matrix/key/v2/query/{server_name}", auth=Auth.NONE)
    async def query(self, request: Request) -> dict[str, Any]:
        """Keys of another server that we have seen, with our signature added."""
        minimum = request.query.get("minimum_valid_until_ts", "0")
        if not minimum.isascii() or not minimum.isdigit() or len(minimum) > 16:
            raise bad_param("minimum_valid_until_ts is not an integer")
        return {"server_keys": await self._of(request.params["server_name"], int(minimum))}

    @endpoint("POST", "/_matrix/key/v2/query", auth=Auth.NONE)
    async def query_many(self, request: Request) -> dict[str, Any]:
        """The same for several servers."""
        wanted = (await request.json()).get("server_keys")
        if not isinstance(wanted, dict) or len(wanted) > MAX_NAMES:
            raise bad_json(f"server_keys is an object of at most {MAX_NAMES} servers")
        found: list[dict[str, Any]] = []
        for name, criteria in wanted.items():
            if not isinstance(criteria, dict):
                raise bad_json("the criteria of a server are an object")
            minimums = [c.get("minimum_valid_until_ts", 0) for c in criteria.values() if isinstance(c, dict)]
            minimum = max((m for m in minimums if type(m) is int), default=0)
            found += await self._of(name, minimum)
        return {"server_keys": found}

    async def _of(self, name: str, minimum: int) -> list[dict[str, Any]]:
        if name == self._key.server_name:
            return [self.own_document()]
        if not ids.is_server_name(name):
            return []
        return [sign_json(document, self._key) for document in await self._documents(name, minimum)]
