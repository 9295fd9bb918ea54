"""The composition: every part built once and handed what it needs; the only place that knows them all."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from lmserver.account_parts import AccountParts, account_parts
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
from lmserver.client_api.account_data import AccountDataEndpoints
from lmserver.client_api.discovery import DiscoveryEndpoints
from lmserver.client_api.ephemeral import EphemeralEndpoints
from lmserver.client_api.history import HistoryEndpoints
from lmserver.client_api.media import MediaEndpoints
from lmserver.client_api.presence import PresenceEndpoints
from lmserver.client_api.profile import ProfileEndpoints
from lmserver.client_api.relations import RelationEndpoints
from lmserver.client_api.send import SendEndpoints
from lmserver.client_api.sliding_sync import SlidingSyncEndpoints
from lmserver.client_api.sync import SyncEndpoints
from lmserver.client_api.url_previews import UrlPreviewEndpoints
from lmserver.config import Config
from lmserver.edu_parts import EduParts, edu_dispatcher, edu_parts
from lmserver.encryption_parts import encryption_endpoints
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.blocked import BlockedServers
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import PinnedHttp, tls_context
from lmserver.federation_client.dns_lookup import Dns, SystemDns
from lmserver.federation_client.keyring import Keyring, log_conflict
from lmserver.federation_client.notary_documents import NotaryDocuments
from lmserver.federation_client.resolver import Resolver
from lmserver.federation_client.room_api import RoomApi
from lmserver.federation_client.sender import Sender
from lmserver.federation_client.web_client import WebClient
from lmserver.federation_client.web_pages import WebPages
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
from lmserver.media.files import MediaFiles
from lmserver.media.library import Library
from lmserver.media.local import LocalMedia
from lmserver.media.remote import RemoteMedia
from lmserver.media.thumbnails import Thumbnails
from lmserver.media.url_previews import UrlPreviews
from lmserver.media.workers import Workers
from lmserver.metrics import Metrics
from lmserver.own_keys import OldKey
from lmserver.protocol.signatures import SigningKey
from lmserver.push_parts import PushParts, push_parts
from lmserver.room_parts import RoomParts, federation_room_endpoints, room_endpoints, room_parts
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
from lmserver.rooms.outcomes import RoomBusy
from lmserver.rooms.outsiders import Outsiders
from lmserver.rooms.own_lpdus import HubSilent, OwnLpdus
from lmserver.rooms.profile_news import ProfileNews
from lmserver.rooms.purging import RoomPurges
from lmserver.rooms.push.following import Following
from lmserver.rooms.reading import Reading
from lmserver.rooms.receipts import Receipts
from lmserver.rooms.remote_ephemeral import RemoteEphemeral
from lmserver.rooms.rollback import TailRecovery
from lmserver.rooms.sliding.service import SlidingSync
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.sync import SyncService
from lmserver.rooms.turns import Turns
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.restore_guard import RestoreGuard
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import build_app
from lmserver.web.endpoint import Auth
from lmserver.web.errors import ApiError
from lmserver.web.limits import RateLimiter

FAILURES: dict[type[Exception], ApiError] = {
    DatabaseUnavailable: ApiError(503, "M_UNKNOWN", "Try again in a moment", {"retry_after_ms": 2000}),
    RoomBusy: ApiError(
        429, "M_LIMIT_EXCEEDED", "Too many events wait for the room", {"retry_after_ms": 1000}
    ),
    HubSilent: ApiError(504, "M_UNKNOWN", "The room's hub has not answered yet"),
}


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


@dataclass(frozen=True, slots=True)
class MediaParts:
    """Uploads, copies, both together, and what is made of them."""

    local: LocalMedia
    remote: RemoteMedia
    library: Library
    thumbnails: Thumbnails
    previews: UrlPreviews | None


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
    client = _federation_client(config, key, dns, blocked)
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
    web_client = _web_client(config, dns)
    accounts = Accounts(db, name, passwords, device_lists, access, clock)
    bridges = appservice_parts(config, db, accounts, dns, _web_tls(config), clock)
    joining = Joining(db, key, api, keyring, turns, audience.publish, clock)
    limiter = RateLimiter(config.limits)
    invite_policy = InvitePolicy(db, limiter)
    invites = Invites(db, key, api, keyring, turns, bridges.bridged, invite_policy, notifier.publish)
    handshakes = Handshakes(db, key, api, notifier.publish, clock)
    membership = Membership(db, key, engine, joining, handshakes, invites, api, accounts.profile, clock)
    rooms_admin = _room_administration(config, db, engine, turns, joining, membership, clock)
    remote = RemoteUsers(name, client, sender.in_reach)
    data = ClientData(db, notifier.publish)
    rooms = room_parts(config, db, engine, client, remote.alias, accounts, data, bridges.bridged, clock)
    devices = DeviceStore(
        db, name, device_lists, notifier.publish, audience.wake, metrics.observe_dropped, limiter, clock
    )
    edus = edu_parts(config, db, engine, sender, notifier, metrics, clock)
    audience.remote_ephemeral = edus.remote
    push = push_parts(config, db, journal, engine, dns, notifier.publish, clock)
    audience.following = push.following
    dispatcher = edu_dispatcher(config, db, edus, devices, device_lists, clock)
    transactions = TransactionEndpoints(
        db,
        engine,
        Outsiders(db, name, invite_policy, notifier.publish),
        keyring,
        joining.settled,
        dispatcher,
        limiter,
        clock,
    )
    media = _media(config, db, client, dns, clock)
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
        blocked,
        _client_app(
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


def _web_client(config: Config, dns: Dns) -> WebClient:
    """For those the operator trusts, and whom they name."""
    return WebClient(dns, AddressGuard(config.federation.allowed_networks), _web_tls(config))


def _web_tls(config: Config) -> ssl.SSLContext:
    """The web is wider than federation: TLS 1.2 will do."""
    context = ssl.create_default_context()
    if config.federation.ca_file is not None:
        context.load_verify_locations(cafile=str(config.federation.ca_file))
    return context


def _federation_client(
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


def _media(
    config: Config, db: Database, client: FederationClient, dns: Dns, clock: Callable[[], int]
) -> MediaParts:
    limits = config.media
    folder = config.data_dir / "media"
    local_files, remote_files = MediaFiles(folder / "local"), MediaFiles(folder / "remote")
    local = LocalMedia(db, local_files, limits.user_quota, clock)
    days = limits.remote_retention_days
    remote = RemoteMedia(
        db,
        client,
        remote_files,
        limits.max_remote_size,
        limits.remote_cache_size,
        clock,
        None if days is None else days * DAY_MS,
    )
    workers = Workers()
    thumbnails = Thumbnails(workers)
    library = Library(config.server_name, local, local_files, remote, remote_files, thumbnails)
    previews = _url_previews(config, db, dns, workers, local, local_files, clock)
    return MediaParts(local, remote, library, thumbnails, previews)


def _url_previews(
    config: Config,
    db: Database,
    dns: Dns,
    workers: Workers,
    local: LocalMedia,
    files: MediaFiles,
    clock: Callable[[], int],
) -> UrlPreviews | None:
    wanted = config.url_previews
    if not wanted.enabled:
        return None
    return UrlPreviews(
        db,
        config.server_name,
        WebPages(dns, AddressGuard(wanted.allowed_networks, wanted.denied_networks)),
        workers,
        local,
        files,
        clock,
        max_image=wanted.max_image_size,
        timeout=wanted.timeout,
        cache_size=wanted.cache_size,
    )


def _client_app(
    config: Config,
    db: Database,
    engine: RoomEngine,
    backfill: Backfill,
    accounts: Accounts,
    of_accounts: AccountParts,
    of_services: list[object],
    invite_policy: InvitePolicy,
    membership: Membership,
    rooms: RoomParts,
    data: ClientData,
    devices: DeviceStore,
    device_lists: DeviceLists,
    remote: RemoteUsers,
    media: MediaParts,
    journal: Journal,
    notifier: Notifier,
    edus: EduParts,
    push: PushParts,
    limiter: RateLimiter,
    metrics: Metrics,
    clock: Callable[[], int],
) -> web.Application:
    reading = Reading(db, clock)
    receipts = Receipts(db, reading, data, notifier.publish, edus.announcements, clock)
    feeds = Feeds(db, devices, data, edus.presence)
    sliding = SlidingSync(
        db, journal, notifier, reading, edus.typing, feeds, data, invite_policy.refuses, push.unread, clock
    )
    sync = SyncService(
        db, journal, notifier, reading, edus.typing, feeds, invite_policy.refuses, push.unread, clock
    )
    of_rooms = room_endpoints(
        config,
        db,
        engine,
        membership,
        rooms,
        reading,
        accounts,
        data,
        push.rules,
        limiter,
        clock,
    )
    endpoints: Sequence[object] = (
        DiscoveryEndpoints(config.client.public_url, config.rooms.default_version),
        WellKnownEndpoints(config.federation.well_known),
        *of_accounts.endpoints,
        *of_services,
        ProfileEndpoints(
            Profiles(db, accounts),
            config.server_name,
            rooms.profile_news.changed,
            remote.profile,
        ),
        AccountDataEndpoints(data),
        *push.endpoints(),
        *encryption_endpoints(
            config.server_name,
            db,
            accounts,
            devices,
            device_lists,
            remote,
            journal,
            feeds,
            of_accounts.interaction,
        ),
        *of_rooms,
        SendEndpoints(engine, reading, edus.typing, rooms.directory, clock),
        HistoryEndpoints(db, reading, backfill),
        RelationEndpoints(db, reading),
        SyncEndpoints(sync, data.get_filter, edus.presence),
        SlidingSyncEndpoints(sliding, edus.presence),
        PresenceEndpoints(edus.presence),
        EphemeralEndpoints(reading, edus.typing, receipts),
        MediaEndpoints(config.server_name, media.local, media.library, config.media.max_upload_size),
        *([] if media.previews is None else [UrlPreviewEndpoints(media.previews)]),
    )
    return build_app(
        endpoints,
        of_accounts.authenticators,
        cors=True,
        failures=FAILURES,
        limiter=limiter,
        observe=partial(metrics.observe_request, "client"),
        proxies=TrustedProxies(config.trusted_proxies),
    )
