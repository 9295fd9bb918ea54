"""A room whose hub is the server under test, as a participant of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmserver.conformance import draft
from lmserver.conformance.draft import Event
from lmserver.conformance.exchange import Answer
from lmserver.conformance.model import Failed, expect
from lmserver.conformance.persona import Persona, now_ms
from lmserver.conformance.session import Session

MEMBER = "m.room.member"
MESSAGE = "m.room.message"


class RemoteRoom:
    """Joined through the membership endpoints; `joins` are the answers to our send_joins by user."""

    def __init__(self, session: Session, room_id: str) -> None:
        self.session = session
        self.room_id = room_id
        self.version = session.version
        self.joins: dict[str, Event] = {}
        self._last_ts = 0

    # -- coming in --------------------------------------------------------------------------------

    async def make(
        self, membership: str, user: str, *versions: str, persona: Persona | None = None
    ) -> Answer:
        """make_join, make_leave or make_knock."""
        if not versions and membership != "leave":
            versions = (self.version,)
        uri = self.session.paths.make_member(membership, self.room_id, user, *versions)
        return await (persona or self.session.me).ask("GET", uri)

    async def send_member(
        self, membership: str, lpdu: Event, *, persona: Persona | None = None, txn_id: str | None = None
    ) -> Answer:
        """send_join, send_leave or send_knock."""
        uri = self.session.paths.send_member(membership, txn_id or self.session.fresh())
        return await (persona or self.session.me).ask("POST", uri, lpdu)

    async def handshake(self, membership: str, user: str, *, persona: Persona | None = None) -> Event:
        """make_ and send_ with our own LPDU; the answer to the second."""
        (await self.make(membership, user, persona=persona)).expect(200)
        lpdu = self.member(membership, user, persona=persona)
        return (await self.send_member(membership, lpdu, persona=persona)).expect(200)

    async def join(self, user: str, *, persona: Persona | None = None) -> Event:
        """The answer to send_join."""
        answer = await self.handshake("join", user, persona=persona)
        if not self.joins:
            self.session.on_close(self.leave)
        self.joins[user] = answer
        (persona or self.session.me).remember(answer["event"])
        return answer

    async def leave(self) -> None:
        """Take all our users out, so that the hub need not look for us when we are gone."""
        for persona in self.session.personas:
            users = [
                key
                for (type_, key), event in self.state().items()
                if type_ == MEMBER and draft.server_of(key) == persona.name
                and event["content"].get("membership") == "join"
            ]  # fmt: skip
            for start in range(0, len(users), 50):
                leaves = [self.member("leave", user, persona=persona) for user in users[start : start + 50]]
                await self.session.transaction(leaves, persona=persona)

    # -- our events ---------------------------------------------------------------------------------

    def fields(
        self, type_: str, content: Any, *, sender: str | None = None, state_key: str | None = None,
        **extra: Any,
    ) -> Event:  # fmt: skip
        """An event of ours before it is hashed and signed; times differ, so LPDUs do."""
        self._last_ts = max(now_ms(), self._last_ts + 1)
        fields = {
            "room_id": self.room_id,
            "type": type_,
            "sender": sender or self.session.me.user("conformance"),
            "origin_server_ts": self._last_ts,
            "hub_server": self.session.server,
            "content": content,
        }
        return fields | ({} if state_key is None else {"state_key": state_key}) | extra

    def seal(self, fields: Event, *, persona: Persona | None = None) -> Event:
        """Hash and sign, as far as the fields have the form for it."""
        sealed = {
            **draft.without(fields, "signatures"),
            "hashes": {"lpdu": {"sha256": draft.lpdu_hash(fields)}},
        }
        key = (persona or self.session.me).key
        try:
            return key.sign_event(sealed, self.version)
        except (KeyError, TypeError, AttributeError):
            return {**sealed, "signatures": key.add_to(None, draft.canonical(sealed))}

    def lpdu(self, type_: str, content: Any, *, persona: Persona | None = None, **more: Any) -> Event:
        return self.seal(self.fields(type_, content, **more), persona=persona)

    def message(self, text: str = "hello", **more: Any) -> Event:
        return self.lpdu(MESSAGE, {"msgtype": "m.text", "body": text}, **more)

    def member(self, membership: str, user: str, *, target: str | None = None, **more: Any) -> Event:
        return self.lpdu(MEMBER, {"membership": membership}, sender=user, state_key=target or user, **more)

    # -- what becomes of them -----------------------------------------------------------------------

    def find(self, lpdu: Event, persona: Persona | None = None) -> Event | None:
        """The PDU made of an LPDU, if it has come."""
        wanted = lpdu["hashes"]["lpdu"]["sha256"], lpdu.get("sender")
        for pdu in (persona or self.session.me).pdus:
            lpdu_hash = pdu.get("hashes", {}).get("lpdu", {}).get("sha256")
            if (lpdu_hash, pdu.get("sender")) == wanted:
                return pdu
        return None

    async def echo(self, lpdu: Event, persona: Persona | None = None) -> Event:
        """The PDU of an LPDU, once the hub has sent it."""
        what = f"the hub to send the {lpdu.get('type')} event of {lpdu.get('sender')} as a PDU"
        return await (persona or self.session.me).until(lambda: self.find(lpdu, persona), what)

    async def appended(self, lpdu: Event, *, persona: Persona | None = None) -> Event:
        """Send an LPDU that has to be accepted; its PDU."""
        answer = await self.session.transaction([lpdu], persona=persona)
        failed = answer.expect(200).get("failed_pdus") or {}
        if self.event_id(lpdu) in failed:
            raise Failed(f"the hub refused it: {failed}")
        return await self.echo(lpdu, persona)

    async def refused(self, bad: Event, *, persona: Persona | None = None) -> Event:
        """Send an event that may not be appended, then one that has to be: only that comes back.

        Returns `failed_pdus` of the first.
        """
        honest = self.message("beside a bad one")
        answer = await self.session.transaction([bad], persona=persona)
        failed: Event = answer.expect(200).get("failed_pdus") or {}
        (await self.session.transaction([honest])).expect(200)
        await self.echo(honest)
        expect(self.find(bad) is None, f"the event was appended: {self.find(bad)}")
        return failed

    def event_id(self, event: Event) -> str:
        return draft.event_id(event, self.version)

    # -- the room -------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """The list from our first join on, as the hub has sent it."""
        listed: dict[str, Event] = {}
        for pdu in self.session.me.pdus:
            if pdu.get("room_id") == self.room_id:
                listed.setdefault(self.event_id(pdu), pdu)
        first = self.event_id(next(iter(self.joins.values()))["event"])
        return list(listed.values())[list(listed).index(first) :]

    def state(self, before: str | None = None) -> Mapping[tuple[str, str], Event]:
        """The state before an event of the list, or at its end."""
        first = next(iter(self.joins.values()))
        state = {(event["type"], event["state_key"]): event for event in first["state"]}
        for event in self.events():
            if self.event_id(event) == before:
                break
            if "state_key" in event:
                state[event["type"], event["state_key"]] = event
        return state
