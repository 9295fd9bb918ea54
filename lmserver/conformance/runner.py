"""Run the checks, one after another, and tell how it goes."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from lmserver import dev_ca, own_keys
from lmserver.config import ConfigError
from lmserver.conformance import checks
from lmserver.conformance.client_api import ClientApi, ClientApiError, Login
from lmserver.conformance.exchange import Trace, Wire, resolve
from lmserver.conformance.listener import CannotListen, Listener, server_context
from lmserver.conformance.model import Check, Failed, Level, Outcome, Result, Role, Skipped
from lmserver.conformance.options import Options
from lmserver.conformance.paths import KEYS
from lmserver.conformance.persona import Persona
from lmserver.conformance.session import Session
from lmserver.federation_client.errors import Unreachable

CHECK_SECONDS = 60.0
EXPIRED_MS = -3600 * 1000

Progress = Callable[[Result], None]


class CannotRun(Exception):
    """The suite could not begin; the text says why."""


def chosen(patterns: Sequence[str]) -> list[Check]:
    """The checks whose names match one of the patterns, or all."""
    return [c for c in checks.ALL if not patterns or any(fnmatch.fnmatch(c.id, p) for p in patterns)]


async def run(options: Options, progress: Progress) -> list[Result]:
    """Every chosen check's result. Raises CannotRun."""
    wanted = chosen(options.only)
    if not wanted:
        raise CannotRun("no check has such a name; --list prints them")
    async with _session(options) as session:
        results = []
        for check in wanted:
            result = await _run_one(session, check)
            progress(result)
            results.append(result)
        return results


async def _run_one(session: Session, check: Check) -> Result:
    session.trace.entries.clear()
    started = time.monotonic()
    outcome, detail = Outcome.PASS, ""
    try:
        _suits(session.options.role, check.role)
        async with asyncio.timeout(CHECK_SECONDS):
            await check.function(session)
    except Skipped as reason:
        outcome, detail = Outcome.SKIP, str(reason)
    except Failed as fault:
        outcome, detail = Outcome.FAIL, str(fault)
    except TimeoutError:
        outcome, detail = Outcome.FAIL, f"not done in {CHECK_SECONDS:.0f} s"
    except Exception as error:
        # The check read an answer that has not the form the draft gives it.
        outcome, detail = Outcome.FAIL, f"an answer has another form: {type(error).__name__}: {error}"
    if outcome is Outcome.FAIL and check.level is Level.SHOULD:
        outcome = Outcome.WARN
    exchanges = list(session.trace.entries) if outcome in (Outcome.FAIL, Outcome.WARN) else []
    return Result(check, outcome, detail, time.monotonic() - started, exchanges)


def _suits(wanted: str, role: Role) -> None:
    if wanted != "both" and role is not Role.ANY and role.value != wanted:
        raise Skipped(f"--role {wanted}")


@asynccontextmanager
async def _session(options: Options) -> AsyncIterator[Session]:
    with tempfile.TemporaryDirectory(prefix="lmserver-conformance-") as folder:
        contexts, ca_file = _certificates(options, Path(folder))
        trace = Trace()
        try:
            target = await resolve(options.server, plain=options.plain_http, ca_file=ca_file)
        except Unreachable as error:
            raise CannotRun(f"{options.server}: {error} {error.detail}".strip()) from error
        wire = Wire(target, ca_file, trace)
        names = (options.name, *options.also)
        seed = _seed(options)
        personas = [Persona(name, options.server, wire, trace, seed) for name in names]
        expired = personas.pop() if len(personas) == 3 else None
        if expired is not None:
            expired.lifetime_ms = EXPIRED_MS
        session = Session(options, wire, trace, personas, expired)
        everybody = [*personas, *([] if expired is None else [expired])]
        listener = Listener(everybody, contexts, options.listen)
        try:
            await _begin(session, listener, options)
            yield session
        finally:
            await session.close()
            await listener.stop()
            await wire.close()


async def _begin(session: Session, listener: Listener, options: Options) -> None:
    try:
        await listener.start()
        await session.wire.send("GET", KEYS)
        if options.client_url is not None:
            session.client = ClientApi(options.client_url, session.trace)
            await session.client.log_in(
                Login(options.client_url, options.client_token, options.user, options.password,
                      options.register)
            )  # fmt: skip
    except CannotListen as error:
        raise CannotRun(f"cannot listen on {error}") from error
    except Failed as error:
        raise CannotRun(f"{options.server} cannot be reached: {error}") from error
    except ClientApiError as error:
        raise CannotRun(f"client API: {error}") from error


def _certificates(options: Options, folder: Path) -> tuple[dict[str, ssl.SSLContext | None], Path | None]:
    """A TLS context for each of our names, and the authorities to trust. Raises CannotRun."""
    names = (options.name, *options.also)
    if options.plain_http:
        return dict.fromkeys(names), options.ca_file
    try:
        if options.certificate is not None and options.private_key is not None:
            context = server_context(options.certificate, options.private_key)
            return dict.fromkeys(names, context), options.ca_file
        made = {name: dev_ca.issue(options.dev or folder, name) for name in names}
        contexts: dict[str, ssl.SSLContext | None] = {
            name: server_context(one.certificate, one.private_key) for name, one in made.items()
        }
    except OSError as error:
        raise CannotRun(f"certificate: {error}") from error
    return contexts, options.ca_file or made[options.name].ca


def _seed(options: Options) -> bytes:
    """Of a key file that is kept: a server that has seen NAME before believes only its keys of then.
    Raises CannotRun."""
    path = options.signing_key
    if path is None and options.dev is not None:
        path = options.dev / "conformance.key"
    if path is None:
        return os.urandom(32)
    try:
        if not path.exists():
            own_keys.generate(path)
        return own_keys.load(path, options.name).signing.seed
    except ConfigError as error:
        raise CannotRun("; ".join(error.problems)) from error
