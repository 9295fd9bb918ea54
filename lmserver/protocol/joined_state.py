"""The state that a join comes with, judged event by event (D04 §Receiving Events).

The list before the join is not here, so the rules are asked with what each event cites: state
events that came with it and are judged in the same way (D04 §Auth Rules Algorithm, rules 3 to 10).
What no hub could have appended in good faith refuses the whole answer (attack S3).
"""

from __future__ import annotations

from collections.abc import Mapping

from lmserver.protocol.auth_rules import authorize, check_auth_events, check_create
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import Pdu
from lmserver.protocol.hub import state_event
from lmserver.protocol.room_view import RoomView, StateEvent, StateKey


def check_by_citations(pdu: Pdu, hub: str, came: Mapping[str, Pdu]) -> None:
    """Raises AuthRejected; `came` are all events of the answer by their ID."""
    if pdu.type == "m.room.create" and pdu.state_key == "":
        check_create(pdu)
        return
    if pdu.hub_server is not None and pdu.hub_server != hub:
        raise AuthRejected("hub", "hub_server is not the hub of the room")
    cited: dict[StateKey, StateEvent] = {}
    for event_id in pdu.auth_events:
        event = came.get(event_id)
        if event is None or event.state_key is None:
            raise AuthRejected("4", "an event cites what did not come with it")
        cited[event.type, event.state_key] = state_event(event)
    before = pdu.prev_events[0] if pdu.prev_events else ""
    view = RoomView(pdu.room_id, pdu.version, hub, before, 0, cited)
    check_auth_events(pdu, view)
    if pdu.membership == "knock" and view.get("m.room.join_rules") is None:
        return  # the draft forgets to have it cited, so its rule cannot be asked
    authorize(pdu, view)
