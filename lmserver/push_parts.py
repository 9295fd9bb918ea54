"""Push rules, unread counts and pushers, wired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmserver.accounts.push_rules import PushRules
from lmserver.client_api.notifications import NotificationEndpoints
from lmserver.client_api.push_rules import PushRuleEndpoints
from lmserver.client_api.pushers import PusherEndpoints
from lmserver.config import Config
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.connector import tls_context
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.push_gateway import PushGateways
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.notifications import Notifications
from lmserver.rooms.push.contents import Contents
from lmserver.rooms.push.delivery import Delivery
from lmserver.rooms.push.following import Following
from lmserver.rooms.push.outside_invites import OutsideInvites
from lmserver.rooms.push.pushers import Pushers
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.unread import Unread
from lmserver.storage.database import Database


@dataclass(frozen=True, slots=True)
class PushParts:
    """What decides about notifications, and what takes them to gateways."""

    rules: PushRules
    unread: Unread
    pushers: Pushers
    following: Following
    delivery: Delivery
    gateways: PushGateways
    notifications: Notifications
    outside_invites: OutsideInvites

    def endpoints(self) -> list[object]:
        return [
            PushRuleEndpoints(self.rules),
            PusherEndpoints(self.pushers, self.gateways.check),
            NotificationEndpoints(self.notifications),
        ]

    async def run(self) -> None:
        """Follow and deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.following.run(), name="push following")
            tasks.create_task(self.delivery.run(), name="push delivery")

    async def close(self) -> None:
        await self.delivery.close()
        await self.gateways.close()


def push_parts(
    config: Config,
    db: Database,
    journal: Journal,
    engine: RoomEngine,
    dns: Dns,
    publish: Callable[[Iterable[str]], None],
    clock: Callable[[], int],
) -> PushParts:
    """The parts, not yet running."""
    rules = PushRules(db, publish)
    unread = Unread(db, journal, engine, rules.compiled)
    federation = config.federation
    gateways = PushGateways(
        dns,
        AddressGuard(federation.allowed_networks),
        tls_context(federation.ca_file),
        federation.plain_http_servers,
    )
    reading = Reading(db, clock)
    delivery = Delivery(db, gateways, Contents(db, reading), unread, journal.advance, clock)
    following = Following(db, unread, rules.compiled, delivery.wake, clock)
    pushers = Pushers(db, following, clock)
    notifications = Notifications(db, reading, unread, rules.compiled)
    invites = OutsideInvites(rules.compiled, delivery.wake, clock)
    return PushParts(rules, unread, pushers, following, delivery, gateways, notifications, invites)
