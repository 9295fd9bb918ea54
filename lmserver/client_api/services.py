"""What clients need to reach services beside this server: relays for calls, and proof of who they are."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import Any

from lmserver.accounts.openid import LIFETIME_MS, OpenIdTokens
from lmserver.config_turn import Turn
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import forbidden


class ServiceEndpoints:
    """TURN and OpenID."""

    def __init__(
        self, our_name: str, turn: Turn | None, tokens: OpenIdTokens, clock: Callable[[], int]
    ) -> None:
        self._our_name = our_name
        self._turn = turn
        self._tokens = tokens
        self._clock = clock

    @endpoint("GET", "/_matrix/client/v3/voip/turnServer", auth=Auth.USER)
    async def turn_server(self, request: Request) -> dict[str, Any]:
        """Relays for calls, and what lets this user in; {} where there are none."""
        turn = self._turn
        if turn is None:
            return {}
        name, password = turn.username or "", turn.password or ""
        if turn.shared_secret is not None:
            until = self._clock() // 1000 + turn.ttl_seconds
            name = f"{until}:{request.requester.user_id}"
            password = _password(turn.shared_secret, name)
        return {"uris": list(turn.uris), "username": name, "password": password, "ttl": turn.ttl_seconds}

    @endpoint("POST", "/_matrix/client/v3/user/{user_id}/openid/request_token", auth=Auth.USER)
    async def request_token(self, request: Request) -> dict[str, Any]:
        """A token that proves to a service who one is (CS API §OpenID)."""
        await request.json_or_empty()
        if request.params["user_id"] != request.requester.user_id:
            raise forbidden("This is another user's")
        return {
            "access_token": await self._tokens.issue(request.requester.user_id),
            "token_type": "Bearer",
            "matrix_server_name": self._our_name,
            "expires_in": LIFETIME_MS // 1000,
        }


def _password(secret: str, name: str) -> str:
    """As coturn's use-auth-secret wants it: HMAC-SHA1 of the name, in base64."""
    return base64.b64encode(hmac.digest(secret.encode(), name.encode(), "sha1")).decode()
