"""What can go wrong when another server is asked something.

`str(error)` is a short fixed text that may be shown to a client or a peer; `detail` may name addresses and
ports and belongs only in our own log, so that nobody can scan ports or names through us (attack F12).
"""

from __future__ import annotations

from lmserver.protocol.errors import ProtocolError

MAX_REASON = 300


def told(text: object, most: int) -> str:
    """At most `most` characters of what another server says, as the database can keep it; "" for no text."""
    if not isinstance(text, str):
        return ""
    return text[:most].encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class FederationError(Exception):
    """Base class: the other server gave us nothing usable."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Unreachable(FederationError):
    """No answer: the name does not resolve, the address is refused, or the connection or deadline failed.

    Its text is the same for all of these; only `detail` tells them apart.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("server could not be reached", detail[:MAX_REASON])


class NameNotFound(Unreachable):
    """DNS says that the name or the record does not exist."""


class AddressesRefused(Unreachable):
    """The name leads only to addresses or ports that we do not connect to."""


class BadResponse(FederationError):
    """An answer that is too large, cut short, not JSON, or not of the expected shape."""


class ResponseTooLarge(BadResponse):
    """An answer larger than was allowed for."""


class RemoteError(FederationError):
    """The other server answered, but not with 200.

    `hub` is who it says the room's hub is, when it is not the hub itself; `room_version` what it says
    the room's version is, when we do not speak it.
    """

    def __init__(
        self,
        status: int,
        errcode: str,
        error: str,
        retry_after_ms: int | None = None,
        hub: str | None = None,
        room_version: str | None = None,
    ) -> None:
        super().__init__(f"{status} {errcode}")
        self.status = status
        self.errcode = errcode
        self.error = error
        self.retry_after_ms = retry_after_ms
        self.hub = hub
        self.room_version = room_version

    @property
    def unknown_endpoint(self) -> bool:
        """The server does not know the endpoint: another dialect of it may work."""
        return self.status in (404, 405) and self.errcode in ("M_UNRECOGNIZED", "")


class KeysUnavailable(ProtocolError):
    """A server's keys could not be fetched now; the same check may succeed later."""


class OidcError(Exception):
    """An OpenID Connect provider could not be asked, or what it gave proves nothing; the text is ours."""
