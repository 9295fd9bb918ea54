"""`lmserver inspect-event`: what our algorithms make of an event, to find out why IDs differ."""

from __future__ import annotations

from typing import Any

from lmserver.protocol import canonical_json, hashes, unpadded_base64
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import Lpdu, Pdu, is_lpdu_shaped, parse_lpdu, parse_pdu
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import LM_02_ID, room_version
from lmserver.protocol.signatures import VerifyKey

Keys = dict[str, dict[str, str]]
"""Server name to key ID to unpadded base64 public key."""


def inspect(data: bytes, version_id: str | None, keys: Keys) -> dict[str, Any]:
    """Everything the draft derives from an event; raises ProtocolError when it is none."""
    fields = canonical_json.parse_object(data)
    version = room_version(version_id or _own_version(fields))
    event: Lpdu | Pdu
    event = parse_lpdu(fields, version) if is_lpdu_shaped(fields) else parse_pdu(fields, version)
    is_pdu = isinstance(event, Pdu)
    return {
        "form": "pdu" if is_pdu else "lpdu",
        "room_version": version.id,
        "content_hash": hashes.pdu_content_hash(event.fields) if is_pdu else None,
        "lpdu_content_hash": hashes.lpdu_content_hash(event.fields) if event.lpdu_hash is not None else None,
        "hashes_ok": hashes.check_hashes(event),
        "event_id": event.event_id,
        "redacted": redact(event.fields, version),
        "canonical": event.reference_bytes.decode("utf-8"),
        "signatures": _signatures(event, keys),
    }


def _own_version(fields: dict[str, Any]) -> str:
    """A create event names its room's version; otherwise the one peers test with."""
    content = fields.get("content")
    named = content.get("room_version") if isinstance(content, dict) else None
    return named if fields.get("type") == "m.room.create" and isinstance(named, str) else LM_02_ID


def _signatures(event: Lpdu | Pdu, keys: Keys) -> dict[str, dict[str, str]]:
    """Each signature over the form its server signs: the sender's server the LPDU when another
    server is the hub, everybody else the event as it is."""
    verdicts: dict[str, dict[str, str]] = {}
    through_hub = isinstance(event, Pdu) and event.hub_server not in (None, event.server)
    for server, by_key in event.fields["signatures"].items():
        signs_lpdu = through_hub and server == event.server
        message = event.lpdu_reference_bytes if signs_lpdu else event.reference_bytes
        verdicts[server] = {
            key_id: _verdict(keys.get(server, {}).get(key_id), message, signature)
            for key_id, signature in by_key.items()
        }
    return verdicts


def _verdict(key: str | None, message: bytes, signature: str) -> str:
    if key is None:
        return "unknown"
    try:
        VerifyKey.from_base64(key).verify(message, unpadded_base64.decode(signature))
    except ProtocolError:
        return "invalid"
    return "valid"
