"""The composition: every part built once and handed what it needs; the only place that knows them all."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from lmserver.account_parts import account_parts
from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.client_data import ClientData
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.device_lists import DeviceLists
from lmserver.accounts.federated_devices import FederatedDevices
from lmserver.accounts.invite_policy import InvitePolicy
from lmserver.accounts.passwords import Passwords
from lmserver.accounts.profiles import Profiles
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
from lmserver.federation_client.notary_documents import NotaryDocuments
from lmserver.federation_client.room_api import RoomApi
from lmserver.federation_client.sender import Sender
from lmserver.federation_client.web_client import WebClient
from lmserver.federation_server.authenticator import ServerAuthenticator
from lmserver.federation_server.devices import DeviceEndpoints as FederationDeviceEndpoints
from lmserver.federation_server.discovery import VersionEndpoints, WellKnownEndpoints
from lmserver.federation_server.events import EventEndpoints
from lmserver.federation_server.keys import KeyEndpoints as ServerKeyEndpoints
from lmserver.federation_server.media import MediaEndpoints as FederationMediaEndpoints
from lmserver.federation_server.membership import MembershipEndpoints
from lmserver.federation_server.recovery import RecoveryEndpoints
from lmserver.federation_server.transactions import TransactionEndpoints
from lmserver.media.administration import MediaAdministration
from lmserver.media_parts import MediaParts, media_parts
from lmserver.metrics import Metrics
from lmserver.outbound_parts import federation_client_of, web_client_of, web_tls
from lmserver.own_keys import OldKey
from lmserver.protocol.signatures import SigningKey
from lmserver.push_parts import PushParts, push_parts
from lmserver.room_parts import federation_room_endpoints, room_parts
from lmserver.rooms.administration import RoomAdministration
from lmserver.rooms.backfill import Backfill
from lmserver.rooms.declines import Declines
from lmserver.rooms.departures import Departures
from lmserver.rooms.echo_watch import EchoWatch
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.gaps import GapFiller
from lmserver.rooms.handshakes import Handshakes
from lmserver.rooms.history import HubHistory
from lmserver.rooms.invites import Invites
from lmserver.rooms.joining import Joining
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.membership import Membership
from lmserver.rooms.notices import Notices
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.outsiders import Outsiders
from lmserver.rooms.own_lpdus import OwnLpdus
from lmserver.rooms.profile_news import ProfileNews
from lmserver.rooms.purging import RoomPurges
from lmserver.rooms.push.following import Following
from lmserver.rooms.remote_ephemeral import RemoteEphemeral
from lmserver.rooms.rollback import TailRecovery
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.turns import Turns
from lmserver.rooms.upgrades import Upgrades
from lmserver.storage.database import Database
from lmserver.storage.restore_guard import RestoreGuard
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import build_app
from lmserver.web.endpoint import Auth
from lmserver.web.limits import RateLimiter

DAY_MS = 24 * 3600 * 1000


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
    journal = Journal(db)
    notifier = Notifier(journal.positions)
    guard = RestoreGuard(db, config.data_dir, name)
    audience = _Audience(notifier, guard)
    dns = dns or SystemDns()
    blocked = BlockedServers(db, config.federation.blocked_servers, clock)
    client = federation_client_of(config, key, dns, blocked)
    keyring = Keyring(
        db,
        client,
        key,
        clock,
        own_old_keys=old_keys,
        notaries=config.federation.notaries,
        alert=partial(_key_conflict, metrics),
    )
    api = RoomApi(client)
    answers = LpduAnswers()
    evidence = EvidenceLog(db, clock, metrics.count_evidence)
    turns = Turns(db, key, audience, answers, clock, evidence)
    recovery = TailRecovery(db, turns, api, keyring, clock)
    own_lpdus = OwnLpdus(db, key, answers, audience.wake, clock)
    history = HubHistory(db, api, keyring)
    gaps = GapFiller(db, turns, history, evidence, clock)
    backfill = Backfill(db, name, history, keyring, evidence, clock)
    engine = RoomEngine(turns, own_lpdus, gaps)
    # A host and a port it listens on name one process: whoever starts there follows a dead one.
    sender = Sender(
        db,
        client,
        own_lpdus.answered,
        clock,
        on_refused=recovery.suspect,
        owner=f"{socket.gethostname()} {config.client.host}:{config.client.port}",
    )
    audience.sender = sender
    passwords = Passwords()
    device_lists = DeviceLists(name, notifier.publish, audience.wake, metrics.observe_dropped, clock)
    access = AccessTokens(db, clock)
    web_client = web_client_of(config, dns)
    accounts = Accounts(db, name, passwords, device_lists, access, clock)
    bridges = appservice_parts(config, db, accounts, dns, web_tls(config), clock)
    joining = Joining(db, key, api, keyring, turns, audience.publish, clock)
    limiter = RateLimiter(config.limits)
    invite_policy = InvitePolicy(db, limiter)
    push = push_parts(config, db, journal, engine, dns, notifier.publish, clock)
    audience.following = push.following
    invites = Invites(
        db,
        key,
        api,
        keyring,
        turns,
        bridges.bridged,
        invite_policy,
        push.outside_invites,
        notifier.publish,
    )
    handshakes = Handshakes(db, key, api, notifier.publish, clock)
    membership = Membership(db, key, engine, joining, handshakes, invites, api, accounts.profile, clock)
    rooms_admin = _room_administration(config, db, engine, turns, joining, membership, clock)
    remote = RemoteUsers(name, client, sender.in_reach)
    data = ClientData(db, notifier.publish)
    rooms = room_parts(
        config,
        db,
        engine,
        client,
        remote.alias,
        accounts,
        data,
        bridges.bridged,
        push.rules,
        rooms_admin.purges,
        notifier.publish,
        clock,
    )
    devices = DeviceStore(
        db, name, device_lists, notifier.publish, audience.wake, metrics.observe_dropped, limiter, clock
    )
    edus = edu_parts(config, db, engine, sender, notifier, metrics, clock)
    audience.remote_ephemeral = edus.remote
    dispatcher = edu_dispatcher(config, db, edus, devices, device_lists, clock)
    transactions = TransactionEndpoints(
        db,
        engine,
        Outsiders(db, name, invite_policy, push.outside_invites, notifier.publish),
        keyring,
        joining.settled,
        dispatcher,
        limiter,
        clock,
    )
    media = media_parts(config, db, client, dns, clock)
    of_accounts = account_parts(
        config, db, accounts, access, bridges.services, web_client, rooms.profile_news.changed, limiter, clock
    )
    federation: Sequence[object] = (
        transactions,
        MembershipEndpoints(db, engine, keyring, invites, limiter, clock),
        EventEndpoints(db, engine),
        RecoveryEndpoints(db),
        WellKnownEndpoints(config.federation.well_known),
        VersionEndpoints(),
        ServerKeyEndpoints(
            key,
            old_keys,
            NotaryDocuments(db, keyring, clock),
            clock,
            linearized=config.federation.mode == "linearized",
        ),
        FederationDeviceEndpoints(
            name, FederatedDevices(accounts, devices, name), Profiles(db, accounts), rooms.directory
        ),
        FederationMediaEndpoints(media.library),
        *federation_room_endpoints(config, db, rooms, clock),
    )
    return Server(
        config,
        db,
        engine,
        accounts,
        membership,
        sender,
        gaps,
        backfill,
        EchoWatch(db, engine, api, keyring, answers, evidence, audience.wake, clock),
        Declines(db, api, clock),
        Departures(db, membership, clock),
        guard,
        recovery,
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
        rooms_admin.purges,
        rooms.upgrades,
        blocked,
        client_app(
            config,
            db,
            engine,
            backfill,
            accounts,
            of_accounts,
            bridges.endpoints,
            invite_policy,
            membership,
            rooms,
            data,
            devices,
            device_lists,
            remote,
            media,
            journal,
            notifier,
            edus,
            push,
            limiter,
            metrics,
            clock,
        ),
        build_app(
            federation,
            {
                Auth.SERVER: ServerAuthenticator(
                    name,
                    keyring.keys_for_request,
                    sender.peer_alive,
                    met=keyring.met,
                    limiter=limiter,
                    blocked=blocked,
                )
            },
            failures=FAILURES,
            limiter=limiter,
            observe=partial(metrics.observe_request, "federation"),
            proxies=TrustedProxies(config.trusted_proxies),
        ),
        admin_app(
            config,
            db,
            accounts,
            of_accounts.administration,
            rooms_admin,
            MediaAdministration(db, name, media.library),
            sender,
            blocked,
            rooms.notices,
            access,
            of_accounts.authenticators[Auth.USER],
            limiter,
            FAILURES,
            metrics,
            clock,
        ),
        metrics,
    )


def _room_administration(
    config: Config,
    db: Database,
    engine: RoomEngine,
    turns: Turns,
    joining: Joining,
    membership: Membership,
    clock: Callable[[], int],
) -> RoomAdministration:
    days = config.rooms.purge_empty_after_days
    keep_empty_ms = None if days is None else days * DAY_MS
    purges = RoomPurges(db, turns, membership, joining.alone, clock, keep_empty_ms)
    return RoomAdministration(db, engine, membership, purges, clock)


def _key_conflict(metrics: Metrics, server: str, key_id: str) -> None:
    metrics.key_conflicts.inc()
    log_conflict(server, key_id)
