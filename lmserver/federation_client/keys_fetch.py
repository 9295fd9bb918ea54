"""Reading a server's published keys (D04 §GET /_matrix/key/v2/server).

A document is either wholly believable (right name, signed by one of its own keys, sane times) or discarded.
Single keys in it that we cannot use are skipped, so an unknown algorithm does not hide a good key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lmserver.federation_client.client import Query, Response, quote_path
from lmserver.federation_client.errors import BadResponse, FederationError
from lmserver.protocol import canonical_json
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.ids import check_key_id
from lmserver.protocol.signatures import VerifyKey, check_json_signature

PATH = "/_matrix/key/v2/server"
QUERY_PATH = "/_matrix/key/v2/query"
MAX_DOCUMENT = 64 * 1024
MAX_NOTARY_ANSWER = 512 * 1024
MAX_KEYS = 32
MAX_OLD_KEYS = 128
MAX_TRUST = 7 * 24 * 3600 * 1000
CLOCK_SKEW = 60_000
TIMEOUT = 10.0


class Requests(Protocol):
    """The one thing that is needed of FederationClient."""

    async def request(
        self,
        method: str,
        destination: str,
        path: str,
        *,
        query: Query | None = None,
        content: canonical_json.JsonObject | None = None,
        timeout: float = ...,
        max_response: int = ...,
    ) -> Response: ...


@dataclass(frozen=True, slots=True)
class KeyDocument:
    """A checked document: `valid_until_ts` is at most seven days from now, expiry times a minute."""

    server: str
    linearized: bool
    valid_until_ts: int
    keys: Mapping[str, VerifyKey]
    old_keys: Mapping[str, tuple[VerifyKey, int]]
    canonical: bytes

    @property
    def key_set(self) -> str:
        """Names the set of key IDs in the document."""
        names = "\n".join(sorted([*self.keys, *self.old_keys]))
        return hashlib.sha256(names.encode()).hexdigest()


def read_document(document: object, server: str, now: int) -> KeyDocument:
    """Raises BadResponse, or SignatureError when none of its own keys signed it."""
    if not isinstance(document, dict):
        raise BadResponse("key document is not an object")
    if document.get("server_name") != server:
        raise BadResponse("key document is for another server")
    valid_until = document.get("valid_until_ts")
    if type(valid_until) is not int:
        raise BadResponse("key document has no valid_until_ts")
    keys = {key_id: key for key_id, key, _ in _keys(document.get("verify_keys"), MAX_KEYS)}
    old: dict[str, tuple[VerifyKey, int]] = {}
    for key_id, key, entry in _keys(document.get("old_verify_keys", {}), MAX_OLD_KEYS):
        expired = entry.get("expired_ts")
        if key_id not in keys and type(expired) is int:
            old[key_id] = (key, min(expired, now + CLOCK_SKEW))
    check_json_signature(document, server, keys)
    # Of the others' signatures none is checked, so none is passed on.
    canonical = canonical_json.encode({**document, "signatures": {server: document["signatures"][server]}})
    linearized = document.get("m.linearized") is True
    return KeyDocument(server, linearized, min(valid_until, now + MAX_TRUST), keys, old, canonical)


async def fetch_document(client: Requests, server: str, now: int) -> KeyDocument:
    """Ask the server itself. Raises a FederationError or SignatureError."""
    response = await client.request("GET", server, PATH, timeout=TIMEOUT, max_response=MAX_DOCUMENT)
    if response.status != 200:
        raise BadResponse("keys are not served", f"status {response.status}")
    return read_document(response.json, server, now)


async def fetch_from_notary(
    client: Requests, notary: str, notary_keys: Mapping[str, VerifyKey], server: str, now: int
) -> list[KeyDocument]:
    """Ask a trusted notary (D04 §GET /_matrix/key/v2/query/:serverName). Raises a FederationError.

    Documents that the notary did not sign, or that are not the server's own, are left out.
    """
    response = await client.request(
        "GET",
        notary,
        QUERY_PATH + quote_path(server),
        query={"minimum_valid_until_ts": "0"},
        timeout=TIMEOUT,
        max_response=MAX_NOTARY_ANSWER,
    )
    answers = response.json.get("server_keys") if isinstance(response.json, dict) else None
    if response.status != 200 or not isinstance(answers, list):
        raise BadResponse("notary has no keys", f"status {response.status}")
    documents = []
    for answer in answers[:MAX_KEYS]:
        try:
            document = read_document(answer, server, now)
            check_json_signature(answer, notary, notary_keys)
        except (FederationError, ProtocolError):
            continue
        documents.append(document)
    return documents


def _keys(listed: object, most: int) -> Iterator[tuple[str, VerifyKey, dict[str, Any]]]:
    """The usable keys of verify_keys or old_verify_keys. Raises BadResponse when there are too many."""
    if not isinstance(listed, dict) or len(listed) > most:
        raise BadResponse("key document lists no keys or too many")
    for key_id, entry in listed.items():
        text = entry.get("key") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            continue
        try:
            check_key_id(key_id)
            key = VerifyKey.from_base64(text)
        except ProtocolError:
            continue
        if key_id.startswith("ed25519:"):
            yield key_id, key, entry
