"""Participants with one thing broken, each with all that follows from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import orjson

from lmserver.conformance import checks
from lmserver.federation_server import edus, events, membership, rooms_known
from lmserver.protocol import hashes, participant, transport
from lmserver.protocol.events import Lpdu
from lmserver.rooms import invites, own_lpdus
from lmserver.web.errors import ApiError
from tests.conformance.hub_mutants import forgets_transactions
from tests.conformance.mutants import Mutant, Patch


def _changed_lpdus(change: Callable[[Any, Any], Any]) -> Callable[[Patch], None]:
    """A mutant whose messages are `change`d (LPDU, signing key) after they are made."""

    def breaks(patch: Patch) -> None:
        build = participant.build_lpdu

        def changed(draft: Any, version: Any, hub: str, key: Any) -> Any:
            made = build(draft, version, hub, key)
            return change(made, key) if made.type == "m.room.message" else made

        patch.setattr(own_lpdus, "build_lpdu", changed)

    return breaks


def _signed(fields: dict[str, Any], version: Any, key: Any) -> Lpdu:
    lpdu = Lpdu({**fields, "signatures": {}}, version)
    signature = {key.server_name: {key.key_id: key.sign_base64(lpdu.reference_bytes)}}
    return Lpdu({**fields, "signatures": signature}, version)


def _wrong_hash(lpdu: Any, key: Any) -> Any:
    wrong = {"lpdu": {"sha256": hashes.lpdu_content_hash({**lpdu.fields, "origin_server_ts": 0})}}
    return _signed({**lpdu.fields, "hashes": wrong}, lpdu.version, key)


def _with_place(lpdu: Any, key: Any) -> Any:
    return Lpdu({**lpdu.fields, "prev_events": []}, lpdu.version)


def _unsigned(lpdu: Any, key: Any) -> Any:
    return Lpdu({**lpdu.fields, "signatures": {key.server_name: {}}}, lpdu.version)


def _planted(lpdu: Any, key: Any) -> Any:
    fields = {**lpdu.fields, "depth": 1}
    fields["hashes"] = {"lpdu": {"sha256": hashes.lpdu_content_hash(fields)}}
    return _signed(fields, lpdu.version, key)


def no_auth_rules(patch: Patch) -> None:
    patch.setattr(participant, "authorize", lambda event, view: None)
    patch.setattr(participant, "check_auth_events", lambda pdu, view: None)


def not_found_instead(patch: Patch) -> None:
    async def view(*arguments: Any) -> Any:
        try:
            return await rooms_known.hub_view(*arguments)
        except ApiError as error:
            raise ApiError(404, "M_NOT_FOUND", error.error) from error

    patch.setattr(membership, "hub_view", view)
    patch.setattr(events, "hub_view", view)


def any_room_version(patch: Patch) -> None:
    known = invites.room_version
    patch.setattr(
        invites,
        "room_version",
        lambda id_: known(id_ if id_ == "I.1" else "org.matrix.i-d.ralston-mimi-linearized-matrix.02"),
    )


def strips_the_hubs_signature(patch: Patch) -> None:
    both = membership._both

    def only_own(event: bytes) -> bytes:
        fields = orjson.loads(event)
        hub = fields["room_id"].partition(":")[2]
        fields["signatures"].pop(hub)
        return both(orjson.dumps(fields))

    patch.setattr(membership, "_both", only_own)


def no_destination(patch: Patch) -> None:
    header = transport.authorization_header_of_body

    def without(*arguments: Any) -> str:
        return ",".join(part for part in header(*arguments).split(",") if not part.startswith("destination"))

    patch.setattr(transport, "authorization_header_of_body", without)


def every_message_is_new(patch: Patch) -> None:
    forgets_transactions(patch)
    patch.setattr(edus, "_key", lambda *parts: os.urandom(32))


def believes_any_sender(patch: Patch) -> None:
    patch.setattr(edus, "is_of", lambda user_id, server: isinstance(user_id, str))


WRONG_SERVER = {check.id for check in checks.ALL if check.id.startswith("wrong_server.")}

MUTANTS = [
    Mutant("wrong LPDU hash", _changed_lpdus(_wrong_hash), {"participant.lpdu_hash"}, short=True),
    Mutant("LPDUs with a place", _changed_lpdus(_with_place),
           {"participant.no_place", "participant.signature", "participant.event_id"}),
    Mutant("unsigned LPDUs", _changed_lpdus(_unsigned), {"participant.signature", "participant.event_id"}),
    Mutant("fields of other formats", _changed_lpdus(_planted), {"participant.schema"}),
    Mutant("a participant without auth rules", no_auth_rules,
           {"receive.forbidden", "receive.forbidden_state", "receive.auth_events"}),
    Mutant("not found for wrong server", not_found_instead, WRONG_SERVER, short=True),
    Mutant("any room version", any_room_version, {"invited.version"}),
    Mutant("strips the hub's signature", strips_the_hubs_signature, {"invited.unchanged", "invited.join", "invite.proxied", "invite.proxied_appended"}),
    Mutant("knows no message again", every_message_is_new,
           {"edu.once", "send.processed_once", "receive.bad_state"}),
    Mutant("no destination", no_destination, {"requests.destination"}, short=True),
    Mutant("believes any sender", believes_any_sender, {"edu.spoofed"}),
]  # fmt: skip
