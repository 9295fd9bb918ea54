"""Federation under load: fan-out to ten servers, joins into large rooms, a destination that was away.

All servers are lmserver processes of their own with a database each on one PostgreSQL, and speak TLS.
"Stored" is the time at which a server's append transaction was decided (`events.received_ts`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import asyncpg

from bench import servers
from bench.http import Http
from bench.local_send import Room
from bench.lpdu_intake import BATCH, Participant
from bench.servers import Measured, fresh_database

PARTICIPANTS = 10
MESSAGES = 1_000
PACED = 100
BODY = "a message of some length, as people write them, " + "x" * 250
WAIT_SECONDS = 180.0


@dataclass(frozen=True)
class FanOut:
    """Messages a second until the last of the ten has all, and latencies in ms at 100 a second."""

    messages_per_second: float
    deliveries_per_second: float
    p50: float
    p99: float
    lost: int


@dataclass(frozen=True)
class Join:
    """Seconds until /join has answered, with the whole state stored and verified, and its size."""

    members: int
    history: int
    seconds: float
    members_stored: int


@dataclass(frozen=True)
class Outage:
    """What 50,000 events for a server that is away cost the others, and how it catches up."""

    events: int
    rss_before: float
    rss_after: float
    p50_before: float
    p50_during: float
    catch_up_per_second: float
    lost: int


class Farm:
    """Servers on databases of one PostgreSQL; `admin` is its DSN."""

    def __init__(self, folder: Path, admin: str) -> None:
        self.folder, self.admin = folder, admin
        self.started: list[Measured] = []

    def dsn(self, label: str) -> str:
        return self.admin.replace("/lmserver?", f"/bench_{label}?")

    async def server(self, label: str, plain_peers: Sequence[str] = ()) -> Measured:
        await fresh_database(self.admin, f"bench_{label}")
        server = servers.lmserver(self.folder, self.dsn(label), list(plain_peers), label, pool=4, tls=True)
        await server.start()
        self.started.append(server)
        return server

    def stop(self) -> None:
        for server in self.started:
            server.stop()

    async def received(self, label: str, room_id: str) -> dict[str, int]:
        """Event ID to the time it was stored, of all messages of a room."""
        db = await asyncpg.connect(self.dsn(label))
        try:
            rows = await db.fetch(
                "SELECT event_id, received_ts FROM events WHERE room_id = $1 AND type = 'm.room.message'",
                room_id,
            )
            return {row["event_id"]: row["received_ts"] for row in rows}
        finally:
            await db.close()

    async def count(self, label: str, room_id: str, type_: str) -> int:
        db = await asyncpg.connect(self.dsn(label))
        try:
            return int(
                await db.fetchval(
                    "SELECT count(*) FROM events WHERE room_id = $1 AND type = $2", room_id, type_
                )
            )
        finally:
            await db.close()

    async def until(self, label: str, room_id: str, messages: int) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while await self.count(label, room_id, "m.room.message") < messages:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{label} has not all messages after {WAIT_SECONDS:.0f} s")
            await asyncio.sleep(0.02)


async def public_room(hub: Measured, http: Http) -> tuple[Room, str]:
    room = Room(hub, http)
    await room.build(1)
    return room, room.room.replace("%21", "!").replace("%3A", ":")


async def member(server: Measured, http: Http, room: str) -> Room:
    """A user of another server, in the room."""
    user = Room(server, http)
    await user.build(1)
    await user.call(user.tokens[0], "POST", f"/join/{room}", {})
    user.room = room
    return user


# -- fan-out ----------------------------------------------------------------------------------------


async def fan_out(farm: Farm) -> FanOut:
    """One participant's user writes; the hub tells ten servers, the writer's own among them."""
    hub = await farm.server("hub")
    labels = [f"p{n}" for n in range(PARTICIPANTS)]
    for label in labels:
        await farm.server(label)
    peers = farm.started[-PARTICIPANTS:]
    async with Http() as http:
        room, room_id = await public_room(hub, http)
        users = [await member(peer, http, room.room) for peer in peers]
        writer = users[0]
        started = time.monotonic()
        await asyncio.gather(*(_write(writer, MESSAGES // 10) for _ in range(10)))
        await asyncio.gather(*(farm.until(label, room_id, MESSAGES) for label in labels))
        seconds = time.monotonic() - started
        await _paced(writer, PACED, 10.0)
        total = MESSAGES + int(PACED * 10.0)
        await asyncio.gather(*(farm.until(label, room_id, total) for label in labels))
    at_hub = await farm.received("hub", room_id)
    stored = [await farm.received(label, room_id) for label in labels]
    paced = sorted(at_hub, key=lambda e: at_hub[e])[MESSAGES:]
    late = sorted(max(there[e] for there in stored) - at_hub[e] for e in paced)
    lost = sum(len(set(at_hub) - set(there)) for there in stored)
    return FanOut(
        MESSAGES / seconds,
        MESSAGES * PARTICIPANTS / seconds,
        float(median(late)),
        float(late[int(len(late) * 0.99)]),
        lost,
    )


async def _write(user: Room, number: int) -> None:
    for _ in range(number):
        await _message(user)


async def _message(user: Room) -> float:
    """Milliseconds until the event was answered; like a client it repeats what was answered 504."""
    started = time.monotonic()
    path = f"/rooms/{user.room}/send/m.room.message/{secrets.token_hex(6)}"
    while time.monotonic() - started < WAIT_SECONDS:
        try:
            await user.call(user.tokens[0], "PUT", path, {"msgtype": "m.text", "body": BODY})
            break
        except RuntimeError as error:
            if ": 504 " not in str(error):
                raise
    return (time.monotonic() - started) * 1000


async def _paced(user: Room, per_second: int, seconds: float) -> list[float]:
    """Messages at a fixed rate, whatever the answers take."""
    tasks = []
    started = time.monotonic()
    for number in range(int(per_second * seconds)):
        await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
        tasks.append(asyncio.create_task(_message(user)))
    return list(await asyncio.gather(*tasks))


# -- joins ------------------------------------------------------------------------------------------


async def joins(farm: Farm, sizes: Sequence[tuple[int, int]]) -> list[Join]:
    """For each (members, messages): a room like that, and the first user of another server joins."""
    crowd = Participant()
    await crowd.start()
    hub = await farm.server("jhub", [crowd.name])
    joiner = await farm.server("joiner", [crowd.name])
    found = []
    try:
        async with Http() as http:
            for members, history in sizes:
                room, room_id = await public_room(hub, http)
                await crowd.join(http, hub, room_id)
                await _fill(http, crowd, hub, room_id, members, history)
                user = Room(joiner, http)
                await user.build(1)
                started = time.monotonic()
                await user.call(user.tokens[0], "POST", f"/join/{room.room}", {})
                seconds = time.monotonic() - started
                stored = await farm.count("joiner", room_id, "m.room.member")
                found.append(Join(members, history, seconds, stored))
    finally:
        await crowd.stop()
    return found


async def _fill(
    http: Http, crowd: Participant, hub: Measured, room_id: str, members: int, history: int
) -> None:
    drafts = []
    for number in range(members - 2):
        user = f"@u{number}:{crowd.name}"
        content = {"membership": "join", "displayname": f"Member {number}"}
        drafts.append(crowd.draft(room_id, "m.room.member", content, user, user))
    for number in range(history):
        content = {"msgtype": "m.text", "body": f"{number} {BODY}"}
        drafts.append(crowd.draft(room_id, "m.room.message", content))
    for start in range(0, len(drafts), BATCH):
        pdus = [crowd.lpdu(hub, draft) for draft in drafts[start : start + BATCH]]
        if len(await crowd.send(http, hub, pdus)) != len(pdus):
            raise RuntimeError("the hub refused events")


# -- a destination away -----------------------------------------------------------------------------


async def outage(farm: Farm, events: int) -> Outage:
    """One of two participants is away while a third server sends; the other's latency is watched."""
    crowd = Participant()
    await crowd.start()
    hub = await farm.server("ohub", [crowd.name])
    present = await farm.server("present", [crowd.name])
    absent = await farm.server("absent", [crowd.name])
    try:
        async with Http() as http:
            room, room_id = await public_room(hub, http)
            writer = await member(present, http, room.room)
            await member(absent, http, room.room)
            before = await _paced(writer, 20, 5.0)
            rss_before = hub.rss_mb()
            absent.stop()
            await crowd.join(http, hub, room_id)
            latencies = await _paced(writer, 20, 5.0)
            for start in range(0, events, BATCH):
                content = [{"msgtype": "m.text", "body": f"{start + i} {BODY}"} for i in range(BATCH)]
                pdus = [crowd.lpdu(hub, crowd.draft(room_id, "m.room.message", c)) for c in content]
                await crowd.send(http, hub, pdus)
            total = events + 200
            await farm.until("present", room_id, total)
            rss_after = hub.rss_mb()
            have = await farm.count("absent", room_id, "m.room.message")
            await absent.start()
            started = time.monotonic()
            # A request of its own tells the hub that it is back.
            back = Room(absent, http)
            await back.build(1)
            await back.call(back.tokens[0], "POST", f"/join/{room.room}", {})
            await farm.until("absent", room_id, total)
            seconds = time.monotonic() - started
        lost = len(set(await farm.received("ohub", room_id)) - set(await farm.received("absent", room_id)))
    finally:
        await crowd.stop()
    return Outage(
        events,
        rss_before,
        rss_after,
        float(median(before)),
        float(median(latencies)),
        (total - have) / seconds,
        lost,
    )
