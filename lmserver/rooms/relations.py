"""Relations between events (CS API §Forming relationships between events): the ones of an event, a room's
threads, and what is told with an event about the events that relate to it.

Nothing here is counted anew: relations are rows beside the list, written with the events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.protocol.events import EventDraft, Pdu
from lmserver.rooms.access import Access
from lmserver.rooms.client_format import Bundle, Shown, ThreadBundle, shown
from lmserver.rooms.threads import relation
from lmserver.storage import client_transactions, relations, room_log
from lmserver.storage.client_transactions import TransactionKey
from lmserver.storage.database import Executor
from lmserver.storage.relations import NewRelation, Parent, Thread
from lmserver.storage.room_log import StoredEvent

MAX_TEXT: Final = 255
"""Characters of a relation's type, and of what is kept of an annotation's key."""


def new_relation(pdu: Pdu, position: int) -> NewRelation | None:
    """The row of an event that relates to another; None for one that does not."""
    found = relation(pdu.content) if "m.relates_to" in pdu.content else None
    if found is None:
        return None
    rel_type, parent_id = found
    if not rel_type or len(rel_type) > MAX_TEXT or "\0" in rel_type:
        return None
    key = annotation_key(pdu.content)
    ts = pdu.fields["origin_server_ts"]
    return NewRelation(pdu.event_id, position, parent_id, rel_type, pdu.type, pdu.sender, ts, key)


def annotation_key(content: Mapping[str, Any]) -> str | None:
    """As much of an annotation's key as is compared."""
    key = content["m.relates_to"].get("key")
    return key[:MAX_TEXT] if isinstance(key, str) and "\0" not in key else None


async def bundles(
    db: Executor, user_id: str, rooms: Sequence[tuple[Access, Sequence[Shown]]]
) -> dict[str, Bundle]:
    """By event ID what is told with these events, as far as the user may see it (§Aggregations of child
    events): the last edit, references, and the thread that begins there."""
    asked = {e.event_id: (access, e) for access, events in rooms for e in events if e.state_key is None}
    if not asked:
        return {}
    with_some = await relations.related(db, [(access.room_id, id_) for id_, (access, _) in asked.items()])
    if not with_some:
        return {}
    parents = [_parent(*asked[event_id]) for event_id in asked if event_id in with_some]
    edits = await relations.replacements(db, [p for p in parents if asked[p.event_id][1].redacted_by is None])
    references = await relations.references(db, parents)
    threads = await _threads(db, user_id, [p for p in parents if _sees_all_since(*asked[p.event_id])])
    latest = await _edits_of_latest(db, asked, threads)
    return {
        p.event_id: bundle
        for p in parents
        if (bundle := _bundle(asked[p.event_id][0], p.event_id, edits, references, threads, latest))
    }


async def _threads(db: Executor, user_id: str, parents: Sequence[Parent]) -> dict[str, Thread]:
    found: dict[str, Thread] = {}
    for ignored in {frozenset(p.ignored) for p in parents}:  # one, but for users that change it meanwhile
        found |= await relations.threads(db, user_id, [p for p in parents if p.ignored == ignored])
    return found


async def _edits_of_latest(
    db: Executor, asked: Mapping[str, tuple[Access, Shown]], threads: Mapping[str, Thread]
) -> dict[str, StoredEvent]:
    """A thread's last event is told with its own last edit."""
    parents = [
        _parent(asked[root][0], shown(thread.latest, asked[root][0].version))
        for root, thread in threads.items()
    ]
    return await relations.replacements(db, parents) if parents else {}


def _parent(access: Access, event: Shown) -> Parent:
    return Parent(access.room_id, event.event_id, event.sender, event.type, access.ignored)


def _sees_all_since(access: Access, event: Shown) -> bool:
    """Whether the user sees everything after an event: only then a thread's number of replies tells
    nothing of what is hidden."""
    intervals = access.visible.intervals
    return (
        access.joined
        and event.position is not None
        and bool(intervals)
        and event.position >= intervals[-1][0]
    )


def _bundle(
    access: Access,
    event_id: str,
    edits: Mapping[str, StoredEvent],
    references: Mapping[str, Sequence[tuple[str, int, str]]],
    threads: Mapping[str, Thread],
    latest: Mapping[str, StoredEvent],
) -> Bundle | None:
    edit = _visible(access, edits.get(event_id))
    refers = [
        id_
        for id_, position, sender in references.get(event_id, ())
        if position in access.visible and sender not in access.ignored
    ]
    found, thread = threads.get(event_id), None
    if found is not None and found.replies > 0 and (last := _latest(access, found.latest)) is not None:
        last_edit = _visible(access, latest.get(last.event_id))
        thread = ThreadBundle(found.replies, found.participated, last, last_edit)
    return Bundle(edit, refers, thread) if edit is not None or refers or thread is not None else None


def _root(access: Access, stored: StoredEvent | None) -> Shown | None:
    """A thread stays one when its root is redacted."""
    if stored is None or stored.soft_failed is not None or stored.position is None:
        return None
    event = access.shown(stored)
    return None if stored.position not in access.visible or access.ignores(event) else event


def _visible(access: Access, stored: StoredEvent | None) -> Shown | None:
    """A redacted event relates to nothing any more, nor does the redacted copy of one."""
    event = _latest(access, stored)
    return None if event is None or access.erases(event) else event


def _latest(access: Access, stored: StoredEvent | None) -> Shown | None:
    """Of a thread that is told of."""
    return None if stored is None or stored.redacted_by is not None else _root(access, stored)


async def repeats_annotation(db: Executor, draft: EventDraft, txn: TransactionKey) -> bool:
    """Whether a user annotates an event with what they have annotated it with before; sending the same
    transaction again is none such (§Event annotations and reactions)."""
    found = relation(draft.content)
    if found is None or found[0] != "m.annotation":
        return False
    key = annotation_key(draft.content)
    if key is None or not await relations.annotated(
        db, draft.room_id, found[1], draft.sender, draft.type, key
    ):
        return False
    return not await client_transactions.known(db, draft.room_id, [txn])


@dataclass(frozen=True, slots=True)
class RelationPage:
    """Events of a page, and the position to go on from where there may be more."""

    events: list[Shown]
    next_from: int | None


MAX_DEPTH: Final = 3


async def related_to(
    db: Executor, access: Access, wanted: relations.Wanted, *, recurse: bool
) -> RelationPage:
    """A page of the events that relate to one, as the user may see them."""
    if recurse:
        stored = await relations.descendants(db, wanted, MAX_DEPTH)
    else:
        stored = await relations.children(db, wanted)
    events = [event for row in stored if (event := _visible(access, row)) is not None]
    last = stored[-1].position if len(stored) == wanted.limit else None
    if last is None:
        return RelationPage(events, None)
    return RelationPage(events, last - 1 if wanted.newest_first else last)


async def threads_of_room(
    db: Executor, access: Access, user_id: str, before: int, limit: int, *, participated: bool
) -> RelationPage:
    """Roots of the room's threads, those with the newest replies first; `next_from` is the position below
    which the next ones were last replied to."""
    places = await relations.newest_threads(
        db, access.room_id, before, limit, user_id if participated else None
    )
    stored = await room_log.events_by_id(db, access.room_id, [p.root_id for p in places])
    roots = {row.event_id: row for row in stored}
    seen = [_root(access, roots.get(p.root_id)) for p in places if p.last_position in access.visible]
    last = places[-1].last_position if len(places) == limit else None
    return RelationPage([event for event in seen if event is not None], last)
