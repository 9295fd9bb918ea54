"""What requests of operators say, checked: query, path and body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lmserver.accounts.errors import AccountError, AccountLocked
from lmserver.protocol import ids
from lmserver.web.endpoint import Request
from lmserver.web.errors import ApiError, bad_json, bad_param, missing_param, user_locked

T = TypeVar("T")

SYNAPSE = "/_synapse/admin"
OWN = "/_lmserver/admin/v1"
MAX_PAGE = 1000
MAX_NUMBER = 2**53 - 1
MAX_TEXT = 4096


def number(request: Request, name: str, default: int, *, most: int = MAX_NUMBER) -> int:
    """A whole number of the query, 0 to `most`; one above is `most`."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise bad_param(f"{name} is not a number")
    return min(int(text), most)


def needed_number(request: Request, name: str) -> int:
    if name not in request.query:
        raise missing_param(f"{name} is missing")
    return number(request, name, 0)


def limit(request: Request, default: int = 100) -> int:
    """How long a page is: at least 1."""
    return max(1, number(request, "limit", default, most=MAX_PAGE))


def flag(request: Request, name: str) -> bool | None:
    text = request.query.get(name)
    if text is None:
        return None
    if text not in ("true", "false"):
        raise bad_param(f"{name} is true or false")
    return bool(text == "true")


def text(request: Request, name: str) -> str | None:
    value: str | None = request.query.get(name)
    if value is not None:
        _check_text(name, value)
    return value


def choice(request: Request, name: str, default: str, choices: frozenset[str]) -> str:
    value: str = request.query.get(name, default)
    if value not in choices:
        raise bad_param(f"{name} is one of {', '.join(sorted(choices))}")
    return value


def descending(request: Request) -> bool:
    return choice(request, "dir", "f", frozenset({"f", "b"})) == "b"


def user_id(request: Request, our_name: str) -> str:
    """A user of this server in the path; 400 for any other text."""
    value = request.params["user_id"]
    if not ids.is_user_id(value):
        raise bad_param("user_id is not valid")
    if ids.server_of(value) != our_name:
        raise bad_param("user_id is not of this server")
    return value


def room_id(request: Request) -> str:
    value = request.params["room_id"]
    if not ids.is_room_id(value):
        raise bad_param("room_id is not valid")
    return value


def server(request: Request, name: str = "server_name") -> str:
    value = request.params[name]
    if not ids.is_server_name(value):
        raise bad_param(f"{name} is not valid")
    return value


def of_body(body: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    """A member of the body, None where there is none or null; 400 when it is of another kind."""
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not kind:
        raise bad_json(f"{key} is of the wrong type")
    if isinstance(value, str):
        _check_text(key, value)
    checked: T = value
    return checked


def _check_text(key: str, value: str) -> None:
    if len(value) > MAX_TEXT or "\0" in value:
        raise bad_param(f"{key} is not acceptable text")


def needed(body: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = of_body(body, key, kind)
    if value is None:
        raise missing_param(f"{key} is missing")
    return value


def of_account(error: AccountError) -> ApiError:
    if isinstance(error, AccountLocked):
        return user_locked()
    return ApiError(error.status, error.errcode, error.reason)
