"""User-interactive authentication as endpoints use it: one call, and its 401s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lmserver.accounts.interactive_auth import (
    Flows,
    InteractiveAuth,
    Operation,
    OtherOperation,
    TooManyTries,
    UnknownSession,
    Unproven,
)
from lmserver.web.errors import ApiError, limited
from lmserver.web.request import Request

FlowsOf = Callable[[str], Awaitable[Flows]]
"""How a user can prove who they are."""


class Challenge(ApiError):
    """401 with the flows a client may go through; an errcode only when a stage has failed."""

    def __init__(self, unproven: Unproven) -> None:
        failure = unproven.failure
        super().__init__(
            401,
            "" if failure is None else failure.errcode,
            "" if failure is None else failure.reason,
            {
                "session": unproven.session_id,
                "flows": [{"stages": list(stages)} for stages in unproven.flows],
                "params": {},
                "completed": sorted(unproven.completed),
            },
        )

    def body(self) -> dict[str, Any]:
        return dict(self.extra) if not self.errcode else super().body()


class UserInteraction:
    """What stands between a request and an operation that must be proven again."""

    def __init__(self, auth: InteractiveAuth, flows_of: FlowsOf) -> None:
        self._auth = auth
        self._flows_of = flows_of

    async def confirm(self, request: Request, body: Mapping[str, Any]) -> None:
        """Returns once the requester has proven again who they are, for this request with this body.

        Raises Challenge (401) until then; ApiError 400 for a session that is not known, 403 for one
        of another operation, 429 for too many tries.
        """
        requester = request.requester
        if requester.appservice:
            return  # it has no password, and may act as the user anyway
        bound = {key: value for key, value in body.items() if key != "auth"}
        operation = Operation(
            requester.user_id, requester.device_id, request.method, _path(request), bound, requester.user_id
        )
        await self._prove(operation, await self._flows_of(requester.user_id), body)

    async def admit(self, request: Request, body: Mapping[str, Any], flows: Flows) -> Mapping[str, str]:
        """The same for somebody who is no user yet: what each stage proved. The body is not bound,
        for clients ask for the flows with an empty one, and keep the session."""
        operation = Operation("", "", request.method, _path(request), None, request.remote_key)
        return await self._prove(operation, flows, body)

    async def _prove(self, operation: Operation, flows: Flows, body: Mapping[str, Any]) -> Mapping[str, str]:
        try:
            return await self._auth.prove(operation, flows, body.get("auth"))
        except Unproven as unproven:
            raise Challenge(unproven) from None
        except UnknownSession:
            raise ApiError(400, "M_UNKNOWN", "Unknown session ID") from None
        except OtherOperation:
            raise ApiError(403, "M_UNKNOWN", "The session was begun for another operation") from None
        except TooManyTries as error:
            raise limited(error.wait) from None


def _path(request: Request) -> str:
    return request.raw_uri.partition("?")[0]
