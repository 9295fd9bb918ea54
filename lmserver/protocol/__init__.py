"""Linearized Matrix as pure functions and values: theory of operation.

A room is one list of events. Each event cites its predecessor by hash, so the list can be copied
by anyone and changed by no one. One server at a time, the room's *hub*, decides the order; every
other server with a user in the room is a *participant*. A server is hub of one room and
participant of the next, and being the hub is state of the room: code asks `view.hub == our_name`
for each event.

From LPDU to PDU. A participant cannot know what its event will follow. It sends the hub an
*LPDU*: the event with `hub_server` and `hashes.lpdu`, without `auth_events` and `prev_events`,
signed. The hub adds those two, hashes the whole, signs it, appends it, and sends the finished
*PDU* to every server in the room, the sender's too. Only then does the event have its ID, the
hash of the PDU. The hub's own events start as PDUs: no `hub_server`, one hash, one signature.
What is an LPDU is told by its shape, never by a flag of its sender.

Checks on receipt (D04 §Receiving Events), numbered in the order they run, and who does each:

 1. The request is signed by its origin, for us.              both         transport
 2. The body is JSON with one reading, of bounded size.       both         canonical_json
 3. The event has its schema; names are in their grammar.     both         events, ids
 4. It comes from the right server: an LPDU from its sender's
    server, a PDU from the room's hub.                        both         hub / participant
 5. The signatures of the sender's server and, on a PDU, of
    the hub are valid; the keys were valid then.              both         signatures
 6. The content hashes are right; if not, only the redacted
    event goes on.                                            both         hashes, redaction
 7. `hub_server` names the room's hub.                        both         hub / participant
 8. It is new: neither its event ID nor its LPDU hash is in
    the room. An LPDU's signature covers no position, so the
    hash is what stops a replay.                              both         hub / participant
 9. It follows the head of the list: neither gap nor fork.    participant  participant
10. `auth_events` are the selection recomputed from the state
    before the event (on an LPDU the hub makes them).         participant  auth_rules
11. The auth rules allow it in the state before the event.    both         auth_rules, power_levels

A hub that finds fault rejects: the event gets no place in the list. A participant cannot reject
what the hub has placed, for the list must hash: it keeps the event, marks it soft-failed from
step 10 on, shows it to nobody and records the evidence.

Everything here is synchronous and deterministic: no network, database, clock, randomness or log.
Decisions are returned as data (`hub`, `participant`), and the engine in `lmserver.rooms` acts on
them. A room version is a row in `room_versions`. What a server or user may read of the list is
decided in `visibility`.
"""
