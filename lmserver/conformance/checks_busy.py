"""One transaction at a time (D04 §Sending Events). First of all, while our third server is a stranger
whose keys have to be asked for: that keeps a transaction in flight for as long as we like."""

from __future__ import annotations

import asyncio

from lmserver.conformance import our_rooms
from lmserver.conformance.model import Role, Skipped, check
from lmserver.conformance.persona import WAIT, Inbound, Reply
from lmserver.conformance.session import Session

SEND = "PUT /_matrix/federation/v2/send/:txnId"


@check(
    "receive.bad_state",
    SEND,
    "Another transaction while one is in flight is answered 400 M_BAD_STATE.",
    role=Role.PARTICIPANT,
)
async def bad_state(s: Session) -> None:
    room = (await our_rooms.hub(s)).open()
    await our_rooms.join(s, room)
    free, asked = asyncio.Event(), asyncio.Event()

    async def stall(request: Inbound) -> Reply | None:
        asked.set()
        await free.wait()
        return None

    sender = s.expired.user("sender")
    lpdu = room.lpdu(s.expired, room.fields("m.room.message", {"body": "whose key is this?"}, sender=sender))
    with s.expired.intercepting("/_matrix/key/v2/server", stall):
        first = asyncio.create_task(s.transaction([room.complete(lpdu)]))
        first.add_done_callback(lambda _: asked.set())
        try:
            async with asyncio.timeout(WAIT):
                await asked.wait()
            if first.done():
                raise Skipped("the server did not ask for keys: it has seen the third name in a run before")
            (await s.transaction([])).expect(400, "M_BAD_STATE")
        finally:
            free.set()
            await asyncio.gather(first, return_exceptions=True)
