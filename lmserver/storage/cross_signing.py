"""Users' cross-signing keys, and who signed which device or master key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class KeySignature:
    """A signature over a device (`target_key` is its ID) or a master key (its public key)."""

    target_user_id: str
    target_key: str
    signer_user_id: str
    signer_key_id: str
    signature: str


def _signature(row: Any) -> KeySignature:
    return KeySignature(*(row[name] for name in KeySignature.__slots__))


async def lock_user(db: Executor, user_id: str) -> None:
    """One change of a user's keys at a time, until the transaction ends."""
    await db.execute("SELECT FROM accounts WHERE user_id = $1 FOR UPDATE", user_id)


async def put_key(db: Executor, user_id: str, usage: str, key: bytes) -> None:
    await db.execute(
        "INSERT INTO cross_signing_keys (user_id, usage, key) VALUES ($1, $2, $3)"
        " ON CONFLICT (user_id, usage) DO UPDATE SET key = excluded.key",
        user_id,
        usage,
        key,
    )


async def remove_keys(db: Executor, user_id: str, usages: Sequence[str]) -> None:
    await db.execute(
        "DELETE FROM cross_signing_keys WHERE user_id = $1 AND usage = ANY($2::text[])", user_id, list(usages)
    )


async def keys(db: Executor, user_ids: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """User ID to usage (master, self_signing, user_signing) to key."""
    rows = await db.fetch(
        "SELECT user_id, usage, key FROM cross_signing_keys WHERE user_id = ANY($1::text[])", list(user_ids)
    )
    found: dict[str, dict[str, bytes]] = {}
    for r in rows:
        found.setdefault(r["user_id"], {})[r["usage"]] = bytes(r["key"])
    return found


async def add_signatures(db: Executor, signatures: Sequence[KeySignature]) -> list[KeySignature]:
    """Add what is new and return it; no two of one target and signing key."""
    rows = await db.fetch(
        "INSERT INTO key_signatures (target_user_id, target_key, signer_user_id, signer_key_id, signature)"
        " SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])"
        " ON CONFLICT (target_user_id, target_key, signer_user_id, signer_key_id) DO UPDATE"
        " SET signature = excluded.signature, stream_xid = pg_current_xact_id()"
        " WHERE key_signatures.signature <> excluded.signature"
        " RETURNING target_user_id, target_key, signer_user_id, signer_key_id, signature",
        *([getattr(s, name) for s in signatures] for name in KeySignature.__slots__),
    )
    return [_signature(r) for r in rows]


async def signatures(db: Executor, targets: Iterable[str], asking: str | None) -> list[KeySignature]:
    """What users signed of themselves, and what `asking` signed of them: nobody else's is seen."""
    pairs = {(target, signer) for target in targets for signer in (target, asking or target)}
    rows = await db.fetch(
        "SELECT k.target_user_id, k.target_key, k.signer_user_id, k.signer_key_id, k.signature"
        " FROM unnest($1::text[], $2::text[]) AS n (target, signer) JOIN key_signatures AS k"
        " ON k.target_user_id = n.target AND k.signer_user_id = n.signer",
        [target for target, _ in pairs],
        [signer for _, signer in pairs],
    )
    return [_signature(r) for r in rows]


async def remove_signatures_by(db: Executor, signer: str, key_ids: Sequence[str]) -> None:
    """Signatures of keys that are no longer their user's."""
    await db.execute(
        "DELETE FROM key_signatures WHERE signer_user_id = $1 AND signer_key_id = ANY($2::text[])",
        signer,
        list(key_ids),
    )


async def remove_signatures_on(db: Executor, user_id: str, targets: Sequence[str]) -> None:
    """Signatures over devices or master keys that are gone, whoever made them."""
    await db.execute(
        "DELETE FROM key_signatures WHERE target_user_id = $1 AND target_key = ANY($2::text[])",
        user_id,
        list(targets),
    )


async def remove_user(db: Executor, user_id: str) -> None:
    """Everything of a user who is gone."""
    await db.execute("DELETE FROM cross_signing_keys WHERE user_id = $1", user_id)
    await db.execute("DELETE FROM key_signatures WHERE signer_user_id = $1 OR target_user_id = $1", user_id)
