"""Events from other servers, from raw JSON to verified events (D04 §Receiving Events, steps 1-3).

One door for every event that enters by an answer or a request: schema, signatures, hashes. A bad
event is told apart, and never fails the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lmserver.protocol import hashes
from lmserver.protocol.errors import ProtocolError, SchemaError
from lmserver.protocol.events import Lpdu, Pdu, parse_pdu
from lmserver.protocol.room_versions import RoomVersion


class Verifier(Protocol):
    """Checks signatures, fetching keys as needed: None, or what is wrong, for each event.

    `current_keys_only` is for a hub taking new LPDUs: an origin_server_ts of long ago must not
    bring a key back that has expired since (attack K5).
    """

    async def verify_events(
        self, events: Sequence[Lpdu | Pdu], *, current_keys_only: bool = False
    ) -> list[ProtocolError | None]: ...


async def check_pdus(
    raw: Sequence[Any], version: RoomVersion, room_id: str, verifier: Verifier
) -> list[Pdu | ProtocolError]:
    """Each PDU, hashes enforced (a wrong one leaves the redacted copy), or what is wrong with it."""
    judged = await judge_pdus(raw, version, room_id, verifier)
    return [pdu if error is None and pdu is not None else _bad(error) for pdu, error in judged]


async def judge_pdus(
    raw: Sequence[Any], version: RoomVersion, room_id: str, verifier: Verifier
) -> list[tuple[Pdu | None, ProtocolError | None]]:
    """Each PDU with what is wrong with its signatures; None for what is no event of the room. The
    links of an event are proven by its ID even where its signatures are not."""
    parsed = [_parse(item, version, room_id) for item in raw]
    judged: list[tuple[Pdu | None, ProtocolError | None]] = [
        (None, item) if isinstance(item, ProtocolError) else (hashes.with_hashes_enforced(item), None)
        for item in parsed
    ]
    good = [(i, item) for i, item in enumerate(parsed) if isinstance(item, Pdu)]
    verdicts = await verifier.verify_events([pdu for _, pdu in good])
    for (index, _), verdict in zip(good, verdicts, strict=True):
        judged[index] = (judged[index][0], verdict)
    return judged


def _bad(error: ProtocolError | None) -> ProtocolError:
    return SchemaError("not an event") if error is None else error


def _parse(item: object, version: RoomVersion, room_id: str) -> Pdu | ProtocolError:
    if not isinstance(item, dict):
        return SchemaError("an event is not an object")
    try:
        pdu = parse_pdu(item, version)
    except ProtocolError as error:
        return error
    return pdu if pdu.room_id == room_id else SchemaError("an event of another room")
