"""Keys as they are shown: what their owners published, with the signatures the asking user may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.cross_signing import MASTER, USAGES, with_signatures
from lmserver.storage import cross_signing, e2e_keys
from lmserver.storage.cross_signing import KeySignature
from lmserver.storage.database import Executor

Signers = dict[str, dict[str, str]]
"""User ID to key ID to signature."""


async def devices(
    db: Executor, wanted: Mapping[str, Sequence[str]], *, names: bool
) -> dict[str, dict[str, JsonObject]]:
    """User ID to device ID to device keys, of all devices where none is named; with `names` the
    display name under `unsigned`. Every user is in the answer."""
    found = await e2e_keys.device_keys(db, wanted)
    signatures = by_target(await cross_signing.signatures(db, found, None)) if found else {}
    answer: dict[str, dict[str, JsonObject]] = {user_id: {} for user_id in wanted}
    for user_id, of_user in found.items():
        for device_id, (data, name) in of_user.items():
            keys = orjson.loads(data)
            keys.pop("unsigned", None)
            signed = signatures.get((user_id, device_id))
            if signed:
                keys = with_signatures(keys, signed)
            if names:
                keys["unsigned"] = {} if name is None else {"device_display_name": name}
            answer[user_id][device_id] = keys
    return answer


async def cross_signing_keys(
    db: Executor, user_ids: Iterable[str], asking: str | None
) -> dict[str, dict[str, JsonObject]]:
    """Usage to user ID to key. A user-signing key is shown to its user alone, and so are the signatures
    it made; `asking` None is another server."""
    found = await cross_signing.keys(db, user_ids)
    answer: dict[str, dict[str, JsonObject]] = {usage: {} for usage in USAGES}
    for user_id, keys in found.items():
        for usage, data in keys.items():
            if usage != "user_signing" or asking == user_id:
                answer[usage][user_id] = orjson.loads(data)
    await add_master_signatures(db, answer[MASTER], asking)
    return answer


async def add_master_signatures(db: Executor, masters: dict[str, Any], asking: str | None) -> None:
    """To master keys, local ones or not, what their owners' devices and `asking` signed of them."""
    if not masters:
        return
    signatures = by_target(await cross_signing.signatures(db, masters, asking))
    for user_id, key in masters.items():
        for public in _publics(key):
            signed = signatures.get((user_id, public))
            if signed:
                masters[user_id] = with_signatures(key, signed)


def _publics(key: Any) -> list[str]:
    keys = key.get("keys") if isinstance(key, dict) else None
    return [text for text in keys.values() if isinstance(text, str)] if isinstance(keys, dict) else []


def by_target(signatures: Iterable[KeySignature]) -> dict[tuple[str, str], Signers]:
    """(User ID, device ID or public key) to the signatures over it."""
    found: dict[tuple[str, str], Signers] = {}
    for s in signatures:
        signers = found.setdefault((s.target_user_id, s.target_key), {})
        signers.setdefault(s.signer_user_id, {})[s.signer_key_id] = s.signature
    return found
