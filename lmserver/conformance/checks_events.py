"""Events, state and history that a hub serves (D04 §Event and State APIs)."""

from __future__ import annotations

from urllib.parse import quote

from lmserver.conformance import draft, rooms
from lmserver.conformance.checks_join import expect_auth_chain
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Role, check, expect
from lmserver.conformance.paths import FEDERATION
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

EVENT = "GET /_matrix/federation/v2/event/:eventId"
STATE = "GET /_matrix/federation/v1/state/:roomId"
STATE_IDS = "GET /_matrix/federation/v1/state_ids/:roomId"
BACKFILL = "GET /_matrix/federation/v2/backfill/:roomId"
VISIBILITY = "Calculating Event Visibility"
HUB = Role.HUB
NOBODYS = "$" + "A" * 43


async def _message(s: Session) -> tuple[RemoteRoom, Event, str]:
    """The room, and a message of ours in it with its ID."""
    room = await rooms.room(s)
    pdu = await s.once("event to ask for", lambda: room.appended(room.message("ask for me")))
    return room, pdu, room.event_id(pdu)


async def _second_room(s: Session) -> RemoteRoom:
    """Another room that we are in."""

    async def make() -> RemoteRoom:
        room = await rooms.made(s, preset="public_chat")
        await room.join(s.me.user("conformance"))
        return room

    return await s.once("second room", make)


# -- event ----------------------------------------------------------------------------------------


@check("event.served", EVENT, "The response body is the event itself.", role=HUB)
async def served(s: Session) -> None:
    _, pdu, event_id = await _message(s)
    found = (await s.me.ask("GET", s.paths.event(event_id))).expect(200)
    expect(found == pdu, f"it is {found}, what the hub had sent was {pdu}")


@check("event.unknown", EVENT, "An event that is not known is answered 404 M_NOT_FOUND.", role=HUB)
async def unknown(s: Session) -> None:
    (await s.me.ask("GET", s.paths.event(NOBODYS))).expect(404, "M_NOT_FOUND")


@check("event.lpdu", EVENT, "This endpoint MUST NOT return LPDUs: they do not exist for it.", role=HUB)
async def lpdu_unknown(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message("as an LPDU")
    await room.appended(lpdu)
    (await s.me.ask("GET", s.paths.event(room.event_id(lpdu)))).expect(404, "M_NOT_FOUND")


@check(
    "event.outsider",
    EVENT,
    "A server that has no reason to know of the event gets 404 M_NOT_FOUND.",
    role=HUB,
)
async def event_outsider(s: Session) -> None:
    room = await _closed_room(s)
    event_id = room.event_id(room.events()[-1])
    (await s.other.ask("GET", s.paths.event(event_id))).expect(404, "M_NOT_FOUND")


async def _closed_room(s: Session) -> RemoteRoom:
    """A room with no history for who was never in it; the other server never was."""

    async def make() -> RemoteRoom:
        room = await rooms.made(s, preset="public_chat", initial_state=[_joined_only()])
        await room.join(s.me.user("conformance"))
        return room

    return await s.once("closed room", make)


def _joined_only() -> Event:
    return {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}


# -- state ----------------------------------------------------------------------------------------


async def _topics(s: Session) -> tuple[RemoteRoom, str, str]:
    """The room, and two events that set its topic one after the other."""
    room = await rooms.governed(s)

    async def topic(text: str) -> str:
        sender = s.me.user("moderator")
        lpdu = room.lpdu("m.room.topic", {"topic": text}, sender=sender, state_key="")
        return room.event_id(await room.appended(lpdu))

    async def both() -> tuple[str, str]:
        return await topic("first"), await topic("second")

    first, second = await s.once("topics", both)
    return room, first, second


@check("state.before", STATE, "State is prior to considering changes induced by the event.", role=HUB)
async def state_before(s: Session) -> None:
    room, first, second = await _topics(s)
    answer = (await s.me.ask("GET", s.paths.state(room.room_id, second))).expect(200)
    found = [
        room.event_id(e) for e in answer["pdus"] if (e["type"], e.get("state_key")) == ("m.room.topic", "")
    ]
    expect(found == [first], f"topics in the state: {found}, it should be {first}, and not {second}")


@check("state.complete", STATE, "pdus are the whole state at the event, one event for each key.", role=HUB)
async def state_complete(s: Session) -> None:
    room, _, event_id = await _message(s)
    answer = (await s.me.ask("GET", s.paths.state(room.room_id, event_id))).expect(200)
    found = {(e["type"], e.get("state_key")): e for e in answer["pdus"]}
    expect(len(found) == len(answer["pdus"]), "two events for one type and state key")
    wanted = room.state(before=event_id)
    expect(found.keys() == wanted.keys(), f"other keys: {sorted(map(str, found.keys() ^ wanted.keys()))}")
    changed = [key for key in wanted if found[key] != wanted[key]]
    expect(not changed, f"other events than the hub had sent for {changed}")


@check("state.auth_chain", STATE, "auth_chain is recursive, to the create event.", role=HUB)
async def state_auth_chain(s: Session) -> None:
    room, _, event_id = await _message(s)
    answer = (await s.me.ask("GET", s.paths.state(room.room_id, event_id))).expect(200)
    expect_auth_chain(s, answer["pdus"], answer["auth_chain"])


@check("state.unknown_event", STATE, "An event ID that does not exist is answered 404 M_NOT_FOUND.", role=HUB)
async def state_unknown_event(s: Session) -> None:
    room = await rooms.room(s)
    (await s.me.ask("GET", s.paths.state(room.room_id, NOBODYS))).expect(404, "M_NOT_FOUND")


@check("state.unknown_room", STATE, "A room ID that does not exist is answered 404 M_NOT_FOUND.", role=HUB)
async def state_unknown_room(s: Session) -> None:
    _, _, event_id = await _message(s)
    (await s.me.ask("GET", s.paths.state(f"!nosuchroom:{s.server}", event_id))).expect(404, "M_NOT_FOUND")


@check("state.other_room", STATE, "404 M_NOT_FOUND too if the event is not in the requested room.", role=HUB)
async def state_other_room(s: Session) -> None:
    _, _, event_id = await _message(s)
    other = await _second_room(s)
    (await s.me.ask("GET", s.paths.state(other.room_id, event_id))).expect(404, "M_NOT_FOUND")


@check("state.outsider", STATE, "A server without visibility on the room gets 404 M_NOT_FOUND.", role=HUB)
async def state_outsider(s: Session) -> None:
    room = await _closed_room(s)
    uri = s.paths.state(room.room_id, room.event_id(room.events()[-1]))
    (await s.other.ask("GET", uri)).expect(404, "M_NOT_FOUND")


@check("state.no_event_id", STATE, "event_id is required: 400 without it.", role=HUB)
async def state_no_event_id(s: Session) -> None:
    room = await rooms.room(s)
    (await s.me.ask("GET", f"{FEDERATION}/v1/state/{quote(room.room_id, safe='')}")).expect(400)


@check("state_ids.same", STATE_IDS, "The same as state, with the IDs of the events.", role=HUB)
async def state_ids_same(s: Session) -> None:
    room, _, event_id = await _message(s)
    full = (await s.me.ask("GET", s.paths.state(room.room_id, event_id))).expect(200)
    ids = (await s.me.ask("GET", s.paths.state(room.room_id, event_id, ids=True))).expect(200)
    for of_ids, of_events in (("pdu_ids", "pdus"), ("auth_chain_ids", "auth_chain")):
        wanted = sorted(room.event_id(event) for event in full[of_events])
        expect(sorted(ids[of_ids]) == wanted, f"{of_ids} are not the IDs of {of_events}")


@check("state_ids.unknown_event", STATE_IDS, "The errors are those of state: 404 M_NOT_FOUND.", role=HUB)
async def state_ids_unknown_event(s: Session) -> None:
    room = await rooms.room(s)
    (await s.me.ask("GET", s.paths.state(room.room_id, NOBODYS, ids=True))).expect(404, "M_NOT_FOUND")


@check("state_ids.outsider", STATE_IDS, "The errors are those of state, for a server outside too.", role=HUB)
async def state_ids_outsider(s: Session) -> None:
    room = await _closed_room(s)
    uri = s.paths.state(room.room_id, room.event_id(room.events()[-1]), ids=True)
    (await s.other.ask("GET", uri)).expect(404, "M_NOT_FOUND")


# -- backfill ---------------------------------------------------------------------------------------


async def _backfill(s: Session, room: RemoteRoom, event_id: str, limit: int) -> list[Event]:
    answer = (await s.me.ask("GET", s.paths.backfill(room.room_id, event_id, limit))).expect(200)
    found: list[Event] = answer["pdus"]
    return found


@check("backfill.includes", BACKFILL, "pdus contains the events preceding v, including v.", role=HUB)
async def backfill_includes(s: Session) -> None:
    room, pdu, event_id = await _message(s)
    found = await _backfill(s, room, event_id, 5)
    expect(any(event == pdu for event in found), f"v itself, {event_id}, is not among them")


@check("backfill.order", BACKFILL, "pdus is ordered from oldest to newest, without gaps.", role=HUB)
async def backfill_order(s: Session) -> None:
    room = await rooms.room(s)
    wanted = [room.event_id(await room.appended(room.message(f"to backfill, {n}"))) for n in range(3)]
    found = [room.event_id(event) for event in await _backfill(s, room, wanted[-1], 3)]
    expect(found == wanted, f"{found} should be {wanted}")


@check("backfill.limit", BACKFILL, "The number of pdus MUST NOT exceed the limit.", role=HUB)
async def backfill_limit(s: Session) -> None:
    room, _, event_id = await _message(s)
    for limit in (1, 2):
        found = await _backfill(s, room, event_id, limit)
        expect(1 <= len(found) <= limit, f"limit {limit}, {len(found)} events")


@check("backfill.to_the_start", BACKFILL, "History reaches back to the create event.", role=HUB)
async def backfill_to_the_start(s: Session) -> None:
    room = await _second_room(s)
    found = await _backfill(s, room, room.event_id(room.events()[0]), 100)
    expect(found[0]["type"] == "m.room.create", f"the oldest event is a {found[0]['type']}")


@check(
    "backfill.unknown_event",
    BACKFILL,
    "An event ID that does not exist is answered 404 M_NOT_FOUND.",
    role=HUB,
)
async def backfill_unknown_event(s: Session) -> None:
    room = await rooms.room(s)
    (await s.me.ask("GET", s.paths.backfill(room.room_id, NOBODYS, 5))).expect(404, "M_NOT_FOUND")


@check(
    "backfill.other_room",
    BACKFILL,
    "404 M_NOT_FOUND too if the event is not in the requested room.",
    role=HUB,
)
async def backfill_other_room(s: Session) -> None:
    _, _, event_id = await _message(s)
    other = await _second_room(s)
    (await s.me.ask("GET", s.paths.backfill(other.room_id, event_id, 5))).expect(404, "M_NOT_FOUND")


@check(
    "backfill.outsider", BACKFILL, "A server without visibility on the room gets 404 M_NOT_FOUND.", role=HUB
)
async def backfill_outsider(s: Session) -> None:
    room = await _closed_room(s)
    uri = s.paths.backfill(room.room_id, room.event_id(room.events()[-1]), 5)
    (await s.other.ask("GET", uri)).expect(404, "M_NOT_FOUND")


@check("backfill.missing_parameters", BACKFILL, "v and limit are required: 400 without them.", role=HUB)
async def backfill_missing_parameters(s: Session) -> None:
    room = await rooms.room(s)
    bare = s.paths.backfill(room.room_id, NOBODYS, 5).partition("?")[0]
    (await s.me.ask("GET", bare)).expect(400)


# -- visibility -----------------------------------------------------------------------------------


@check(
    "visibility.redacted",
    VISIBILITY,
    "Events whose contents a server may not see are served redacted.",
    role=HUB,
)
async def redacted(s: Session) -> None:
    room = await rooms.made(s, preset="public_chat", initial_state=[_joined_only()])
    secret = await s.user.send(
        room.room_id, "m.room.message", {"msgtype": "m.text", "body": "before you came"}
    )
    await room.join(s.me.user("conformance"))
    found = await _backfill(s, room, room.event_id(room.events()[0]), 10)
    shown = [event for event in found if event["type"] == "m.room.message"]
    expect(all(event["content"] == {} for event in shown), f"its content is served: {shown}")
    expect(
        all(room.event_id(event) == secret for event in shown),
        "redacted, the event has another reference hash",
    )
    answer = await s.me.ask("GET", s.paths.event(secret))
    expect(answer.status == 404 or answer.fields.get("content") == {}, f"event is answered {answer}")


@check(
    "visibility.shared",
    VISIBILITY,
    "With shared history a server sees what was sent before it joined.",
    role=HUB,
)
async def shared(s: Session) -> None:
    room = await _second_room(s)
    found = await _backfill(s, room, room.event_id(room.events()[0]), 100)
    for event in found:
        expect(event["hashes"].get("sha256") == draft.pdu_hash(event), f"served redacted: {event}")
