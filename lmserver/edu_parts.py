"""The parts that have to do with EDUs, wired: what the composition builds beside rooms and accounts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.device_lists import DeviceLists
from lmserver.config import Config
from lmserver.federation_client.sender import Sender
from lmserver.federation_server.edus import Edu, EduDispatcher, Taker
from lmserver.federation_server.ephemeral import EphemeralEdus
from lmserver.metrics import Metrics
from lmserver.protocol.edus import DEVICE_LIST, PRESENCE, RECEIPT, SIGNING_KEY, TYPING, UNSTABLE_SIGNING_KEY
from lmserver.rooms.announcements import Announcements
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.presence import Presence
from lmserver.rooms.remote_ephemeral import RemoteEphemeral
from lmserver.rooms.serial import Serial
from lmserver.rooms.typing import Typing
from lmserver.storage.database import Database


@dataclass(frozen=True, slots=True)
class EduParts:
    """What goes on in rooms besides events, here and elsewhere."""

    typing: Typing
    presence: Presence
    announcements: Announcements
    remote: RemoteEphemeral

    async def close(self) -> None:
        self.typing.close()
        await self.presence.close()
        await self.announcements.close()
        await self.remote.close()


def edu_parts(
    config: Config,
    db: Database,
    engine: RoomEngine,
    sender: Sender,
    notifier: Notifier,
    metrics: Metrics,
    clock: Callable[[], int],
) -> EduParts:
    """Typing, presence and receipts of rooms, ours and those of other servers."""
    announcements = Announcements(db, engine, sender, metrics.observe_dropped, clock)
    serial = Serial()
    typing = Typing(notifier.nudge, announcements.typing, serial)
    presence = Presence(
        db, config.server_name, notifier.nudge, sender.offer, serial, clock, enabled=config.presence
    )
    return EduParts(typing, presence, announcements, RemoteEphemeral(db, typing, notifier.publish))


def edu_dispatcher(
    config: Config,
    db: Database,
    parts: EduParts,
    devices: DeviceStore,
    device_lists: DeviceLists,
    clock: Callable[[], int],
) -> EduDispatcher:
    """Who takes which EDU of other servers."""
    ephemeral = EphemeralEdus(parts.remote, parts.presence, clock)

    async def lists_changed(origin: str, found: Sequence[Edu]) -> None:
        users = (edu.user(origin, edu.content.get("user_id")) for edu in found)
        await device_lists.changed_elsewhere(db, [user for user in users if user is not None])

    takers: dict[str, Taker] = {
        DEVICE_LIST: lists_changed,
        SIGNING_KEY: lists_changed,
        UNSTABLE_SIGNING_KEY: lists_changed,
        TYPING: ephemeral.typing,
        RECEIPT: ephemeral.receipts,
    }
    if config.presence:
        takers[PRESENCE] = ephemeral.presence
    return EduDispatcher(config.server_name, devices.receive, takers)
