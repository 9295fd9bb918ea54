"""Hubs with one thing broken, each with all that follows from it."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import checks
from lmserver.federation_server import events, transactions
from lmserver.federation_server.server_view import ServerView
from lmserver.protocol import canonical_json, hashes, hub
from lmserver.rooms import append, stripped_state
from lmserver.storage import inbound, outbound, room_state
from tests.conformance.mutants import Mutant, Patch


def wrong_content_hash(patch: Patch) -> None:
    def wrong(fields: dict[str, Any]) -> str:
        return hashes.pdu_content_hash({**fields, "content": {}})

    patch.setattr(hub, "pdu_content_hash", wrong)


def unsigned_by_hub(patch: Patch) -> None:
    sign = hub._hash_and_sign

    def unsigned(*arguments: Any) -> Any:
        pdu = sign(*arguments)
        if pdu.type != "m.room.message":
            return pdu
        signatures = {k: v for k, v in pdu.fields["signatures"].items() if k != arguments[2].server_name}
        return type(pdu)({**pdu.fields, "signatures": signatures}, pdu.version)

    patch.setattr(hub, "_hash_and_sign", unsigned)


def no_auth_rules(patch: Patch) -> None:
    patch.setattr(hub, "authorize", lambda event, view: None)


def join_rules_everywhere(patch: Patch) -> None:
    select = hub.select_auth_events

    def more(event: Any, view: Any) -> list[str]:
        rules = view.get("m.room.join_rules")
        chosen = select(event, view)
        return chosen if rules is None or rules.event_id in chosen else [*chosen, rules.event_id]

    patch.setattr(hub, "select_auth_events", more)


def two_prev_events(patch: Patch) -> None:
    finish = hub._hash_and_sign

    def twice(fields: dict[str, Any], *rest: Any) -> Any:
        if fields["type"] == "m.room.message":
            fields["prev_events"] = fields["prev_events"] * 2
        return finish(fields, *rest)

    patch.setattr(hub, "_hash_and_sign", twice)


def drops_unknown_fields(patch: Patch) -> None:
    complete = hub.complete_lpdu

    def dropping(lpdu: Any, view: Any, key: Any) -> Any:
        known = {k: v for k, v in lpdu.fields.items() if "." not in k}
        return complete(type(lpdu)(known, lpdu.version), view, key)

    patch.setattr(hub, "complete_lpdu", dropping)


def never_redacts(patch: Patch) -> None:
    patch.setattr(hub.hashes, "check_hashes", lambda event: True)


def code_point_order(patch: Patch) -> None:
    patch.setattr(canonical_json, "_has_astral_key", lambda value: False)


def takes_any_signature(patch: Patch) -> None:
    async def fine(self: Any, events: Any, **options: Any) -> list[None]:
        return [None] * len(events)

    patch.setattr("lmserver.federation_client.keyring.Keyring.verify_events", fine)


def any_size(patch: Patch) -> None:
    patch.setattr("lmserver.protocol.events.MAX_LPDU_BYTES", 10**6)
    patch.setattr("lmserver.protocol.events.MAX_EVENT_BYTES", 10**6)
    patch.setattr(hub, "MAX_EVENT_BYTES", 10**6)


def any_number(patch: Patch) -> None:
    patch.setattr(transactions, "MAX_PDUS", 1000)
    patch.setattr(transactions, "MAX_EDUS", 1000)


def forgets_transactions(patch: Patch) -> None:
    async def unknown(*arguments: Any) -> None:
        return None

    async def free(db: Any, origin: str, endpoint: str, txn_id: str, now: int, until: int) -> inbound.Claim:
        return inbound.Claim(None, 1)

    async def not_stored(db: Any, o: str, e: str, t: str, answer: Any, *rest: Any) -> Any:
        return answer

    patch.setattr(inbound, "response", unknown)
    patch.setattr(inbound, "claim", free)
    patch.setattr(inbound, "finish", not_stored)


def fails_with_one(patch: Patch) -> None:
    sort = transactions.TransactionEndpoints._sort

    async def strict(self: Any, origin: str, item: Any, *rest: Any) -> None:
        if not isinstance(item, dict):
            raise ValueError("poison")
        await sort(self, origin, item, *rest)

    patch.setattr(transactions.TransactionEndpoints, "_sort", strict)


def new_id_for_every_try(patch: Patch) -> None:
    async def none(db: Any, destination: str) -> None:
        await db.execute("DELETE FROM outbound_transactions WHERE destination = $1", destination)

    patch.setattr(outbound, "transaction", none)


def state_after(patch: Patch) -> None:
    at = room_state.state_at

    async def later(db: Any, room_id: str, position: int) -> Any:
        return await at(db, room_id, position + 1)

    patch.setattr(room_state, "state_at", later)


def newest_first(patch: Patch) -> None:
    shown = events._shown
    patch.setattr(events, "_shown", lambda found, *rest: shown(found[::-1], *rest))


def hides_nothing(patch: Patch) -> None:
    patch.setattr(ServerView, "hides", lambda self, event: False)


def tells_everybody(patch: Patch) -> None:
    patch.setattr(ServerView, "knows", lambda self, event: True)


def whole_state_for_invites(patch: Patch) -> None:
    stripped = stripped_state.of_view

    def more(*arguments: Any) -> list[dict[str, Any]]:
        return [{**event, "origin_server_ts": 1} for event in stripped(*arguments)]

    patch.setattr(stripped_state, "of_view", more)


def failed_under_another_id(patch: Patch) -> None:
    reject = transactions._Result.reject
    patch.setattr(transactions._Result, "reject", lambda self, event_id, reason: reject(self, "$x", reason))


def takes_lpdus_from_anybody(patch: Patch) -> None:
    def take(self: Any, origin: str, lpdu: Any, room: Any, result: Any) -> None:
        room.lpdus.append(lpdu)

    patch.setattr(transactions.TransactionEndpoints, "_sort_lpdu", take)


def forgets_lpdus(patch: Patch) -> None:
    place = append.Batch.place
    patch.setattr(
        append.Batch, "place", lambda self, pdu, **how: place(self, pdu, **{**how, "keep_lpdu_hash": False})
    )


RULES = {check.id for check in checks.ALL if check.id.startswith("rules.")}
REDACTIONS = {check.id for check in checks.ALL if check.id.startswith("redactions.")}
WRONG_HASHES = {
    "hub.content_hash", "hub.own_events", "hub.unknown_fields", "join.state_hashes", "invite.event",
    "visibility.shared", "canonical.key_order", "canonical.strings", "canonical.numbers", "canonical.nul",
}  # fmt: skip
UNCHECKED = {
    "lpdu.unsigned", "lpdu.bad_signature", "lpdu.unlisted_key", "join.unsigned",
    "receive.unsigned", "receive.bad_signature", "receive.bad_sender_signature",
    "invited.unsigned", "invited.forged",
}  # fmt: skip
FORBIDDEN = RULES | {
    "join.send_forbidden", "leave.send_forbidden", "invite.forbidden", "knock.join_forbidden",
    "knock.send_forbidden", "lpdu.failed_pdus", "levels.state", "levels.kick", "levels.ban",
}  # fmt: skip
OUTSIDERS = {"event.outsider", "state.outsider", "state_ids.outsider", "backfill.outsider"}

MUTANTS = [
    Mutant("wrong content hash", wrong_content_hash, WRONG_HASHES, short=True),
    Mutant("messages unsigned by the hub", unsigned_by_hub, {"hub.signature", "hub.own_events", "redactions.top_level"}, short=True),
    Mutant("a hub without auth rules", no_auth_rules, FORBIDDEN),
    Mutant("join rules in all auth_events", join_rules_everywhere, {"hub.auth_events", "hub.auth_events_member"}),
    Mutant("two prev_events", two_prev_events, {"hub.one_prev_event", "hub.list", "hub.order"}),
    Mutant("unknown fields dropped", drops_unknown_fields, {"hub.unknown_fields"}),
    Mutant("never redacts", never_redacts, REDACTIONS | {"lpdu.hash_mismatch", "receive.hash_mismatch", "receive.changed_lpdu"}, short=True),
    Mutant("keys in code-point order", code_point_order, {"canonical.key_order", "receive.key_order", "participant.canonical", "requests.signed"}),
    Mutant("takes any signature", takes_any_signature, UNCHECKED),
    Mutant("takes any size", any_size, {"lpdu.too_large", "receive.too_large"}),
    Mutant("takes any number", any_number, {"send.too_many_pdus", "send.too_many_edus", "send.too_many_unprocessed"}),
    Mutant("forgets transactions", forgets_transactions, {"send.processed_once", "receive.bad_state"}, short=True),
    Mutant("one bad event fails all", fails_with_one, {"lpdu.bad_among_good", "receive.bad_among_good", "send.unknown_events"}, short=True),
    Mutant("a new ID for every try", new_id_for_every_try, {"hub.retry", "participant.retry"}),
    Mutant("state after the event", state_after, {"state.before", "join.state_prior"}),
    Mutant("newest first", newest_first, {"backfill.order", "backfill.to_the_start"}, short=True),
    Mutant("hides nothing", hides_nothing, {"visibility.redacted"}),
    Mutant("tells everybody", tells_everybody, OUTSIDERS),
    Mutant("more than stripped state", whole_state_for_invites, {"invite.stripped_state", "knock.sent"}),
    Mutant("takes LPDUs from anybody", takes_lpdus_from_anybody, {"lpdu.relayed"}),
    Mutant("forgets LPDUs", forgets_lpdus, {"lpdu.repeated", "receive.replay"}),
    Mutant("failed under another ID", failed_under_another_id, {"lpdu.failed_pdus"}),
]  # fmt: skip
