"""Endpoints are declared where they stand: method, paths, who may call, how large a body.

The declaration is data, so that a walk over the registry can fail on an endpoint that is
undocumented or open by accident.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from lmserver.web.request import Reply, Request, Requester, Streamed

__all__ = ["Auth", "Endpoint", "Reply", "Request", "Requester", "Streamed", "endpoint", "endpoints_of"]

MAX_CLIENT_BODY = 1024 * 1024
MAX_SERVER_BODY = 8 * 1024 * 1024
DEADLINE_SECONDS = 60.0
_MARK = "__lmserver_endpoint__"

Handler = Callable[[Request], Awaitable[Any]]
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class Auth(Enum):
    """Who has to be behind a request."""

    NONE = "none"
    USER = "user"
    LOCKED_USER = "user, locked ones too"
    OPTIONAL_USER = "optional user"
    SERVER = "server"
    ADMIN = "admin"
    ADMIN_PAGE = "admin in a browser"


MAX_AT_ONCE = 64
"""Requests of one user, server or address in progress at a time."""

_DEFAULT_RATES = {
    Auth.NONE: "anonymous",
    Auth.OPTIONAL_USER: "anonymous",
    Auth.USER: "requests",
    Auth.LOCKED_USER: "requests",
    Auth.SERVER: "federation_requests",
    Auth.ADMIN: "requests",
    Auth.ADMIN_PAGE: "requests",
}
"""No endpoint is without a limit."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the decorator says."""

    method: str
    paths: tuple[str, ...]
    auth: Auth
    max_body: int
    rate: str
    deadline: float
    at_once: int | None
    suspended: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A declared endpoint bound to its object; its paths have one `name`."""

    method: str
    path: str
    auth: Auth
    max_body: int
    rate: str
    deadline: float
    at_once: int | None
    suspended: bool
    name: str
    handler: Handler
    doc: str


def endpoint(
    method: str,
    *paths: str,
    auth: Auth,
    max_body: int | None = None,
    rate: str | None = None,
    deadline: float = DEADLINE_SECONDS,
    at_once: int | None = None,
    suspended: bool | None = None,
) -> Callable[[F], F]:
    """Declare a method of an endpoints class. `{name}` segments become path parameters; client
    paths under /v3 are served under /r0 too; `rate` names the rate limit that applies, counted by
    user, by server or, where neither is known, by address. `at_once` is for what is costly: so many
    requests of one of them are served at a time, others wait a little (else all share MAX_AT_ONCE).
    `suspended` says whether suspended users may ask; unless it is given they may read (GET)."""
    default = MAX_SERVER_BODY if auth is Auth.SERVER else MAX_CLIENT_BODY
    limit = rate or _DEFAULT_RATES[auth]
    reads = method == "GET" if suspended is None else suspended
    declaration = Declaration(
        method, _with_r0(paths), auth, max_body or default, limit, deadline, at_once, reads
    )

    def mark(function: F) -> F:
        setattr(function, _MARK, declaration)
        return function

    return mark


def _with_r0(paths: tuple[str, ...]) -> tuple[str, ...]:
    v3 = "/_matrix/client/v3/"
    return paths + tuple(p.replace(v3, "/_matrix/client/r0/", 1) for p in paths if p.startswith(v3))


def endpoints_of(owner: object) -> Iterator[Endpoint]:
    """Every endpoint declared on an object's class."""
    for name in dir(type(owner)):
        declared = getattr(getattr(type(owner), name, None), _MARK, None)
        if not isinstance(declared, Declaration):
            continue
        handler = getattr(owner, name)
        for path in declared.paths:
            yield Endpoint(
                declared.method,
                path,
                declared.auth,
                declared.max_body,
                declared.rate,
                declared.deadline,
                declared.at_once,
                declared.suspended,
                f"{type(owner).__module__}.{type(owner).__name__}.{name}",
                handler,
                (handler.__doc__ or "").strip(),
            )
