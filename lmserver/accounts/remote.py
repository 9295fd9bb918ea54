"""Users of other servers: their keys, profiles and devices, asked of their own server.

Whatever another server says counts for its own users only; a server that cannot be reached is
`None` here and a failure to the client, never an error of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmserver.accounts.profiles import IN_ROOMS, MAX_PROFILE, is_field
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.errors import FederationError
from lmserver.protocol import ids
from lmserver.protocol.errors import InvalidJson

V1 = "/_matrix/federation/v1"
TIMEOUT = 10.0
DOUBTFUL_SECONDS = 2.0
"""For a server that did not answer lately."""
MAX_AT_ONCE = 20
MAX_PROFILE_ANSWER = 2 * MAX_PROFILE
MAX_KEYS = 2 * 1024 * 1024


@dataclass(slots=True)
class RemoteKeys:
    """By server: section of the answer to user ID to what was said of that user; and who failed."""

    answers: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class RemoteUsers:
    """Questions to other servers about their users."""

    def __init__(self, our_name: str, client: FederationClient, in_reach: Callable[[str], bool]) -> None:
        self._our_name = our_name
        self._client = client
        self._in_reach = in_reach

    async def query(self, wanted: Mapping[str, Mapping[str, Any]], seconds: float) -> RemoteKeys:
        """POST user/keys/query of each server, by server what is asked of it."""
        found = await self._ask_all(wanted, f"{V1}/user/keys/query", "device_keys", seconds)
        for answer in found.answers.values():
            devices = answer.get("device_keys", {})
            for user_id, by_device in devices.items():
                devices[user_id] = {d: k for d, k in by_device.items() if _is_device(k, user_id, d)}
        return found

    async def masters(self, user_ids: Sequence[str]) -> dict[str, Any]:
        """Master keys of these users, as far as their servers tell."""
        wanted: dict[str, dict[str, list[str]]] = {}
        for user_id in user_ids:
            wanted.setdefault(ids.server_of(user_id), {})[user_id] = []
        wanted.pop(self._our_name, None)
        found = (await self.query(wanted, TIMEOUT)).answers.values()
        return {user_id: key for answer in found for user_id, key in answer.get("master_keys", {}).items()}

    async def claim(self, wanted: Mapping[str, Mapping[str, Any]], seconds: float) -> RemoteKeys:
        """POST user/keys/claim of each server (D04 §One Time Key Claiming)."""
        found = await self._ask_all(wanted, f"{V1}/user/keys/claim", "one_time_keys", seconds)
        for server, answer in found.answers.items():
            keys = answer.get("one_time_keys", {})
            for user_id, by_device in keys.items():
                keys[user_id] = {d: k for d, k in by_device.items() if d in wanted[server][user_id]}
        return found

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        """GET query/profile: display name and avatar, if they are text, and further fields."""
        try:
            found = await self._client.send_json(
                "GET",
                ids.server_of(user_id),
                f"{V1}/query/profile",
                query=[("user_id", user_id)],
                timeout=TIMEOUT,
                max_response=MAX_PROFILE_ANSWER,
            )
        except FederationError:
            return None
        return {k: v for k, v in found.items() if (isinstance(v, str) if k in IN_ROOMS else is_field(k))}

    async def alias(self, alias: str) -> tuple[str, list[str]] | None:
        """GET query/directory: the room ID and servers to join through."""
        try:
            found = await self._client.send_json(
                "GET",
                ids.server_of(alias),
                f"{V1}/query/directory",
                query=[("room_alias", alias)],
                timeout=TIMEOUT,
            )
        except FederationError:
            return None
        room_id, servers = found.get("room_id"), found.get("servers")
        if not isinstance(room_id, str) or not ids.is_room_id(room_id) or not isinstance(servers, list):
            return None
        return room_id, [s for s in servers if isinstance(s, str) and ids.is_server_name(s)][:20]

    async def _ask_all(
        self, wanted: Mapping[str, Mapping[str, Any]], path: str, name: str, seconds: float
    ) -> RemoteKeys:
        """All servers at once, a few at a time; whoever has not answered when the time is up failed."""
        places = asyncio.Semaphore(MAX_AT_ONCE)

        async def ask(server: str, users: Mapping[str, Any]) -> dict[str, Any] | None:
            limit = seconds if self._in_reach(server) else min(seconds, DOUBTFUL_SECONDS)
            async with places:
                try:
                    answer = await self._client.send_json(
                        "POST",
                        server,
                        path,
                        content={name: dict(users)},
                        timeout=limit,
                        max_response=MAX_KEYS,
                    )
                except (FederationError, InvalidJson):
                    return None
            return _of_users(answer, users)

        tasks = {server: asyncio.create_task(ask(server, users)) for server, users in wanted.items()}
        try:
            done = (await asyncio.wait(tasks.values(), timeout=seconds))[0] if tasks else set()
        finally:
            for task in tasks.values():
                task.cancel()
        found = RemoteKeys()
        for server, task in tasks.items():
            answer = task.result() if task in done else None
            if answer is None:
                found.failed.append(server)
            else:
                found.answers[server] = answer
        return found


def _of_users(answer: dict[str, Any], users: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a server says of the users it was asked about, and of nobody else (attack B23)."""
    return {
        name: {u: v for u, v in section.items() if u in users and isinstance(v, dict)}
        for name, section in answer.items()
        if isinstance(section, dict)
    }


def _is_device(keys: Any, user_id: str, device_id: str) -> bool:
    """Keys name the device they are of, under its own name and no other."""
    return isinstance(keys, dict) and keys.get("user_id") == user_id and keys.get("device_id") == device_id
