"""Who is an operator: the one place that decides it."""

from __future__ import annotations

from lmserver.web.app import Authenticator
from lmserver.web.endpoint import Request
from lmserver.web.errors import forbidden


class AdminAuthenticator:
    """Lets users with an access token in whose account is an administrator's."""

    def __init__(self, user: Authenticator) -> None:
        self._user = user

    async def __call__(self, request: Request) -> None:
        """Raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN, M_USER_LOCKED, or M_FORBIDDEN for anybody else."""
        await self._user(request)
        if not request.requester.is_admin:
            raise forbidden("You are not a server admin")
