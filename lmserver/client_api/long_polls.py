"""Requests that wait end with the login they came with: else a device that was logged out would hear of
it only when its wait is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from lmserver.web.app import Authenticator
from lmserver.web.endpoint import Request, Requester
from lmserver.web.errors import unknown_token


@dataclass(eq=False, slots=True)
class _Held:
    device_id: str
    limit: asyncio.Timeout
    logged_out: bool = False

    def end(self) -> None:
        if not self.limit.expired():  # it says so of one that is about to, too
            self.logged_out = True
            self.limit.reschedule(asyncio.get_running_loop().time())


class LongPolls:
    """The requests that wait, by user."""

    def __init__(self, authenticate: Authenticator, clock: Callable[[], int]) -> None:
        self._authenticate = authenticate
        self._clock = clock
        self._users: dict[str, set[_Held]] = {}

    @asynccontextmanager
    async def while_logged_in(self, request: Request) -> AsyncIterator[None]:
        """Around an answer: breaks it off with the ApiError that the request would get now, as soon as
        its device is logged out, its account locked or deactivated, or its token at its end. A token
        that was renewed meanwhile is good until its end. Those of application services have none."""
        requester = request.requester
        if requester.appservice:
            yield
            return
        ends = requester.expires_ts
        held = _Held(
            requester.device_id,
            asyncio.timeout(None if ends is None else max(0, ends - self._clock()) / 1000),
        )
        try:
            async with held.limit:
                with self._registered(requester, held):
                    await self._authenticate(request)  # the login may have ended since it was asked
                    yield
        except TimeoutError:
            if not held.limit.expired():
                raise
            if held.logged_out:
                await self._authenticate(request)
            raise unknown_token(soft_logout=True) from None

    @contextmanager
    def _registered(self, requester: Requester, held: _Held) -> Iterator[None]:
        of_user = self._users.setdefault(requester.user_id, set())
        of_user.add(held)
        try:
            yield
        finally:
            of_user.discard(held)
            if not of_user and self._users.get(requester.user_id) is of_user:
                del self._users[requester.user_id]

    def end(self, user_id: str, device_ids: Collection[str] | None) -> None:
        """Logins of a user have ended: those of some devices, or all."""
        for held in self._users.get(user_id, ()):
            if device_ids is None or held.device_id in device_ids:
                held.end()
