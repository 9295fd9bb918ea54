"""Requests of ours to others, wired: to servers that federate, and to the web that the operator names."""

from __future__ import annotations

import ssl

from lmserver.config import Config
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.blocked import BlockedServers
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import PinnedHttp, tls_context
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.resolver import Resolver
from lmserver.federation_client.web_client import WebClient
from lmserver.protocol.signatures import SigningKey


def web_client_of(config: Config, dns: Dns) -> WebClient:
    """For those the operator trusts, and whom they name."""
    return WebClient(dns, AddressGuard(config.federation.allowed_networks), web_tls(config))


def web_tls(config: Config) -> ssl.SSLContext:
    """The web is wider than federation: TLS 1.2 will do."""
    context = ssl.create_default_context()
    if config.federation.ca_file is not None:
        context.load_verify_locations(cafile=str(config.federation.ca_file))
    return context


def federation_client_of(
    config: Config, key: SigningKey, dns: Dns, blocked: BlockedServers
) -> FederationClient:
    guard = AddressGuard(config.federation.allowed_networks)
    http = PinnedHttp(guard, tls_context(config.federation.ca_file))
    resolver = Resolver(dns, guard, http)
    return FederationClient(
        config.server_name,
        key,
        resolver,
        http,
        plain_http_servers=config.federation.plain_http_servers,
        blocked=blocked,
    )
