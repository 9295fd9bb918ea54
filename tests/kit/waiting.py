"""Waiting for what has to come, however slow or busy the machine is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from lmserver.rooms.notifier import Notifier

HANGS = 50.0
"""Seconds after which what has to come will not come. It only stops a test that hangs, and measures nothing;
it is less than the 60 s that a server keeps a /sync waiting, so that no poll that runs out hides a lost wake."""


async def eventually(true: Callable[[], Any], seconds: float = HANGS) -> None:
    """Wait until a function, or a coroutine function, says that it is so."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = true()
        if await found if inspect.isawaitable(found) else found:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError("did not happen in time")
        await asyncio.sleep(0.01)


def polls(notifier: Notifier, user_id: str) -> int:
    """How many long polls of a user wait for news just now."""
    listeners = notifier._listeners.get(user_id, ())
    return sum(listener._waiter is not None for listener in listeners)


async def polling(notifier: Notifier, user_id: str, request: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A long poll of a user that has none yet, once it waits for news."""
    poll = asyncio.create_task(request)
    await eventually(lambda: polls(notifier, user_id) == 1 or poll.done())
    assert not poll.done(), poll.result()
    return poll
