"""The composition: every part built once and handed what it needs; the only place that knows them all."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from lmserver.account_parts import account_parts
from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.client_data import ClientData
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.device_lists import DeviceLists
from lmserver.accounts.passwords import Passwords
from lmserver.accounts.remote import RemoteUsers
from lmserver.admin_parts import admin_app
from lmserver.appservice_parts import AppServiceParts, appservice_parts
from lmserver.client_parts import client_app
from lmserver.config import Config
from lmserver.edu_parts import EduParts, edu_dispatcher, edu_parts
from lmserver.failures import FAILURES
from lmserver.federation_client.blocked import BlockedServers
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.dns_lookup import Dns, SystemDns
from lmserver.federation_client.keyring import Keyring, log_conflict
from lmserver.federation_client.room_api import RoomApi
from lmserver.federation_client.sender import Sender
from lmserver.federation_client.web_client import WebClient
from lmserver.federation_parts import federation_app
from lmserver.federation_server.transactions import TransactionEndpoints
from lmserver.list_parts import ListParts, list_parts
from lmserver.media.administration import MediaAdministration
from lmserver.media_parts import MediaParts, media_parts
from lmserver.membership_parts import membership_parts
from lmserver.metrics import Metrics
from lmserver.outbound_parts import federation_client_of, web_client_of, web_tls
from lmserver.own_keys import OldKey
from lmserver.protocol.signatures import SigningKey
from lmserver.push_parts import PushParts, push_parts
from lmserver.room_parts import room_parts
from lmserver.rooms.backfill import Backfill
from lmserver.rooms.declines import Declines
from lmserver.rooms.departures import Departures
from lmserver.rooms.echo_watch import EchoWatch
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.gaps import GapFiller
from lmserver.rooms.membership import Membership
from lmserver.rooms.notices import Notices
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.profile_news import ProfileNews
from lmserver.rooms.purging import RoomPurges
from lmserver.rooms.push.following import Following
from lmserver.rooms.remote_ephemeral import RemoteEphemeral
from lmserver.rooms.rollback import TailRecovery
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.upgrades import Upgrades
from lmserver.storage.database import Database
from lmserver.storage.restore_guard import RestoreGuard
from lmserver.web.endpoint import Auth
from lmserver.web.limits import RateLimiter


def clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class _Audience:
    """Who is told after COMMIT: local readers, the senders to other servers, the restore guard."""

    def __init__(self, notifier: Notifier, guard: RestoreGuard) -> None:
        self._notifier = notifier
        self._guard = guard
        self.sender: Sender | None = None
        self.remote_ephemeral: RemoteEphemeral | None = None
        self.following: Following | None = None

    def publish(self, keys: Iterable[str], xid: int | None = None) -> None:
        keys = list(keys)
        self._notifier.publish(keys, xid)
        self._guard.note_change()
        if self.remote_ephemeral is not None:
            self.remote_ephemeral.rooms_changed(keys)
        if self.following is not None:
            self.following.changed(keys)

    def wake(self, destinations: Iterable[str]) -> None:
        if self.sender is not None:
            self.sender.wake(destinations)


@dataclass(slots=True)
class Server:
    """A server's parts, wired, and its applications; that of operators has no listener unless configured."""

    config: Config
    db: Database
    engine: RoomEngine
    accounts: Accounts
    membership: Membership
    sender: Sender
    gaps: GapFiller
    backfill: Backfill
    echo_watch: EchoWatch
    declines: Declines
    departures: Departures
    guard: RestoreGuard
    recovery: TailRecovery
    notifier: Notifier
    keyring: Keyring
    client: FederationClient
    web_client: WebClient
    appservices: AppServiceParts
    passwords: Passwords
    transactions: TransactionEndpoints
    media: MediaParts
    edus: EduParts
    push: PushParts
    notices: Notices
    profile_news: ProfileNews
    purges: RoomPurges
    upgrades: Upgrades
    blocked: BlockedServers
    client_app: web.Application
    federation_app: web.Application
    admin_app: web.Application
    metrics: Metrics

    async def serve_bridges(self) -> None:
        """Tell application services what happens, until cancelled."""
        await self.appservices.run(self.db, self.edus.typing, self.notifier)

    async def close(self) -> None:
        """Stop in the order in which parts depend on each other."""
        await self.push.close()
        await self.profile_news.close()
        await self.edus.close()
        await self.notifier.close()
        await self.recovery.close()
        await self.sender.stop()
        await self.backfill.close()
        await self.engine.close()
        await self.keyring.close()
        if self.media.previews is not None:
            await self.media.previews.close()
        await self.media.thumbnails.close()
        await self.media.remote.close()
        await self.client.close()
        await self.web_client.close()
        await self.appservices.web.close()
        self.passwords.close()


def assemble(
    config: Config,
    db: Database,
    key: SigningKey,
    clock: Callable[[], int] = clock_ms,
    dns: Dns | None = None,
    *,
    old_keys: Mapping[str, OldKey] | None = None,
) -> Server:
    """Build every part and hand each what it needs; `dns` is the system's unless given.

    `key` and `old_keys` change under the parts that hold them when the key is rotated.
    """
    old_keys = {} if old_keys is None else old_keys
    name = config.server_name
    metrics = Metrics()
    limiter = RateLimiter(config.limits)
    journal = Journal(db)
    notifier = Notifier(journal.positions)
    guard = RestoreGuard(db, config.data_dir, name)
    audience = _Audience(notifier, guard)

    # What we ask of others
    dns = dns or SystemDns()
    blocked = BlockedServers(db, config.federation.blocked_servers, clock)
    client = federation_client_of(config, key, dns, blocked)
    web_client = web_client_of(config, dns)
    keyring = _keyring(config, db, client, key, old_keys, metrics, clock)
    api = RoomApi(client)

    # Rooms' lists, and who sends them
    lists = list_parts(db, key, api, keyring, audience, metrics, clock)
    engine = lists.engine
    sender = _sender(config, db, client, lists, clock)
    audience.sender = sender

    # Accounts and their devices
    passwords = Passwords()
    device_lists = DeviceLists(name, notifier.publish, audience.wake, metrics.observe_dropped, clock)
    access = AccessTokens(db, clock)
    accounts = Accounts(db, name, passwords, device_lists, access, clock)
    bridges = appservice_parts(config, db, accounts, dns, web_tls(config), clock)
    remote = RemoteUsers(name, client, sender.in_reach)
    data = ClientData(db, notifier.publish)
    devices = DeviceStore(
        db, name, device_lists, notifier.publish, audience.wake, metrics.observe_dropped, limiter, clock
    )

    # Rooms as their users have them
    push = push_parts(config, db, journal, engine, dns, notifier.publish, clock)
    audience.following = push.following
    members = membership_parts(
        config, db, key, api, keyring, engine, lists.turns, accounts, bridges.bridged, push.outside_invites,
        audience, notifier, limiter, clock,
    )  # fmt: skip
    rooms = room_parts(
        config, db, engine, client, remote.alias, accounts, data, bridges.bridged, push.rules,
        members.administration.purges, notifier.publish, clock,
    )  # fmt: skip
    edus = edu_parts(config, db, engine, sender, notifier, metrics, clock)
    audience.remote_ephemeral = edus.remote
    media = media_parts(config, db, client, dns, clock)

    # What is asked of us
    transactions = TransactionEndpoints(
        db,
        engine,
        members.outsiders,
        keyring,
        members.joining.settled,
        edu_dispatcher(config, db, edus, devices, device_lists, clock),
        limiter,
        clock,
    )
    of_accounts = account_parts(
        config, db, accounts, access, bridges.services, web_client, rooms.profile_news.changed, limiter, clock
    )
    return Server(
        config,
        db,
        engine,
        accounts,
        members.membership,
        sender,
        lists.gaps,
        lists.backfill,
        lists.echo_watch,
        members.declines,
        members.departures,
        guard,
        lists.recovery,
        notifier,
        keyring,
        client,
        web_client,
        bridges,
        passwords,
        transactions,
        media,
        edus,
        push,
        rooms.notices,
        rooms.profile_news,
        members.administration.purges,
        rooms.upgrades,
        blocked,
        client_app(
            config, db, engine, lists.backfill, accounts, of_accounts, bridges.endpoints,
            members.invite_policy, members.membership, rooms, data, devices, device_lists, remote, media,
            journal, notifier, edus, push, limiter, metrics, clock,
        ),
        federation_app(
            config, db, key, old_keys, keyring, sender, blocked, transactions, engine, members.invites, rooms,
            accounts, devices, media.library, limiter, metrics, clock,
        ),
        admin_app(
            config, db, accounts, of_accounts.administration, members.administration,
            MediaAdministration(db, name, media.library), sender, blocked, rooms.notices, access,
            of_accounts.authenticators[Auth.USER], limiter, FAILURES, metrics, clock,
        ),
        metrics,
    )  # fmt: skip


def _keyring(
    config: Config,
    db: Database,
    client: FederationClient,
    key: SigningKey,
    old_keys: Mapping[str, OldKey],
    metrics: Metrics,
    clock: Callable[[], int],
) -> Keyring:
    def conflict(server: str, key_id: str) -> None:
        metrics.key_conflicts.inc()
        log_conflict(server, key_id)

    return Keyring(
        db, client, key, clock, own_old_keys=old_keys, notaries=config.federation.notaries, alert=conflict
    )


def _sender(
    config: Config, db: Database, client: FederationClient, lists: ListParts, clock: Callable[[], int]
) -> Sender:
    # A host and a port it listens on name one process: whoever starts there follows a dead one.
    owner = f"{socket.gethostname()} {config.client.host}:{config.client.port}"
    return Sender(db, client, lists.own_lpdus.answered, clock, on_refused=lists.recovery.suspect, owner=owner)
