"""What a hub decides: whether an event may be appended, and the full PDU that is (D04 §Linearized PDU).

Pure: the engine hands in the room as it stands at the head and acts on the decision. The hub
chooses `prev_events` and `auth_events`, adds its hash and its signature, and changes nothing of
what the sender's server signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.protocol import hashes, ids
from lmserver.protocol.auth_rules import authorize, check_create, select_auth_events
from lmserver.protocol.errors import AuthRejected, InvalidJson, SchemaError, TooLarge
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.hashes import pdu_content_hash
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import MAX_EVENT_BYTES, RoomVersion
from lmserver.protocol.room_view import RoomView, StateEvent
from lmserver.protocol.signatures import Signer
from lmserver.protocol.state_map import StateMap


@dataclass(frozen=True, slots=True)
class Append:
    """Append this event at the head."""

    pdu: Pdu


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse; `rule` is the auth rule of D04 that says so, if one does."""

    errcode: str
    reason: str
    rule: str | None = None


Decision = Append | Reject


def decide(event: Lpdu | EventDraft, view: RoomView, key: Signer) -> Decision:
    """Authorize an event against the head of its room and complete it.

    An LPDU's schema and signatures have been checked before (D04 §Receiving Events, steps 1-2);
    a wrong content hash turns the completed event into its redacted copy (step 3).
    """
    try:
        if isinstance(event, Lpdu):
            return Append(_decide_lpdu(event, view, key))
        authorize(event, view)
        return Append(complete_draft(event, view, key))
    except AuthRejected as error:
        return Reject("M_FORBIDDEN", error.reason, error.rule)
    except TooLarge as error:
        return Reject("M_TOO_LARGE", str(error))
    except (InvalidJson, SchemaError) as error:
        return Reject("M_BAD_JSON", str(error))


def _decide_lpdu(lpdu: Lpdu, view: RoomView, key: Signer) -> Pdu:
    if lpdu.hub_server != view.hub or view.hub != key.server_name:
        raise AuthRejected("hub", "hub_server is not the hub of the room")
    if lpdu.server == key.server_name:
        raise AuthRejected("hub", "our own users do not send LPDUs to us")
    if not hashes.check_hashes(lpdu):
        # D04 §Receiving Events, step 3: redacted before further processing.
        lpdu = redacted_lpdu(lpdu)
    authorize(lpdu, view)
    return complete_lpdu(lpdu, view, key)


def redacted_lpdu(lpdu: Lpdu) -> Lpdu:
    """The redacted copy of an LPDU: the same signature, the same LPDU event ID."""
    return Lpdu(redact(lpdu.fields, lpdu.version), lpdu.version)


def complete_lpdu(lpdu: Lpdu, view: RoomView, key: Signer) -> Pdu:
    """Add the fields only the hub can set; raises TooLarge."""
    fields = dict(lpdu.fields)
    # Only the sender's signatures count; junk of others would be carried for ever.
    signatures = {lpdu.server: lpdu.fields["signatures"].get(lpdu.server, {})}
    fields["hashes"] = {"lpdu": lpdu.fields["hashes"]["lpdu"]}
    return _finish(fields, lpdu, view, key, signatures)


def complete_draft(draft: EventDraft, view: RoomView, key: Signer) -> Pdu:
    """The hub's own user's event: no hub_server, no LPDU hash, one signature (both peers' form)."""
    return _finish(draft.fields(), draft, view, key, {})


def create_event(draft: EventDraft, version: RoomVersion, key: Signer) -> Pdu:
    """The event at position 0; raises AuthRejected when the draft may not start a room."""
    fields = {**draft.fields(), "auth_events": [], "prev_events": []}
    pdu = _hash_and_sign(fields, version, key, {})
    check_create(pdu)
    return pdu


def view_of_create(pdu: Pdu) -> RoomView:
    """The room right after its create event."""
    state = {(pdu.type, ""): state_event(pdu)}
    return RoomView(
        room_id=pdu.room_id,
        version=pdu.version,
        hub=ids.server_of(pdu.sender),
        head_event_id=pdu.event_id,
        head_position=0,
        state=state,
    )


def state_event(pdu: Pdu) -> StateEvent:
    """What later rules need of a state event."""
    return StateEvent(pdu.event_id, pdu.type, pdu.state_key or "", pdu.sender, pdu.content)


def advance(view: RoomView, pdu: Pdu, *, position: int | None = None, applies: bool = True) -> RoomView:
    """The room after an event; a soft-failed one (`applies` false) moves the head only.

    The state is shared as far as it stays the same.
    """
    state = view.state
    if applies and pdu.state_key is not None:
        before = state if isinstance(state, StateMap) else StateMap(state)
        state = before.changed(state_event(pdu))
    at = view.head_position + 1 if position is None else position
    # Named fields rather than dataclasses.replace, which costs ten times as much, per event.
    return RoomView(view.room_id, view.version, view.hub, pdu.event_id, at, state)


def _finish(
    fields: dict[str, Any],
    event: Lpdu | EventDraft,
    view: RoomView,
    key: Signer,
    signatures: dict[str, Any],
) -> Pdu:
    fields["auth_events"] = select_auth_events(event, view)
    fields["prev_events"] = [view.head_event_id]
    return _hash_and_sign(fields, view.version, key, signatures)


def _hash_and_sign(
    fields: dict[str, Any], version: RoomVersion, key: Signer, signatures: dict[str, Any]
) -> Pdu:
    content_hash = pdu_content_hash(fields)
    fields["hashes"] = {**fields.get("hashes", {}), "sha256": content_hash}
    fields["signatures"] = signatures
    pdu = Pdu(fields, version)
    # Signatures are not part of the reference bytes, so signing afterwards changes no ID.
    key.sign_into(signatures, pdu.reference_bytes)
    if pdu.size() > MAX_EVENT_BYTES:
        raise TooLarge("event is too large")
    return pdu
