"""The federation API, wired: what other servers reach on the federation listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from aiohttp import web

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.federated_devices import FederatedDevices
from lmserver.accounts.profiles import Profiles
from lmserver.config import Config
from lmserver.failures import FAILURES
from lmserver.federation_client.blocked import BlockedServers
from lmserver.federation_client.keyring import Keyring
from lmserver.federation_client.notary_documents import NotaryDocuments
from lmserver.federation_client.sender import Sender
from lmserver.federation_server.authenticator import ServerAuthenticator
from lmserver.federation_server.devices import DeviceEndpoints
from lmserver.federation_server.discovery import VersionEndpoints, WellKnownEndpoints
from lmserver.federation_server.events import EventEndpoints
from lmserver.federation_server.keys import KeyEndpoints
from lmserver.federation_server.media import MediaEndpoints
from lmserver.federation_server.membership import MembershipEndpoints
from lmserver.federation_server.recovery import RecoveryEndpoints
from lmserver.federation_server.transactions import TransactionEndpoints
from lmserver.media.library import Library
from lmserver.metrics import Metrics
from lmserver.own_keys import OldKey
from lmserver.protocol.signatures import SigningKey
from lmserver.room_parts import RoomParts, federation_room_endpoints
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.invites import Invites
from lmserver.storage.database import Database
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import build_app
from lmserver.web.endpoint import Auth
from lmserver.web.limits import RateLimiter


def federation_app(
    config: Config,
    db: Database,
    key: SigningKey,
    old_keys: Mapping[str, OldKey],
    keyring: Keyring,
    sender: Sender,
    blocked: BlockedServers,
    transactions: TransactionEndpoints,
    engine: RoomEngine,
    invites: Invites,
    rooms: RoomParts,
    accounts: Accounts,
    devices: DeviceStore,
    media: Library,
    limiter: RateLimiter,
    metrics: Metrics,
    clock: Callable[[], int],
) -> web.Application:
    """Every endpoint of the federation listener."""
    name = config.server_name
    linearized = config.federation.mode == "linearized"
    endpoints: Sequence[object] = (
        transactions,
        MembershipEndpoints(db, engine, keyring, invites, limiter, clock),
        EventEndpoints(db, engine),
        RecoveryEndpoints(db),
        WellKnownEndpoints(config.federation.well_known),
        VersionEndpoints(),
        KeyEndpoints(key, old_keys, NotaryDocuments(db, keyring, clock), clock, linearized=linearized),
        DeviceEndpoints(
            name, FederatedDevices(accounts, devices, name), Profiles(db, accounts), rooms.directory
        ),
        MediaEndpoints(media),
        *federation_room_endpoints(config, db, rooms, clock),
    )
    authenticate = ServerAuthenticator(
        name,
        keyring.keys_for_request,
        sender.peer_alive,
        met=keyring.met,
        limiter=limiter,
        blocked=blocked,
    )
    return build_app(
        endpoints,
        {Auth.SERVER: authenticate},
        failures=FAILURES,
        limiter=limiter,
        observe=partial(metrics.observe_request, "federation"),
        proxies=TrustedProxies(config.trusted_proxies),
    )
