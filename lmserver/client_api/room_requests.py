"""What room endpoints share: who may read, and engine outcomes as HTTP errors.

A room a user may see nothing of and a room that does not exist get the same answer, so nobody
learns which rooms there are (CS API: 403 for both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmserver.protocol import ids
from lmserver.protocol.canonical_json import MAX_INT
from lmserver.protocol.errors import AuthRejected, InvalidIdentifier, InvalidJson, SchemaError, TooLarge
from lmserver.protocol.events import EventDraft, check_draft
from lmserver.rooms.access import Access, Reader
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import HELD, Accepted, ClientTxn, MembershipError, Outcome, Rejected, RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.tokens import BadToken, RoomToken, SyncToken, parse
from lmserver.web.endpoint import Request
from lmserver.web.errors import ApiError, bad_json, bad_param

MAX_TXN_ID = 255
MAX_TEXT = 4096
_STATUS = {
    "M_UNKNOWN": 502,
    "M_NOT_FOUND": 404,
    "M_LIMIT_EXCEEDED": 429,
    "M_BAD_JSON": 400,
    "M_TOO_LARGE": 413,
}


def not_in_room() -> ApiError:
    return ApiError(403, "M_FORBIDDEN", "You are not in this room")


def user(request: Request) -> str:
    return request.requester.user_id


def reader(request: Request) -> Reader:
    return Reader(request.requester.user_id, request.requester.device_id)


async def readable(reading: Reading, request: Request) -> Access:
    """Access to the room named in the path; 403 when the user may see nothing of it."""
    access = await reading.access(user(request), room_id(request))
    if access is None or access.nothing:
        raise not_in_room()
    return access


async def joined(reading: Reading, request: Request) -> Access:
    """The same, for what only members may do."""
    access = await readable(reading, request)
    if not access.joined:
        raise not_in_room()
    return access


def room_id(request: Request) -> str:
    """The room ID of the path; one that is none names no room the user is in."""
    value = request.params["room_id"]
    if not ids.is_room_id(value):
        raise not_in_room()
    return value


def identifier(value: object, check: Any, name: str) -> str:
    try:
        checked: str = check(value)
    except InvalidIdentifier:
        raise bad_param(f"{name} is not valid") from None
    return checked


def token(request: Request, name: str) -> RoomToken | SyncToken | None:
    """A token of the query; 400 M_INVALID_PARAM for what we never gave out."""
    text = request.query.get(name)
    if not text:
        return None
    try:
        return parse(text)
    except BadToken:
        raise bad_param(f"{name} is not a token") from None


def number(request: Request, name: str, default: int, *, most: int, least: int = 0) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise bad_param(f"{name} is not a number")
    return max(least, min(int(text), most))


def sent_at(request: Request, now_ms: int) -> int:
    """When an event was sent: now, or what an application service says (AS API §Timestamp massaging)."""
    return number(request, "ts", now_ms, most=MAX_INT) if request.requester.appservice else now_ms


def transaction(request: Request) -> ClientTxn:
    txn_id = request.params["txn_id"]
    if not txn_id or len(txn_id) > MAX_TXN_ID or "\0" in txn_id:
        raise bad_param("txn_id is not valid")
    return ClientTxn(request.requester.user_id, request.requester.device_id or "", txn_id)


async def send(engine: RoomEngine, drafts: Sequence[EventDraft], txn: ClientTxn | None = None) -> str:
    """Send events and return the first one's ID; raises ApiError for whatever stops them."""
    for draft in drafts:
        check(draft)
    try:
        outcomes = await engine.send(drafts, txn)
    except HubSilent:
        raise hub_silent() from None
    except RoomBusy:
        raise busy() from None
    ids_of_events = [accepted(outcome).event_id for outcome in outcomes]
    return ids_of_events[0]


def hub_silent() -> ApiError:
    """The hub may still take the event: what it will say is not known."""
    return ApiError(504, "M_UNKNOWN", "The room's hub has not answered yet; the event is sent when it does")


def check(draft: EventDraft) -> None:
    """400 or 413 for an event no server would take."""
    try:
        check_draft(draft)
    except TooLarge:
        raise ApiError(413, "M_TOO_LARGE", "The event is too large") from None
    except (SchemaError, InvalidJson) as error:
        # A float is JSON, but nothing an event can hold: M_BAD_JSON and not M_NOT_JSON.
        raise ApiError(400, "M_BAD_JSON", str(error)) from None


def accepted(outcome: Outcome) -> Accepted:
    """The acceptance; raises ApiError with the refusal's reason."""
    match outcome:
        case Accepted():
            return outcome
        case Rejected(errcode=errcode, reason=reason):
            raise ApiError(503, errcode, reason) if outcome == HELD else refused(errcode, reason)


def refused(errcode: str, reason: str) -> ApiError:
    """What a room's rules or its hub do not allow."""
    return ApiError(_STATUS.get(errcode, 403), errcode, reason)


def busy() -> ApiError:
    return ApiError(429, "M_LIMIT_EXCEEDED", "Too many events wait for this room", {"retry_after_ms": 1000})


def of_membership(error: MembershipError) -> ApiError:
    extra: dict[str, Any] = {"retry_after_ms": error.retry_after_ms, "room_version": error.room_version}
    extra = {name: value for name, value in extra.items() if value is not None}
    return ApiError(error.status, error.errcode, error.reason, extra)


def of_rule(error: AuthRejected) -> ApiError:
    return ApiError(403, "M_FORBIDDEN", error.reason)


def optional_text(body: Mapping[str, Any], key: str) -> str | None:
    """A short text of the body, or None; one that no event or column can hold is refused here."""
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise bad_json(f"{key} is not a string")
    if len(value) > MAX_TEXT or (not value.isascii() and not _is_unicode(value)):
        raise bad_param(f"{key} is not acceptable text of at most {MAX_TEXT} characters")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
