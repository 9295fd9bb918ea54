"""The client API, wired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from aiohttp import web

from lmserver.account_parts import AccountParts
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.client_data import ClientData
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.device_lists import DeviceLists
from lmserver.accounts.invite_policy import InvitePolicy
from lmserver.accounts.profiles import Profiles
from lmserver.accounts.remote import RemoteUsers
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
from lmserver.edu_parts import EduParts
from lmserver.encryption_parts import encryption_endpoints
from lmserver.failures import FAILURES
from lmserver.federation_server.discovery import WellKnownEndpoints
from lmserver.media_parts import MediaParts
from lmserver.metrics import Metrics
from lmserver.push_parts import PushParts
from lmserver.room_parts import RoomParts, room_endpoints
from lmserver.rooms.backfill import Backfill
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.membership import Membership
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.reading import Reading
from lmserver.rooms.receipts import Receipts
from lmserver.rooms.sliding.service import SlidingSync
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.sync import SyncService
from lmserver.storage.database import Database
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import build_app
from lmserver.web.limits import RateLimiter


def client_app(
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
    receipts = Receipts(
        db, reading, data, notifier.publish, edus.announcements, push.delivery.has_read, clock
    )
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
        SyncEndpoints(sync, data.get_filter, edus.presence, of_accounts.long_polls),
        SlidingSyncEndpoints(sliding, edus.presence, of_accounts.long_polls),
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
