"""Content hashes and reference hashes (D04 §Hashes).

Two content hashes protect what was sent: the LPDU's, made by the sender's server, and the PDU's,
made by the hub. The reference hash covers the redacted event and is its ID. Fields are parsed ones,
or a draft's, which have been checked to have a canonical form.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lmserver.protocol import canonical_json, unpadded_base64
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import RoomVersion

if TYPE_CHECKING:
    from lmserver.protocol.events import Lpdu, Pdu

# `unsigned` is stripped from what arrives; MXD drops it from hashes where D04 forgot it.
_NOT_IN_LPDU_HASH = frozenset({"signatures", "hashes", "unsigned", "auth_events", "prev_events"})
_NOT_IN_PDU_HASH = frozenset({"signatures", "unsigned"})


def lpdu_content_hash(fields: dict[str, Any]) -> str:
    """The LPDU content hash of an LPDU, or of the LPDU inside a PDU (D04 §Content Hash, 1.1)."""
    covered = {key: value for key, value in fields.items() if key not in _NOT_IN_LPDU_HASH}
    return unpadded_base64.encode(sha256(canonical_json.encode_valid(covered)).digest())


def pdu_content_hash(fields: dict[str, Any]) -> str:
    """The content hash of a full event; of `hashes` only `lpdu` is covered (§Content Hash, 1.2)."""
    covered = {key: value for key, value in fields.items() if key not in _NOT_IN_PDU_HASH}
    lpdu = covered.get("hashes", {}).get("lpdu")
    if lpdu is None:
        covered.pop("hashes", None)
    else:
        covered["hashes"] = {"lpdu": lpdu}
    return unpadded_base64.encode(sha256(canonical_json.encode_valid(covered)).digest())


def reference_bytes(fields: dict[str, Any], version: RoomVersion) -> bytes:
    """The bytes that are both signed and hashed for the event ID: redacted, without signatures."""
    redacted = redact(fields, version)
    redacted.pop("signatures", None)
    return canonical_json.encode_valid(redacted)


def event_id_of_bytes(reference: bytes) -> str:
    """The event ID of an event's reference bytes (D04 §Events)."""
    return "$" + unpadded_base64.encode_urlsafe(sha256(reference).digest())


def event_id(fields: dict[str, Any], version: RoomVersion) -> str:
    """The event ID of an LPDU or PDU in the form given."""
    return event_id_of_bytes(reference_bytes(fields, version))


def check_hashes(event: Lpdu | Pdu) -> bool:
    """Whether every content hash the event carries is right (D04 §Receiving Events, step 3)."""
    fields = event.fields
    if event.lpdu_hash is not None and event.lpdu_hash != lpdu_content_hash(fields):
        return False
    claimed = fields["hashes"].get("sha256")
    return claimed is None or claimed == pdu_content_hash(fields)


def with_hashes_enforced(pdu: Pdu) -> Pdu:
    """The event itself, or its redacted copy when a content hash is wrong: same event ID.

    A copy that came redacted is as honest as the event; one with other content was altered.
    """
    if check_hashes(pdu):
        return pdu
    if pdu.fields == redact(pdu.fields, pdu.version):
        return pdu
    return pdu.redacted(altered_from=pdu.canonical)
