"""What a participant decides about the events its hub sends, and how it makes its own LPDUs.

The hub is trusted with order, never with content: every event is checked as if the hub were
hostile. An event that breaks a rule keeps its link, because the list must hash, but is
soft-failed and kept as evidence (D04 §Conventions, "Soft Failure").
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from lmserver.protocol import hashes
from lmserver.protocol.auth_rules import authorize, check_auth_events
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.room_versions import RoomVersion
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey


@dataclass(frozen=True, slots=True)
class Apply:
    """Append at the head and let it change the state."""

    pdu: Pdu


@dataclass(frozen=True, slots=True)
class SoftFail:
    """Append at the head, show it to nobody, keep evidence of `kind`."""

    pdu: Pdu
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Events between the head and `prev_event_id` are missing."""

    prev_event_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not appended at all: the event cannot have a place in our list."""

    kind: str
    reason: str


Decision = Apply | SoftFail | Gap | Refuse


def decide(pdu: Pdu, view: RoomView, *, seen_lpdus: Container[tuple[str, str]]) -> Decision:
    """Place and check one PDU of the hub, its signatures and hashes having been checked.

    `seen_lpdus` says which LPDUs (by `lpdu_key`) the room already has: an LPDU's signature covers no
    position, so a hub could append an old one again (protocol decision "Replay").
    """
    if pdu.type == "m.room.create":
        return Refuse("second_create", "a room has one m.room.create")
    if pdu.hub_server is not None and pdu.hub_server != view.hub:
        return Refuse("wrong_hub", "hub_server is not the hub of the room")
    if pdu.hub_server is None and pdu.server != view.hub:
        return Refuse("bypassed_hub", "an event of a participant came without its hub")
    if len(pdu.prev_events) != 1:
        return Refuse("prev_events", "exactly one prev_event is needed")
    if pdu.prev_events[0] != view.head_event_id:
        return Gap(pdu.prev_events[0])
    if pdu.lpdu_key is not None and pdu.lpdu_key in seen_lpdus:
        return SoftFail(pdu, "replay", "the same LPDU stands in the room already")
    try:
        check_auth_events(pdu, view)
        authorize(pdu, view)
    except AuthRejected as error:
        return SoftFail(pdu, "auth", f"rule {error.rule}: {error.reason}")
    return Apply(pdu)


def build_lpdu(draft: EventDraft, version: RoomVersion, hub: str, key: SigningKey) -> Lpdu:
    """Our user's event as the LPDU the hub expects: hashed, then signed in its redacted form.

    Raises InvalidJson when the content is not canonical JSON.
    """
    fields = {**draft.fields(), "hub_server": hub}
    fields["hashes"] = {"lpdu": {"sha256": hashes.lpdu_content_hash(fields)}}
    signatures: dict[str, dict[str, str]] = {}
    fields["signatures"] = signatures
    lpdu = Lpdu(fields, version)
    signatures[key.server_name] = {key.key_id: key.sign_base64(lpdu.reference_bytes)}
    return lpdu
