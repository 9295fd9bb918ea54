"""Events as clients get them: the standard client event fields and nothing of the protocol.

What makes an event verifiable (hashes, signatures, hub_server, auth_events, prev_events) stays
between servers. Redacted events leave this module pruned, whatever asked for them (attack C7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from lmserver.protocol.canonical_json import MAX_INT
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import RoomVersion
from lmserver.storage.room_log import StoredEvent

ClientEvent = dict[str, Any]

ENCRYPTED: Final = "m.room.encrypted"
"""Of these `unsigned.membership` tells the reader's membership then, by which clients explain why a
message cannot be decrypted (CS API §UnsignedData; elsewhere nobody asks)."""

# CS API §Room event format. `state_key` is there for state events only.
_FIELDS = ("type", "sender", "origin_server_ts", "content", "state_key")


class Shown:
    """An event parsed once, in the form readers may see (redacted where it was redacted). Many share it, so
    nobody changes it."""

    __slots__ = (
        "_head",
        "content",
        "event_id",
        "fields",
        "position",
        "redacted_by",
        "sender",
        "state_key",
        "type",
    )

    def __init__(
        self, event_id: str, position: int | None, fields: dict[str, Any], redacted_by: str | None
    ) -> None:
        self.event_id = event_id
        self.position = position
        self.fields = fields
        self.redacted_by = redacted_by
        self.type: str = fields["type"]
        self.sender: str = fields["sender"]
        self.state_key: str | None = fields.get("state_key")
        self.content: dict[str, Any] = fields["content"]
        self._head: bytes | None = None

    @property
    def head(self) -> bytes:
        """The client's form up to `unsigned`, serialized: the same for everybody."""
        if self._head is None:
            self._head = orjson.dumps(_public(self, None))[:-1]
        return self._head


def shown(stored: StoredEvent, version: RoomVersion) -> Shown:
    """Parse stored bytes, which passed the strict parser when they came in."""
    fields = orjson.loads(stored.pdu)
    if stored.redacted_by is not None:
        fields = redact(fields, version)
    return Shown(stored.event_id, stored.position, fields, stored.redacted_by)


def redacted(event: Shown, version: RoomVersion) -> Shown:
    """A copy for somebody who may not see what it says; its ID is the same."""
    return Shown(event.event_id, event.position, redact(event.fields, version), event.redacted_by)


@dataclass(frozen=True, slots=True)
class ThreadBundle:
    """A thread as its root tells of it; `latest_edit` is the last edit of its latest event."""

    count: int
    participated: bool
    latest: Shown
    latest_edit: Shown | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is told with an event about those that relate to it (CS API §Aggregations of child events)."""

    edit: Shown | None = None
    references: Sequence[str] = ()
    thread: ThreadBundle | None = None

    def as_json(self, room_id: str | None, now_ms: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.edit is not None:
            found["m.replace"] = client_event(self.edit, room_id, Extras(now_ms))
        if self.references:
            found["m.reference"] = {"chunk": [{"event_id": event_id} for event_id in self.references]}
        if self.thread is not None:
            latest = self.thread.latest
            bundles = {latest.event_id: Bundle(self.thread.latest_edit)} if self.thread.latest_edit else {}
            found["m.thread"] = {
                "latest_event": client_event(latest, room_id, Extras(now_ms, bundles=bundles)),
                "count": self.thread.count,
                "current_user_participated": self.thread.participated,
            }
        return found


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes into `unsigned`, all of it private to the reader."""

    now_ms: int
    transaction_ids: Mapping[str, str] = field(default_factory=dict)
    redactions: Mapping[str, Shown] = field(default_factory=dict)
    previous: Mapping[str, Shown] = field(default_factory=dict)
    bundles: Mapping[str, Bundle] = field(default_factory=dict)
    memberships: Mapping[str, str] = field(default_factory=dict)

    @property
    def more(self) -> set[str]:
        """Events with which more is told than their age, but for redacted ones."""
        return {*self.transaction_ids, *self.previous, *self.bundles, *self.memberships}


def client_event(event: Shown, room_id: str | None, extras: Extras) -> ClientEvent:
    """The client's form; `room_id` None leaves it out, as /sync does."""
    return {**_public(event, room_id), "unsigned": _unsigned(event, room_id, extras)}


def told(events: Iterable[Shown], extras: Extras) -> list[orjson.Fragment]:
    """The same as /sync tells it, serialized: for each reader only `unsigned` is made."""
    more = extras.more
    found = []
    for event in events:
        if event.redacted_by is None and event.event_id not in more:
            unsigned = b'{"age":%d}' % _age(event, extras.now_ms)
        else:
            unsigned = orjson.dumps(_unsigned(event, None, extras))
        found.append(orjson.Fragment(b'%b,"unsigned":%b}' % (event.head, unsigned)))
    return found


def _public(event: Shown, room_id: str | None) -> ClientEvent:
    """CS API §Room event format; `redacts` is repeated at top level because clients of earlier
    room versions look for it there."""
    result: ClientEvent = {"event_id": event.event_id}
    for key in _FIELDS:
        if key in event.fields:
            result[key] = event.fields[key]
    if room_id is not None:
        result["room_id"] = room_id
    if event.type == "m.room.redaction" and isinstance(event.content.get("redacts"), str):
        result["redacts"] = event.content["redacts"]
    return result


def _age(event: Shown, now_ms: int) -> int:
    # A sender may claim any time at all; the difference must stay a number clients can hold.
    age: int = now_ms - event.fields["origin_server_ts"]
    return age if -MAX_INT <= age <= MAX_INT else max(-MAX_INT, min(age, MAX_INT))


def _unsigned(event: Shown, room_id: str | None, extras: Extras) -> dict[str, Any]:
    unsigned: dict[str, Any] = {"age": _age(event, extras.now_ms)}
    txn_id = extras.transaction_ids.get(event.event_id)
    if txn_id is not None:
        unsigned["transaction_id"] = txn_id
    membership = extras.memberships.get(event.event_id)
    if membership is not None:
        unsigned["membership"] = membership
    if event.redacted_by is not None:
        redaction = extras.redactions.get(event.redacted_by)
        if redaction is not None:
            unsigned["redacted_because"] = client_event(redaction, None, Extras(extras.now_ms))
    bundle = extras.bundles.get(event.event_id)
    if bundle is not None:
        unsigned["m.relations"] = bundle.as_json(room_id, extras.now_ms)
    previous = extras.previous.get(event.event_id)
    if previous is not None:
        unsigned["prev_content"] = previous.content
        unsigned["replaces_state"] = previous.event_id
        unsigned["prev_sender"] = previous.sender
    return unsigned


def stripped(event: Shown) -> ClientEvent:
    """A state event for somebody who is not in the room (CS API §Stripped state)."""
    return {key: event.fields[key] for key in ("type", "state_key", "sender", "content")}
