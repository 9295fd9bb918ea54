"""Key documents as servers publish them, servers that publish them, and events signed with such keys."""

from __future__ import annotations

import asyncio
from typing import Any

from lmserver.federation_client.client import Response
from lmserver.federation_client.errors import Unreachable
from lmserver.protocol import unpadded_base64
from lmserver.protocol.events import Pdu, parse_pdu
from lmserver.protocol.hashes import lpdu_content_hash, pdu_content_hash
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import SigningKey, sign_json

HOUR = 3_600_000
NOW = 1_700_000_000_000


def key(server: str, key_id: str = "ed25519:1", seed: int = 1) -> SigningKey:
    return SigningKey.from_seed(server, key_id, bytes([seed]) * 32)


OURS = key("us.test", "ed25519:us", 9)
PEER = key("peer.test")
SECOND = key("peer.test", "ed25519:2", 2)


def public(signing_key: SigningKey) -> str:
    return unpadded_base64.encode(signing_key.verify_key.key_bytes)


def document(
    *keys: SigningKey,
    old: dict[SigningKey, int] | None = None,
    valid_until: int = NOW + 12 * HOUR,
    linearized: object = None,
) -> dict[str, Any]:
    """A key document as the owner of `keys` would publish it."""
    body: dict[str, Any] = {
        "server_name": keys[0].server_name,
        "valid_until_ts": valid_until,
        "verify_keys": {k.key_id: {"key": public(k)} for k in keys},
        "old_verify_keys": {
            k.key_id: {"key": public(k), "expired_ts": expired} for k, expired in (old or {}).items()
        },
    }
    if linearized is not None:
        body["m.linearized"] = linearized
    for signing_key in keys:
        body = sign_json(body, signing_key)
    return body


class Peers:
    """Answers key requests from a dictionary of documents, and counts them."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.notary: dict[tuple[str, str], list[Any]] = {}
        self.odd: dict[str, Any] = {}
        self.asked: list[str] = []
        self.questions: list[str] = []
        self.pause = 0.0
        self.slow: set[str] = set()

    async def request(self, method: str, destination: str, path: str, **_options: Any) -> Response:
        await asyncio.sleep(self.pause)
        if path.startswith("/_matrix/key/v2/query/"):
            self.questions.append(destination)
            if destination in self.slow:
                await asyncio.sleep(3600)
            if destination in self.odd:
                return Response(200, self.odd[destination])
            return Response(200, {"server_keys": self.notary.get((destination, path.rsplit("/", 1)[1]), [])})
        assert (method, path) == ("GET", "/_matrix/key/v2/server")
        self.asked.append(destination)
        if destination in self.slow:
            await asyncio.sleep(3600)
        if destination not in self.documents:
            raise Unreachable("server could not be reached")
        return Response(200, self.documents[destination])


class Millis:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def event(
    *keys: SigningKey, ts: int = NOW, signatures: dict[str, Any] | None = None, body: str = "hi"
) -> Pdu:
    """A message of a user of the first key's server in that server's own room."""
    server = keys[0].server_name
    fields: dict[str, Any] = {
        "room_id": f"!room:{server}",
        "type": "m.room.message",
        "sender": f"@alice:{server}",
        "origin_server_ts": ts,
        "content": {"body": body},
        "auth_events": ["$" + "a" * 43],
        "prev_events": ["$" + "b" * 43],
    }
    fields["hashes"] = {"sha256": pdu_content_hash(fields)}
    signed = redact(fields, LM_02)
    for signing_key in keys:
        signed = sign_json(signed, signing_key)
    merged = dict(signed["signatures"][server])
    merged.update(signatures or {})
    return parse_pdu({**fields, "signatures": {server: merged}}, LM_02)


def through_hub(sender: SigningKey, hub: SigningKey, *, ts: int = NOW) -> Pdu:
    """A participant's message as its hub passes it on, with both signatures."""
    fields: dict[str, Any] = {
        "room_id": f"!room:{hub.server_name}",
        "type": "m.room.message",
        "sender": f"@alice:{sender.server_name}",
        "origin_server_ts": ts,
        "hub_server": hub.server_name,
        "content": {"body": "hi"},
    }
    fields["hashes"] = {"lpdu": {"sha256": lpdu_content_hash(fields)}}
    signatures = sign_json(redact(fields, LM_02), sender)["signatures"]
    fields |= {"auth_events": ["$" + "a" * 43], "prev_events": ["$" + "b" * 43]}
    fields["hashes"] = {**fields["hashes"], "sha256": pdu_content_hash(fields)}
    signatures |= sign_json(redact(fields, LM_02), hub)["signatures"]
    return parse_pdu({**fields, "signatures": signatures}, LM_02)


BAD = unpadded_base64.encode(b"\x01" * 64)
