"""The one door to PostgreSQL: a pool, transactions that are retried, and what failures mean.

Callers see two failures: DatabaseUnavailable (try later; the outcome of a commit may be unknown,
so everything above is idempotent) and UniqueViolation (somebody was first). Everything else is a
defect and surfaces as what it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import asyncpg
import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_TRIES = 5
FIRST_PAUSE_SECONDS = 0.01
CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 10.0
"""How long we wait for an answer: a connection may have gone silent without a word (drill D5)."""
UPKEEP_SECONDS = 60.0

# A lock is waited for 5 s, a statement runs 30 s at most, and a transaction whose client has gone
# silent is ended by the server after 5 s: one stuck process cannot hold a room for long.
_SESSION = {
    "application_name": "lmserver",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "5s",
    "timezone": "UTC",
    "jit": "off",
}

_RETRIED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_UNAVAILABLE = (
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.LockNotAvailableError,
    asyncpg.InterfaceError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,
    ConnectionError,
    OSError,
    TimeoutError,
)


class DatabaseUnavailable(Exception):
    """The database cannot serve this now; `retry_after` is seconds."""

    retry_after = 2


class UniqueViolation(Exception):
    """A unique index has the value already; `constraint` is the index's name."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class UnsafeDatabase(Exception):
    """The database would not keep what it has acknowledged, or cannot hold what we store."""


class Executor(Protocol):
    """Runs static SQL with parameters: the pool, or a connection inside a transaction."""

    async def fetch(self, query: str, /, *args: Any) -> list[Any]: ...

    async def fetchrow(self, query: str, /, *args: Any) -> Any: ...

    async def fetchval(self, query: str, /, *args: Any) -> Any: ...

    async def execute(self, query: str, /, *args: Any) -> str: ...


class Connection(Executor, Protocol):
    """An executor inside a transaction."""

    async def executemany(self, query: str, rows: Sequence[Sequence[Any]], /) -> None: ...


class FaultHook(Protocol):
    """Called around commits; drills inject failures by raising here."""

    async def before_commit(self) -> None: ...

    async def after_commit(self) -> None: ...


class Database:
    """A pool of connections with retried transactions."""

    def __init__(
        self, pool: asyncpg.Pool[Any], faults: FaultHook | None = None, timeout: float | None = None
    ) -> None:
        self._pool = pool
        self._faults = faults
        self._timeout = timeout

    def patient(self) -> Database:
        """The same pool for statements that go through whole tables; transactions are as ever."""
        return Database(self._pool, self._faults, UPKEEP_SECONDS)

    @classmethod
    async def connect(cls, dsn: str, max_size: int = 10, faults: FaultHook | None = None) -> Database:
        """Open the pool; raises DatabaseUnavailable."""
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=max_size, server_settings=_SESSION,
                timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS,
                reset=_nothing_to_reset,
            )  # fmt: skip
        except (asyncpg.PostgresError, ValueError, *_UNAVAILABLE) as error:
            why = str(error) or type(error).__name__
            raise DatabaseUnavailable(
                f"cannot connect: {why}: is PostgreSQL running, and database.url right?"
            ) from error
        return cls(pool, faults)

    async def close(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), 10)
        except TimeoutError:
            self._pool.terminate()

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` in one READ COMMITTED transaction and return what it returned, after COMMIT.

        Serialization failures and deadlocks are retried from the start, so `work` must leave no
        trace outside the database. Raises DatabaseUnavailable or UniqueViolation.
        """
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await self._run_once(work)
            except _RETRIED as error:
                if attempt == MAX_TRIES:
                    raise DatabaseUnavailable("the transaction kept conflicting") from error
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause *= 2
        raise AssertionError("unreachable")

    async def _run_once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            async with self._pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    result = await work(cast("Connection", connection))
                    if self._faults is not None:
                        await self._faults.before_commit()
                except BaseException:
                    await _rollback(connection, transaction)
                    raise
                await transaction.commit()
                if self._faults is not None:
                    await self._faults.after_commit()
                return result
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolation(error.constraint_name or "") from error
        except _UNAVAILABLE as error:
            raise DatabaseUnavailable(type(error).__name__) from error

    async def fetch(self, query: str, /, *args: Any) -> list[Any]:
        return cast("list[Any]", await self._once(self._pool.fetch, query, *args))

    async def fetchrow(self, query: str, /, *args: Any) -> Any:
        return await self._once(self._pool.fetchrow, query, *args)

    async def fetchval(self, query: str, /, *args: Any) -> Any:
        return await self._once(self._pool.fetchval, query, *args)

    async def execute(self, query: str, /, *args: Any) -> str:
        return cast("str", await self._once(self._pool.execute, query, *args))

    async def write(self, query: str, /, *args: Any) -> Any:
        """The first value of a statement that is a transaction of its own: COMMIT comes with it."""
        return await self._once(self._commit, query, *args)

    async def _commit(self, query: str, /, *args: Any, timeout: float | None) -> Any:
        if self._faults is not None:
            await self._faults.before_commit()
        value = await self._pool.fetchval(query, *args, timeout=timeout)
        if self._faults is not None:
            await self._faults.after_commit()
        return value

    async def _once(self, method: Callable[..., Awaitable[Any]], query: str, *args: Any) -> Any:
        """One statement, its own transaction, retried like one."""
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await method(query, *args, timeout=self._timeout)
            except _RETRIED as error:
                if attempt == MAX_TRIES:
                    raise DatabaseUnavailable("the statement kept conflicting") from error
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause *= 2
            except asyncpg.UniqueViolationError as error:
                raise UniqueViolation(error.constraint_name or "") from error
            except _UNAVAILABLE as error:
                raise DatabaseUnavailable(type(error).__name__) from error
        raise AssertionError("unreachable")

    async def check_safety(self) -> None:
        """Refuse a database that would lose acknowledged events; raises UnsafeDatabase."""
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            value = await self.fetchval("SELECT current_setting($1)", setting)
            if value == "off":
                raise UnsafeDatabase(
                    f"PostgreSQL has {setting} = off: acknowledged events could be lost; turn it on"
                )
        if await self.fetchval("SELECT current_setting('server_encoding')") != "UTF8":
            raise UnsafeDatabase(
                "the database's encoding is not UTF8: create it with ENCODING 'UTF8' TEMPLATE template0"
            )
        if await self.fetchval("SELECT pg_is_in_recovery()"):
            raise UnsafeDatabase("the database is a replica in recovery: connect to the primary")
        if int(await self.fetchval("SELECT current_setting('server_version_num')")) < 130000:
            raise UnsafeDatabase("PostgreSQL 13 or newer is needed")


async def _nothing_to_reset(_: object) -> None:
    """We set nothing on a session that outlasts a transaction, and an open one is rolled back before
    this is called: no round trip at each release."""


async def _rollback(connection: Any, transaction: Any) -> None:
    """Roll back if the connection still lives; the original failure is what matters."""
    try:
        if not connection.is_closed():
            await transaction.rollback()
    except (asyncpg.PostgresError, *_UNAVAILABLE):
        log.debug("rollback_failed")
