"""The draft's endpoints, in the stable form or in the unstable one of its implementation notes."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode

from lmserver.conformance.draft import UNSTABLE_VERSION

FEDERATION = "/_matrix/federation"
UNSTABLE = f"{FEDERATION}/unstable/{UNSTABLE_VERSION}"
KEYS = "/_matrix/key/v2/server"
KEY_QUERY = "/_matrix/key/v2/query"


def _segments(*segments: str) -> str:
    return "".join("/" + quote(segment, safe="") for segment in segments)


@dataclass(frozen=True)
class Paths:
    """Request targets, ready for the wire."""

    stable: bool

    def _under(self, version: str, *segments: str) -> str:
        """An endpoint that has an unstable form."""
        return (f"{FEDERATION}/{version}" if self.stable else UNSTABLE) + _segments(*segments)

    def send(self, txn_id: str) -> str:
        return self._under("v2", "send", txn_id)

    def invite(self, txn_id: str) -> str:
        return self._under("v3", "invite", txn_id)

    def send_member(self, membership: str, txn_id: str) -> str:
        """send_join, send_leave or send_knock."""
        return self._under("v3", f"send_{membership}", txn_id)

    def make_member(self, membership: str, room_id: str, user_id: str, *versions: str) -> str:
        """make_join, make_leave or make_knock; `versions` are the `ver` parameters."""
        path = f"{FEDERATION}/v1" + _segments(f"make_{membership}", room_id, user_id)
        return path if not versions else f"{path}?{urlencode([('ver', v) for v in versions])}"

    def event(self, event_id: str) -> str:
        return self._under("v2", "event", event_id)

    def backfill(self, room_id: str, event_id: str, limit: int) -> str:
        return f"{self._under('v2', 'backfill', room_id)}?{urlencode([('v', event_id), ('limit', limit)])}"

    def state(self, room_id: str, event_id: str, *, ids: bool = False) -> str:
        endpoint = "state_ids" if ids else "state"
        return f"{FEDERATION}/v1{_segments(endpoint, room_id)}?{urlencode({'event_id': event_id})}"

    def device(self, user_id: str, device_id: str) -> str:
        return self._under("v1", "user", user_id, "device", device_id)

    def claim(self) -> str:
        return f"{FEDERATION}/v1/user/keys/claim"
