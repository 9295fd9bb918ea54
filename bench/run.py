"""`make bench`: measure, compare with stock Synapse in the same run, write bench/README.md."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench import federation, servers, storage, sync_load, verifying
from bench.http import Http
from bench.local_send import Room, Sends
from bench.lpdu_intake import Intake, Participant, measure
from bench.servers import Measured, fresh_database
from bench.sync_load import ROOMS, SyncLoad
from lmserver.storage.embedded_postgres import PORT, SUPERUSER, EmbeddedPostgres

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
CLIENTS = 50
PARTS = ("intake", "fan-out", "sync", "sends", "join", "verify")
Found = dict[str, Any]
"""What was measured of one server, by name."""


def spread(values: list[float], digits: int = 0) -> str:
    """Median [minimum..maximum]."""
    return f"{median(values):,.{digits}f} [{min(values):,.{digits}f}..{max(values):,.{digits}f}]"


def each(key: str, field: str) -> Callable[[Found], list[float]]:
    """A field of every repetition of what was measured under a name."""
    return lambda found: [getattr(repetition, field) for repetition in found[key]]


class Bench:
    """One run: everything on one PostgreSQL with fsync on."""

    def __init__(self, folder: Path, repetitions: int, seconds: float) -> None:
        self.folder, self.repetitions, self.seconds = folder, repetitions, seconds
        self.away, self.history = (50_000, 5_000) if seconds >= 5 else (2_000, 500)
        self.waiting = sync_load.WAITING if seconds >= 5 else 200
        self.rows: list[tuple[str, str, str, str]] = []
        self.postgres = EmbeddedPostgres(folder / "pg", print)
        self.dsn = ""

    async def run(self, *, with_synapse: bool) -> None:
        self.dsn = await self.postgres.start()
        try:
            ours = await self._lmserver()
            theirs = await self._synapse() if with_synapse else None
            self._compare(ours, theirs)
            self._verifying()
            await self._federation(self._fan_outs, self._joins, self._away)
        finally:
            await self.postgres.stop()

    async def run_only(self, part: str) -> None:
        """One of PARTS by itself, of lmserver alone."""
        if part == "verify":
            return self._verifying()
        self.dsn = await self.postgres.start()
        try:
            match part:
                case "fan-out":
                    await self._federation(self._fan_outs)
                case "join":
                    await self._federation(self._joins)
                case _:
                    await self._server_only(part)
        finally:
            await self.postgres.stop()

    async def _server_only(self, part: str) -> None:
        async with self._ours() as (server, participant):
            await server.start()
            match part:
                case "sends":
                    self._send_rows(await self._sends(server), None)
                case "intake":
                    self._intake_rows(await self._intakes(server, participant))
                case _:
                    self._sync(await self._waiting_clients(server), None)

    def _database(self, name: str) -> str:
        return self.dsn.replace("/lmserver?", f"/{name}?")

    @asynccontextmanager
    async def _ours(self) -> AsyncIterator[tuple[Measured, Participant]]:
        """An lmserver on a database of its own, not started yet, and a server that may write to it."""
        participant = Participant()
        await participant.start()
        await fresh_database(self.dsn, "bench_lmserver")
        server = servers.lmserver(self.folder, self._database("bench_lmserver"), [participant.name])
        try:
            yield server, participant
        finally:
            server.stop()
            await participant.stop()

    async def _lmserver(self) -> Found:
        async with self._ours() as (server, participant):
            found = await self._idle(server)
            await server.start()
            found |= await self._sends(server)
            found["intake"] = await self._intakes(server, participant)
            found["rss_after"] = server.rss_mb()
            await self._storage(server)
            found["sync"] = await self._waiting_clients(server)
        return found

    async def _waiting_clients(self, server: Measured) -> SyncLoad:
        return await sync_load.measure(server, clients=self.waiting, dsn=self._database("bench_lmserver"))

    async def _synapse(self) -> Found:
        await fresh_database(self.dsn, "bench_synapse")
        socket_dir = self.dsn.split("host=")[1].split("&")[0]
        server = servers.synapse(self.folder, socket_dir, str(PORT), SUPERUSER, "bench_synapse")
        found = await self._idle(server)
        await server.start()
        try:
            found |= await self._sends(server)
            found["rss_after"] = server.rss_mb()
            # A tenth of the waiting clients: each costs it a password to hash, and as much to wake.
            found["sync"] = await sync_load.measure(server, clients=self.waiting // 10)
        finally:
            server.stop()
        return found

    async def _idle(self, server: Measured) -> Found:
        """Start once to make the schema, then measure starts on the existing database."""
        await server.start()
        server.stop()
        ready, rss = [], []
        for _ in range(self.repetitions):
            await server.start()
            ready.append(server.ready_seconds)
            await asyncio.sleep(1.0)
            rss.append(server.rss_mb())
            server.stop()
        print(f"{server.label}: ready in {spread(ready, 2)} s, {spread(rss, 1)} MB", flush=True)
        return {"ready": ready, "rss": rss}

    async def _sends(self, server: Measured) -> dict[str, list[Sends]]:
        found: dict[str, list[Sends]] = {}
        async with Http() as http:
            room = Room(server, http)
            await room.build(CLIENTS)
            await room.send(CLIENTS, 1.0)
            for clients in (1, CLIENTS):
                found[f"send{clients}"] = [
                    await room.send(clients, self.seconds) for _ in range(self.repetitions)
                ]
                rates = [s.per_second for s in found[f"send{clients}"]]
                print(f"{server.label}: {clients} clients, {spread(rates)} events/s", flush=True)
        return found

    async def _intakes(self, server: Measured, participant: Participant) -> list[Intake]:
        return [await self._intake(server, participant) for _ in range(self.repetitions)]

    async def _intake(self, server: Measured, participant: Participant) -> Intake:
        async with Http() as http:
            room = Room(server, http)
            await room.build(1)
            room_id = room.room.replace("%21", "!").replace("%3A", ":")
        intake = await measure(server, participant, room_id, int(60 * self.seconds))
        print(f"lmserver: {intake.per_second:,.0f} LPDUs/s", flush=True)
        return intake

    async def _storage(self, server: Measured) -> None:
        dsn = self._database("bench_lmserver")
        large = await storage.large_room(dsn, server, self.repetitions, self.seconds)
        print(large, flush=True)
        for what, found in ((storage.SMALL, large.small), (storage.LARGE, large.large)):
            rates = spread([s.per_second for s in found])
            self.rows.append((f"{storage.SMALL} clients in a room of {what:,}, events/s", rates, "", ""))
        self.rows.append(("the same in the large room, share kept", f"{large.kept:.2f}", "", ""))
        async with Http() as http:
            room = Room(server, http)
            await room.build(CLIENTS)
            grown = {
                "message": await storage.messages(dsn, room, CLIENTS, self.seconds),
                f"of {storage.CHANGES:,} changes of state": await storage.changes(dsn, room),
            }
        print(grown, flush=True)
        for what, growth in grown.items():
            each = f"{growth.bytes_each:,.0f}, {growth.ratio:.2f} times the event's {growth.own_bytes:,.0f}"
            self.rows.append((f"database bytes for each {what}, indexes included", each, "", ""))

    # -- between servers ------------------------------------------------------------------------

    def _verifying(self) -> None:
        found = verifying.measure()
        ratio = f"{spread(found.ratios, 2)} of one thread"
        ratio_50 = f"{spread(found.transaction_ratios, 2)} of one thread"
        self.rows += [
            ("this machine: one Ed25519 verification, us", spread(found.verify_us, 1), "", ""),
            ("verify events on one thread, events/s", spread(found.one_thread), "", ""),
            ("verify events on the keyring's threads, events/s", spread(found.threads), "", ratio),
            ("the same in transactions of 50, events/s", spread(found.transactions), "", ratio_50),
        ]

    async def _federation(self, *parts: Callable[[federation.Farm], Awaitable[None]]) -> None:
        farm = federation.Farm(self.folder, self.dsn)
        for part in parts:
            try:
                await part(farm)
            finally:
                farm.stop()

    async def _fan_outs(self, farm: federation.Farm) -> None:
        found = []
        for _ in range(self.repetitions):
            found.append(await federation.fan_out(farm))
            farm.stop()
            print(found[-1], flush=True)
        what = f"1,000 messages through the hub to {federation.PARTICIPANTS} servers"
        self.rows += [
            (f"{what}, messages/s", spread([f.messages_per_second for f in found]), "", ""),
            (f"{what}, deliveries/s", spread([f.deliveries_per_second for f in found]), "", ""),
            ("100 messages/s: stored by the last server, p50 ms", spread([f.p50 for f in found]), "", ""),
            ("100 messages/s: stored by the last server, p99 ms", spread([f.p99 for f in found]), "", ""),
            ("deliveries lost", str(sum(f.lost for f in found)), "", ""),
        ]

    async def _joins(self, farm: federation.Farm) -> None:
        sizes = ((1_000, 0), (5_000, 0), (1_000, self.history))
        joins = [await federation.joins(farm, sizes) for _ in range(self.repetitions)]
        print(joins, flush=True)
        for index, (members, history) in enumerate(sizes):
            if any(found[index].members_stored != members + 1 for found in joins):
                raise RuntimeError("a join did not store every member")
            what = f"remote join, {members:,} members, {history:,} messages before, s"
            self.rows.append((what, spread([found[index].seconds for found in joins], 2), "", ""))

    async def _away(self, farm: federation.Farm) -> None:
        away = await federation.outage(farm, self.away)
        print(away, flush=True)
        what = f"a destination away for {away.events:,} events"
        self.rows += [
            (
                f"{what}: hub resident, MB",
                f"{away.rss_before:.1f} before, {away.rss_after:.1f} after",
                "",
                "",
            ),
            (
                f"{what}: send of another, p50 ms",
                f"{away.p50_before:.1f} before, {away.p50_during:.1f} during",
                "",
                "",
            ),
            (f"{what}: catch-up, events/s", f"{away.catch_up_per_second:,.0f}", "", ""),
            (f"{what}: events lost", str(away.lost), "", ""),
        ]

    # -- the table ------------------------------------------------------------------------------

    def _compare(self, ours: Found, theirs: Found | None) -> None:
        self._row("ready with an existing database, s", ours, theirs, lambda f: f["ready"], 2)
        self._row("idle, resident without the database, MB", ours, theirs, lambda f: f["rss"], 1)
        self._send_rows(ours, theirs)
        self._sync(ours["sync"], None if theirs is None else theirs["sync"])
        self._intake_rows(ours["intake"])

    def _send_rows(self, ours: Found, theirs: Found | None) -> None:
        for clients in (1, CLIENTS):
            key = f"send{clients}"
            what = f"local send, {clients} client{'s' * (clients > 1)}"
            self._row(f"{what}, events/s", ours, theirs, each(key, "per_second"))
            self._row(f"{what}, p50 ms", ours, theirs, each(key, "p50"), 1)
            self._row(f"{what}, p99 ms", ours, theirs, each(key, "p99"), 1)
            self._row(f"{what}, server CPU ms/event", ours, theirs, each(key, "cpu_ms"), 2)
        lost = self._lost(theirs) if theirs is not None else ""
        self.rows.append(("local send, events answered and not stored", self._lost(ours), lost, ""))

    def _intake_rows(self, intake: list[Intake]) -> None:
        self.rows += [
            ("hub intake, 50-LPDU transactions, events/s", spread([i.per_second for i in intake]), "", ""),
            ("hub intake, server CPU us/event", spread([i.cpu_us for i in intake]), "", ""),
            ("hub intake, events answered and not stored", str(sum(i.lost for i in intake)), "", ""),
        ]

    def _sync(self, ours: SyncLoad, theirs: SyncLoad | None) -> None:
        """Goals beside the figures: what they are on the machine of the table."""

        def row(what: str, values: Callable[[SyncLoad], list[float]], digits: int = 0) -> None:
            self._row(
                what, {"f": ours}, None if theirs is None else {"f": theirs}, lambda f: values(f["f"]), digits
            )

        row(f"first /sync of {ROOMS} rooms, ms (goal: 33)", lambda f: f.first_ms, 1)
        row("PUT to the receiver's /sync, p50 ms (goal: a tenth, 4)", lambda f: [f.way_p50], 1)
        row("PUT to the receiver's /sync, p99 ms", lambda f: [f.way_p99], 1)
        row("of it CPU of the clients, ms", lambda f: [f.way_client_ms], 2)
        clients = f"{ours.waiting:,} waiting clients" + (
            f" (Synapse: {theirs.waiting:,})" if theirs is not None else ""
        )
        row(f"{clients}: resident KB each (goal: 30)", lambda f: [f.kilobytes], 1)
        row(f"{clients}: until the last is woken, ms (goal: 400)", lambda f: f.wake_ms)
        row(f"{clients}: server CPU to wake them all, ms", lambda f: f.wake_cpu_ms)

    def _lost(self, found: Found) -> str:
        return str(sum(s.lost for k in ("send1", f"send{CLIENTS}") for s in found[k]))

    def _row(
        self,
        what: str,
        ours: Found,
        theirs: Found | None,
        values: Callable[[Found], list[float]],
        digits: int = 0,
    ) -> None:
        mine = values(ours)
        other, ratio = "", ""
        if theirs is not None:
            other = spread(values(theirs), digits)
            ratio = f"{median(mine) / median(values(theirs)):.2f}"
        self.rows.append((what, spread(mine, digits), other, ratio))

    def table(self) -> str:
        lines = ["| measure | lmserver | Synapse | ratio |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        facts = (
            f"{os.cpu_count()} cores, Python {platform.python_version()} ({platform.python_build()[1]},"
            f" {platform.python_compiler()}) for both servers, {self.repetitions} repetitions of"
            f" {self.seconds:g} s; median [minimum..maximum]. Load generator, servers and PostgreSQL share the cores."
        )
        return "\n".join([*lines, "", facts])


def write(table: str) -> None:
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repetition, nothing written")
    parser.add_argument("--skip-synapse", action="store_true", help="measure lmserver alone, nothing written")
    parser.add_argument("--only", choices=PARTS, help="one part of lmserver alone, nothing written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmbench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), 1 if options.quick else 3, 2.0 if options.quick else 5.0)
        whole = options.only is None
        uvloop.run(
            bench.run(with_synapse=not options.skip_synapse) if whole else bench.run_only(options.only)
        )
    print(bench.table())
    if whole and not options.quick and not options.skip_synapse:
        write(bench.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
