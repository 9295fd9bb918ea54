"""After a rotation of our key: what waits to be sent is signed with the new one.

A hub takes no new event signed with a key that has expired (attack K5), and an LPDU may wait for
days for a hub that is away. A signature is part of neither hash nor ID, so the event stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lmserver.protocol import canonical_json
from lmserver.protocol.events import Lpdu, is_lpdu_shaped, parse_lpdu
from lmserver.protocol.room_versions import room_version
from lmserver.protocol.signatures import SigningKey
from lmserver.storage import lpdus, outbound, room_log
from lmserver.storage.database import Connection, Database

PAGE = 200


async def sign_waiting(db: Database, key: SigningKey, old_key_ids: Sequence[str]) -> int:
    """Sign again all that is queued or stored for sending; how many queued events. May be repeated."""
    signed, seq = 0, -1
    while True:
        seq, count = await db.run(partial(_queued, key=key, after=seq))
        signed += count
        if not count:
            break
    for destination in await outbound.destinations_signed_with(db, old_key_ids):
        await db.run(partial(_stored, key=key, destination=destination))
    return signed


async def _queued(db: Connection, key: SigningKey, after: int) -> tuple[int, int]:
    """One page of the queue after `after`: where it ended, and how many events it had."""
    page = await lpdus.not_signed_with(db, key.key_id, after, PAGE)
    for queued in page:
        fields = await _signed(db, canonical_json.parse_object(queued.lpdu), key)
        await lpdus.replace(db, queued.room_id, queued.lpdu_id, canonical_json.encode(fields))
    return (page[-1].seq if page else after), len(page)


async def _stored(db: Connection, key: SigningKey, destination: str) -> None:
    """The transaction that is being sent keeps its ID: if it was taken before, the answer is the same."""
    txn = await outbound.transaction(db, destination)
    if txn is None or txn.body is None:
        return
    body = canonical_json.parse_object(txn.body)
    body["pdus"] = [await _signed(db, pdu, key) if is_lpdu_shaped(pdu) else pdu for pdu in body["pdus"]]
    await outbound.replace_body(db, destination, txn.txn_id, canonical_json.encode(body))


async def _signed(db: Connection, fields: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    room = await room_log.room(db, fields["room_id"])
    if room is None:
        return fields
    lpdu: Lpdu = parse_lpdu(fields, room_version(room.room_version))
    ours = {key.key_id: key.sign_base64(lpdu.reference_bytes)}
    return {**fields, "signatures": {**fields["signatures"], key.server_name: ours}}
