"""The server's keys, and the server as a notary (D04 §Retrieving Server Keys)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from lmserver.conformance import draft
from lmserver.conformance.model import Level, check, expect
from lmserver.conformance.paths import KEY_QUERY, KEYS
from lmserver.conformance.persona import DAY_MS, now_ms
from lmserver.conformance.session import Session

OWN = "GET /_matrix/key/v2/server"
QUERY = "GET /_matrix/key/v2/query/:serverName"
BULK = "POST /_matrix/key/v2/query"
VALIDITY = "Validity"
HOUR_MS = 3600 * 1000
KEY_ID = re.compile(r"ed25519:[A-Za-z0-9_]+")


@check("keys.server_name", OWN, "server_name MUST be the name of the server that returns the keys.")
async def server_name(s: Session) -> None:
    document = await s.key_document()
    expect(document.get("server_name") == s.server, f"server_name is {document.get('server_name')!r}")


@check("keys.signed", OWN, "The keys are signed with one of the verify_keys in them.")
async def signed(s: Session) -> None:
    document = await s.key_document()
    message = draft.canonical(draft.without(document, "signatures"))
    expect(
        draft.has_signature(document, s.server, await s.server_keys(), message),
        f"no valid signature by {s.server} with one of its verify_keys: {document}",
    )


@check("keys.key_ids", "Signing", "Key IDs MUST be ed25519:version, versions of letters, digits and _.")
async def key_ids(s: Session) -> None:
    document = await s.key_document()
    for key_id in [*document["verify_keys"], *document.get("old_verify_keys", {})]:
        expect(KEY_ID.fullmatch(key_id), f"key ID {key_id!r}")


@check("keys.one_active", OWN, "A server SHOULD have at least one active key.", level=Level.SHOULD)
async def one_active(s: Session) -> None:
    expect(await s.server_keys(), "verify_keys is empty")


@check("keys.ed25519", "Signing", "Signing keys MUST be ed25519 keys, in unpadded base64.")
async def ed25519(s: Session) -> None:
    for key_id, public in (await s.server_keys()).items():
        expect("=" not in public, f"the key {key_id} is padded")
        expect(len(draft.decode(public)) == 32, f"the key {key_id} is not of 32 bytes")


@check("keys.old_keys", OWN, "old_verify_keys have a key and the required expired_ts.")
async def old_keys(s: Session) -> None:
    for key_id, entry in (await s.key_document()).get("old_verify_keys", {}).items():
        expect(type(entry.get("expired_ts")) is int, f"{key_id} has no integer expired_ts: {entry}")
        expect(len(draft.decode(entry["key"])) == 32, f"{key_id} is not of 32 bytes")


@check("keys.valid_until", OWN, "valid_until_ts is an integer of milliseconds in the future.")
async def valid_until(s: Session) -> None:
    value = (await s.key_document()).get("valid_until_ts")
    expect(type(value) is int and value > now_ms(), f"valid_until_ts is {value!r}")


@check("keys.lifetime", VALIDITY, "Keys SHOULD be valid about 12 hours, and not expire within an hour.",
       level=Level.SHOULD)  # fmt: skip
async def lifetime(s: Session) -> None:
    left = (await s.key_document())["valid_until_ts"] - now_ms()
    expect(HOUR_MS <= left <= 25 * HOUR_MS, f"valid for {left / HOUR_MS:.1f} hours")


@check("keys.linearized", OWN, "m.linearized SHOULD be true.", level=Level.SHOULD)
async def linearized(s: Session) -> None:
    value = (await s.key_document()).get("m.linearized")
    expect(value is True, f"m.linearized is {value!r}")


@check("keys.no_authentication", "Request Authentication",
       "Without required authentication, Authorization headers are ignored entirely.")  # fmt: skip
async def no_authentication(s: Session) -> None:
    (await s.me.ask_with("GET", KEYS, None, "X-Matrix nonsense")).expect(200)


# -- as a notary --------------------------------------------------------------------------------------


async def _query(s: Session, server: str, minimum: int | None = None) -> list[dict[str, Any]]:
    uri = f"{KEY_QUERY}/{quote(server, safe='')}"
    if minimum is not None:
        uri += f"?minimum_valid_until_ts={minimum}"
    found = (await s.wire.send("GET", uri)).expect(200).get("server_keys")
    expect(isinstance(found, list), f"server_keys is {found!r}")
    return list(found or [])


async def _bulk(s: Session, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    body = draft.canonical({"server_keys": wanted})
    answer = await s.wire.send("POST", KEY_QUERY, body, [("Content-Type", "application/json")])
    found = answer.expect(200).get("server_keys")
    expect(isinstance(found, list), f"server_keys is {found!r}")
    return list(found or [])


def _ours(s: Session, documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Our current key document among them."""
    for document in documents:
        if document.get("server_name") == s.me.name and s.me.key.key_id in document.get("verify_keys", {}):
            return document
    expect(False, f"asked for the keys of {s.me.name}, got {documents}")
    return {}


@check("notary.query", QUERY, "A notary returns the keys of a server that can be reached.")
async def notary_query(s: Session) -> None:
    document = _ours(s, await _query(s, s.me.name))
    entry = document["verify_keys"][s.me.key.key_id]
    expect(entry.get("key") == s.me.key.public, f"another key under {s.me.key.key_id}: {entry}")


@check("notary.signs", QUERY, "The notary MUST sign each key returned with one of its own keys.")
async def notary_signs(s: Session) -> None:
    document = _ours(s, await _query(s, s.me.name))
    message = draft.canonical(draft.without(document, "signatures"))
    expect(
        draft.has_signature(document, s.server, await s.server_keys(), message),
        f"no valid signature of {s.server} on {document}",
    )


@check("notary.unchanged", QUERY, "What a notary returns still carries the origin's valid signatures.")
async def notary_unchanged(s: Session) -> None:
    document = _ours(s, await _query(s, s.me.name))
    message = draft.canonical(draft.without(document, "signatures"))
    for key in (s.me.key, s.me.second_key):
        expect(
            draft.has_signature(document, s.me.name, {key.key_id: key.public}, message),
            f"the signature of {key.key_id} is missing or no longer valid: {document}",
        )


@check("notary.minimum", QUERY,
       "Keys that do not meet minimum_valid_until_ts, at most 7 days ahead, are not included.")  # fmt: skip
async def notary_minimum(s: Session) -> None:
    found = await _query(s, s.me.name, now_ms() + 8 * DAY_MS)
    expect(not found, f"asked for keys valid in 8 days, got {found}")


@check("notary.unreachable", QUERY, "For a server out of reach, without cached keys, the array is empty.")
async def notary_unreachable(s: Session) -> None:
    found = await _query(s, "no-such-server.invalid")
    expect(not found, f"got {found}")


@check("notary.bulk", BULK, "The bulk query returns the keys asked for, signed as by the single one.")
async def notary_bulk(s: Session) -> None:
    document = _ours(s, await _bulk(s, {s.me.name: {s.me.key.key_id: {"minimum_valid_until_ts": now_ms()}}}))
    message = draft.canonical(draft.without(document, "signatures"))
    expect(
        draft.has_signature(document, s.server, await s.server_keys(), message),
        f"no valid signature of {s.server} on {document}",
    )


@check("notary.bulk_all", BULK, "Without key IDs all of the server's known keys are queried.")
async def notary_bulk_all(s: Session) -> None:
    _ours(s, await _bulk(s, {s.me.name: {}}))


@check("notary.bulk_empty", BULK, "Without servers the response MUST contain an empty array.")
async def notary_bulk_empty(s: Session) -> None:
    expect(await _bulk(s, {}) == [], "the array is not empty")


@check("notary.bulk_minimum", BULK, "minimum_valid_until_ts means the same in the bulk query.")
async def notary_bulk_minimum(s: Session) -> None:
    criteria = {s.me.key.key_id: {"minimum_valid_until_ts": now_ms() + 8 * DAY_MS}}
    found = await _bulk(s, {s.me.name: criteria})
    expect(not found, f"asked for keys valid in 8 days, got {found}")
