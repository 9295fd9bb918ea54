"""A room whose hub is the suite: an honest one, unless a check forges something."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import draft
from lmserver.conformance.draft import Event
from lmserver.conformance.persona import Persona, now_ms

Place = dict[str, Any]


class OurRoom:
    """The list and its state. `appended` LPDUs and our own events go to the server in list order."""

    def __init__(self, hub: Persona, room_id: str, version: str, **content: Any) -> None:
        self.hub = hub
        self.room_id = room_id
        self.version = version
        self.owner = hub.user("owner")
        self.events: list[Event] = []
        self.state: dict[tuple[str, str], Event] = {}
        self.lpdus: list[Event] = []
        self._last_ts = 0
        self._open(content)

    def _open(self, content: dict[str, Any]) -> None:
        rule = content.get("join_rule", "public")
        levels = {"users": {self.owner: 100}, "state_default": 50, "invite": 50, **content.get("levels", {})}
        for type_, state_key, body in (
            ("m.room.create", "", {"room_version": self.version}),
            ("m.room.member", self.owner, {"membership": "join"}),
            ("m.room.power_levels", "", levels),
            ("m.room.join_rules", "", {"join_rule": rule}),
            ("m.room.history_visibility", "", {"history_visibility": "shared"}),
            ("m.room.name", "", {"name": "Conformance"}),
        ):
            self.append(self.fields(type_, body, state_key=state_key))

    # -- making events ------------------------------------------------------------------------------

    def fields(
        self, type_: str, content: Any, *, sender: str | None = None, state_key: str | None = None
    ) -> Event:
        """An event before it has a place; times differ, so events do."""
        self._last_ts = max(now_ms(), self._last_ts + 1)
        fields = {
            "room_id": self.room_id, "type": type_, "sender": sender or self.owner,
            "origin_server_ts": self._last_ts, "content": content,
        }  # fmt: skip
        return fields if state_key is None else {**fields, "state_key": state_key}

    def lpdu(self, sender: Persona, fields: Event) -> Event:
        """An event of a user of another persona, as its server would send it."""
        named = {**fields, "hub_server": self.hub.name}
        hashed = {**named, "hashes": {"lpdu": {"sha256": draft.lpdu_hash(named)}}}
        return sender.key.sign_event(hashed, self.version)

    def place(self, event: Event) -> Place:
        """prev_events and auth_events at the head."""
        create = event["type"] == "m.room.create"
        keys = [] if create else draft.selection(event)
        return {
            "auth_events": [self.event_id(self.state[key]) for key in keys if key in self.state],
            "prev_events": [self.event_id(self.events[-1])] if self.events else [],
        }

    def complete(self, event: Event, **place: Any) -> Event:
        """The PDU of an LPDU or of our own event, hashed and signed; `place` replaces fields."""
        placed = {**event, **self.place(event), **place}
        return self.hub.key.sign_event(self.hashed(placed), self.version)

    def hashed(self, placed: Event) -> Event:
        return {**placed, "hashes": {**placed.get("hashes", {}), "sha256": draft.pdu_hash(placed)}}

    def append(self, event: Event) -> Event:
        """Complete an event and put it at the head."""
        return self.add(self.complete(event))

    def add(self, pdu: Event, *, applies: bool = True) -> Event:
        """Put a PDU at the head; one that breaks a rule changes no state."""
        self.events.append(pdu)
        if applies and "state_key" in pdu:
            self.state[pdu["type"], pdu["state_key"]] = pdu
        return pdu

    def message(self, text: str = "from the hub") -> Event:
        return self.fields("m.room.message", {"msgtype": "m.text", "body": text})

    def event_id(self, event: Event) -> str:
        return draft.event_id(event, self.version)

    def find(self, event_id: str) -> Event | None:
        return next((event for event in self.events if self.event_id(event) == event_id), None)

    # -- what others ask ------------------------------------------------------------------------------

    def auth_chain(self, events: list[Event]) -> list[Event]:
        """The auth events of these, recursively, in list order."""
        wanted = {cited for event in events for cited in event["auth_events"]}
        for event in reversed(self.events):
            if self.event_id(event) in wanted:
                wanted |= set(event["auth_events"])
        return [event for event in self.events if self.event_id(event) in wanted]

    def state_before(self, event_id: str) -> list[Event]:
        state: dict[tuple[str, str], Event] = {}
        for event in self.events:
            if self.event_id(event) == event_id:
                break
            if "state_key" in event:
                state[event["type"], event["state_key"]] = event
        return list(state.values())

    def stripped(self) -> list[Event]:
        shown = ("m.room.create", "m.room.join_rules", "m.room.name")
        return [
            {name: event[name] for name in ("sender", "type", "state_key", "content")}
            for event in self.state.values()
            if event["type"] in shown
        ]
