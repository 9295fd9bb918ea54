"""Errors a handler may answer with (Matrix CS API §Standard error response, D04 §Errors)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmserver.protocol import errors as protocol


class ApiError(Exception):
    """An HTTP status, a Matrix error code, a text for people, further members of the body, and headers."""

    def __init__(
        self,
        status: int,
        errcode: str,
        error: str,
        extra: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {errcode}")
        self.status = status
        self.errcode = errcode
        self.error = error
        self.extra = extra or {}
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {"errcode": self.errcode, "error": self.error, **self.extra}


def bad_json(error: str) -> ApiError:
    return ApiError(400, "M_BAD_JSON", error)


def not_json(error: str = "The body is not JSON") -> ApiError:
    return ApiError(400, "M_NOT_JSON", error)


def bad_param(error: str) -> ApiError:
    return ApiError(400, "M_INVALID_PARAM", error)


def missing_param(error: str) -> ApiError:
    return ApiError(400, "M_MISSING_PARAM", error)


def forbidden(error: str = "Not allowed") -> ApiError:
    return ApiError(403, "M_FORBIDDEN", error)


def not_found(error: str = "Not found") -> ApiError:
    return ApiError(404, "M_NOT_FOUND", error)


def unrecognized(status: int) -> ApiError:
    """404 for an unknown path, 405 for a known path and another method (D04 §Unsupported Endpoints)."""
    return ApiError(status, "M_UNRECOGNIZED", "Unrecognized request")


def too_large() -> ApiError:
    return ApiError(413, "M_TOO_LARGE", "The request is too large")


def unknown_token(*, soft_logout: bool = False) -> ApiError:
    return ApiError(401, "M_UNKNOWN_TOKEN", "Unrecognised access token", {"soft_logout": soft_logout})


def user_locked() -> ApiError:
    """The account is locked; its devices keep what they have (CS API §Account locking)."""
    return ApiError(401, "M_USER_LOCKED", "This account has been locked", {"soft_logout": True})


def user_suspended() -> ApiError:
    """The account may read, leave and little else (CS API §Account suspension)."""
    return ApiError(403, "M_USER_SUSPENDED", "You cannot do this while your account is suspended")


def missing_token() -> ApiError:
    return ApiError(401, "M_MISSING_TOKEN", "Missing access token")


def limited(retry_after: float) -> ApiError:
    """429 with whole milliseconds: clients refuse fractions."""
    return ApiError(
        429, "M_LIMIT_EXCEEDED", "Too many requests", {"retry_after_ms": max(1, int(retry_after * 1000))}
    )


def of_protocol(error: protocol.ProtocolError) -> ApiError:
    """The answer to what the protocol refuses; its text is from a fixed vocabulary."""
    match error:
        case protocol.InvalidJson():
            return not_json(str(error))
        case protocol.TooLarge():
            return ApiError(413, "M_TOO_LARGE", str(error))
        case protocol.RequestAuthError():
            return ApiError(401, "M_FORBIDDEN", str(error))
        case protocol.AuthRejected():
            return forbidden(error.reason)
        case protocol.SignatureError():
            return forbidden(str(error))
        case protocol.UnknownRoomVersion():
            return ApiError(400, "M_INCOMPATIBLE_ROOM_VERSION", str(error))
        case protocol.InvalidIdentifier():
            return bad_param(str(error))
        case _:
            return bad_json(str(error))
