"""What waits ends with the login it came with: both kinds of /sync."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lmserver.accounts.access_tokens import ACCESS_MS
from tests.client_api.test_logins import log_in, refresh, refreshable, works
from tests.kit.client_api import V3, Api
from tests.kit.clock import SECOND, Clock
from tests.kit.sliding import PATH, Phone
from tests.kit.waiting import eventually

ALICE = "@alice:hub.test"
WAIT_MS = 55_000
SOON = 25.0
"""Seconds: far below the wait, far above what a slow machine needs."""

Answer = tuple[int, Any]
Ask = Callable[..., Awaitable[Answer]]


async def sync(api: Api, device: dict[str, Any], since: str = "") -> Answer:
    path = f"{V3}/sync" + (f"?timeout={WAIT_MS}&since={since}" if since else "")
    return await api.call("GET", path, token=device["access_token"])


async def slide(api: Api, device: dict[str, Any], since: str = "") -> Answer:
    path = PATH + (f"?timeout={WAIT_MS}&pos={since}" if since else "")
    return await api.call("POST", path, {}, device["access_token"])


@pytest.fixture(params=[sync, slide])
def ask(request: pytest.FixtureRequest) -> Ask:
    asking: Ask = request.param
    return asking


async def since(api: Api, ask: Ask, device: dict[str, Any]) -> str:
    """A token after which there is nothing."""
    await Phone(api, device["user_id"], device["access_token"], device["device_id"]).settle()
    status, answer = await ask(api, device)
    assert status == 200, answer
    return str(answer["next_batch" if ask is sync else "pos"])


async def waiting(
    api: Api, ask: Ask, device: dict[str, Any], begin: str | None = None
) -> asyncio.Task[Answer]:
    begin = begin or await since(api, ask, device)
    poll = asyncio.create_task(ask(api, device, begin))
    key = f"{device['user_id']}:{device['device_id']}"

    async def listens() -> bool:
        return poll.done() or key in api.server.notifier._listeners

    await eventually(listens)
    return poll


async def ended(poll: asyncio.Task[Answer]) -> tuple[int, str, bool]:
    status, answer = await asyncio.wait_for(poll, SOON)
    return status, answer.get("errcode"), answer.get("soft_logout")


async def test_a_device_that_is_logged_out_hears_of_it_at_once(api: Api, ask: Ask) -> None:
    await api.server.accounts.register("alice", "a long password")
    first, second = await log_in(api), await log_in(api)
    gone, stays = await waiting(api, ask, first), await waiting(api, ask, second)
    await api.call("POST", f"{V3}/logout", {}, first["access_token"])
    assert await ended(gone) == (401, "M_UNKNOWN_TOKEN", False)
    assert not stays.done()
    await api.call("POST", f"{V3}/logout/all", {}, second["access_token"])
    assert await ended(stays) == (401, "M_UNKNOWN_TOKEN", False)


async def test_a_login_in_place_of_the_device_ends_its_wait(api: Api, ask: Ask) -> None:
    await api.server.accounts.register("alice", "a long password")
    poll = await waiting(api, ask, await log_in(api, device_id="PHONE"))
    again = await log_in(api, device_id="PHONE")
    assert await ended(poll) == (401, "M_UNKNOWN_TOKEN", False)
    assert await works(api, again["access_token"])


@pytest.mark.parametrize("locked", [False, True])
async def test_a_wait_ends_with_the_account(api: Api, ask: Ask, locked: bool) -> None:
    await api.server.accounts.register("alice", "a long password")
    poll = await waiting(api, ask, await log_in(api))
    if locked:
        await api.server.accounts.set_locked(ALICE, True)
        assert await ended(poll) == (401, "M_USER_LOCKED", True)
    else:
        await api.server.accounts.deactivate(ALICE)
        assert await ended(poll) == (401, "M_UNKNOWN_TOKEN", False)


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_wait_ends_with_its_token(api: Api, ask: Ask, clock: Clock, renewed: bool) -> None:
    """Softly, also if the device has another token by then: it must not think that it is logged out."""
    device = await refreshable(api)
    begin = await since(api, ask, device)
    clock.pass_(ACCESS_MS - 2 * SECOND)
    poll = await waiting(api, ask, device, begin)
    if renewed:
        _, new = await refresh(api, device["refresh_token"])
        assert await works(api, new["access_token"])
        assert not await works(api, device["access_token"])
    assert await ended(poll) == (401, "M_UNKNOWN_TOKEN", True)


async def test_a_login_that_ends_just_before_the_wait_is_not_missed(
    api: Api, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await refreshable(api)
    begin = await since(api, ask, device)

    async def syncing(user_id: str, state: str) -> None:
        """Runs after the request was let in."""
        await api.server.accounts.log_out(user_id)

    monkeypatch.setattr(api.server.edus.presence, "syncing", syncing)
    assert await ended(asyncio.create_task(ask(api, device, begin))) == (401, "M_UNKNOWN_TOKEN", False)
