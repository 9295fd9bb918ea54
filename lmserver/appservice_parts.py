"""Application services, wired: who they are, what they are told, and what they are asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.appservices import AppServices
from lmserver.client_api.appservices import AppServiceEndpoints
from lmserver.config import Config
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.appservice_api import AppServiceApi
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.web_client import WebClient
from lmserver.rooms.appservice_delivery import Delivery
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.reading import Reading
from lmserver.rooms.typing import Typing
from lmserver.storage.database import Database


class Bridged:
    """Users and aliases that come to be when a service is asked for them (AS API §Querying)."""

    def __init__(self, accounts: Accounts, services: AppServices, api: AppServiceApi) -> None:
        self._accounts = accounts
        self._services = services
        self._api = api

    async def is_active(self, user_id: str) -> bool:
        """Whether a local user exists; a service is asked for one that does not."""
        if await self._accounts.is_active(user_id):
            return True
        for service in self._services.services:
            if service.url is not None and service.owns(user_id) and not await self._accounts.exists(user_id):
                await self._api.knows_user(service, user_id)
                return await self._accounts.is_active(user_id)
        return False

    def alias_is_others(self, alias: str, user_id: str) -> bool:
        return self._services.alias_is_others(alias, user_id)

    async def makes_alias(self, alias: str) -> bool:
        """Whether a service has made the alias, being asked."""
        for service in self._services.services:
            if service.url is not None and service.has_alias(alias):
                return await self._api.knows_alias(service, alias)
        return False


@dataclass(frozen=True, slots=True)
class AppServiceParts:
    """The services, what they make on demand, and their endpoints."""

    services: AppServices
    bridged: Bridged
    endpoints: list[object]
    api: AppServiceApi
    web: WebClient
    clock: Callable[[], int]

    async def run(self, db: Database, typing: Typing, notifier: Notifier) -> None:
        """Tell every service that wants to be told, until cancelled."""
        reading = Reading(db, self.clock)
        deliveries = [
            Delivery(db, service, self.api, reading, typing, self.clock)
            for service in self.services.services
            if service.url is not None
        ]
        for delivery in deliveries:
            notifier.follow(delivery.changed)
        await asyncio.gather(*(delivery.run() for delivery in deliveries))


def appservice_parts(
    config: Config, db: Database, accounts: Accounts, dns: Dns, tls: ssl.SSLContext, clock: Callable[[], int]
) -> AppServiceParts:
    """Everything about the services of the configuration."""
    # URLs of the operator's own files are most often in the operator's own network.
    guard = AddressGuard((ip_network("0.0.0.0/0"), ip_network("::/0")))
    web = WebClient(dns, guard, tls)
    services = AppServices(db, accounts, config.appservices)
    accounts.on_created = services.note_user
    api = AppServiceApi(web)
    endpoints: list[object] = [AppServiceEndpoints(services, api)]
    return AppServiceParts(services, Bridged(accounts, services, api), endpoints, api, web, clock)
