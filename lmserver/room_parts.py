"""The client's endpoints of rooms, wired: rooms, making, entering, replacing and reporting them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.client_data import ClientData
from lmserver.accounts.openid import OpenIdTokens
from lmserver.accounts.push_rules import BadRule, PushRules, UnknownRule
from lmserver.client_api.directory import DirectoryEndpoints
from lmserver.client_api.public_rooms import PublicRoomEndpoints
from lmserver.client_api.reports import ReportEndpoints
from lmserver.client_api.rooms import RoomEndpoints
from lmserver.client_api.search import SearchEndpoints
from lmserver.client_api.services import ServiceEndpoints
from lmserver.client_api.spaces import SpaceEndpoints
from lmserver.client_api.timestamps import TimestampEndpoints
from lmserver.client_api.upgrades import UpgradeEndpoints
from lmserver.config import Config
from lmserver.federation_client.client import FederationClient
from lmserver.federation_server.openid import OpenIdEndpoints
from lmserver.federation_server.public_rooms import PublicRoomEndpoints as FederationListEndpoints
from lmserver.federation_server.spaces import SpaceEndpoints as FederationSpaceEndpoints
from lmserver.federation_server.timestamps import TimestampEndpoints as FederationTimestampEndpoints
from lmserver.rooms.directory import Bridges, Directory, Remote
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.membership import Membership
from lmserver.rooms.notices import Notices, NoticeSettings
from lmserver.rooms.presets import Versions
from lmserver.rooms.profile_news import ProfileNews
from lmserver.rooms.public_list import PublicList
from lmserver.rooms.purging import RoomPurges
from lmserver.rooms.reading import Reading
from lmserver.rooms.remote_list import RemoteLists
from lmserver.rooms.search import Search
from lmserver.rooms.spaces import Spaces
from lmserver.rooms.timestamps import Timestamps
from lmserver.rooms.upgrades import Upgrades
from lmserver.storage.database import Database
from lmserver.web.limits import RateLimiter


@dataclass(frozen=True, slots=True)
class RoomParts:
    """How rooms are found, here and elsewhere, and those in which the server speaks."""

    directory: Directory
    listing: PublicList
    lists: RemoteLists
    spaces: Spaces
    timestamps: Timestamps
    notices: Notices
    profile_news: ProfileNews
    upgrades: Upgrades


def room_parts(
    config: Config,
    db: Database,
    engine: RoomEngine,
    client: FederationClient,
    remote_alias: Remote,
    accounts: Accounts,
    data: ClientData,
    bridges: Bridges,
    push_rules: PushRules,
    purges: RoomPurges,
    publish: Callable[[Iterable[str]], None],
    clock: Callable[[], int],
) -> RoomParts:
    """Aliases, public lists, spaces, notices, news of profiles and replacements."""
    of = config.server_notices
    settings = NoticeSettings(of.localpart, of.name, of.can_be_declined)
    listing = PublicList(db)
    copy_push_rule = partial(_copy_push_rule, push_rules)
    directory = Directory(db, engine, clock, listing.changed, publish, remote_alias, bridges)
    return RoomParts(
        directory,
        listing,
        RemoteLists(client),
        Spaces(db, engine, client),
        Timestamps(db, Reading(db, clock), client, engine.our_name),
        Notices(db, engine, data, accounts.profile, settings, config.rooms.default_version, clock),
        ProfileNews(db, engine, accounts.profile, clock),
        Upgrades(db, engine, data, copy_push_rule, directory.move, accounts.profile, purges, clock),
    )


def room_endpoints(
    config: Config,
    db: Database,
    engine: RoomEngine,
    membership: Membership,
    rooms: RoomParts,
    reading: Reading,
    accounts: Accounts,
    limiter: RateLimiter,
    clock: Callable[[], int],
) -> list[object]:
    """What the client API has to say of rooms as a whole."""
    versions = Versions(config.rooms.default_version, config.rooms.map_numeric_versions)
    return [
        RoomEndpoints(
            db,
            engine,
            membership,
            rooms.directory,
            accounts.profile,
            limiter,
            clock,
            versions,
            rooms.upgrades.carry_over,
            rooms.notices.may_leave,
        ),
        UpgradeEndpoints(rooms.upgrades, versions),
        DirectoryEndpoints(db, rooms.directory, reading, all_local=config.search_all_users),
        PublicRoomEndpoints(db, rooms.directory, rooms.listing, rooms.lists, config.server_name),
        SpaceEndpoints(rooms.spaces, rooms.directory),
        TimestampEndpoints(reading, rooms.timestamps),
        ServiceEndpoints(config.server_name, config.turn, OpenIdTokens(db, clock), clock),
        SearchEndpoints(Search(db, reading)),
        ReportEndpoints(db, reading, config.server_name, accounts.is_active, clock),
    ]


def federation_room_endpoints(
    config: Config, db: Database, rooms: RoomParts, clock: Callable[[], int]
) -> list[object]:
    """What other servers and services may ask of rooms and users beside the draft's endpoints."""
    return [
        OpenIdEndpoints(OpenIdTokens(db, clock)),
        FederationSpaceEndpoints(rooms.spaces),
        FederationTimestampEndpoints(db, rooms.timestamps),
        FederationListEndpoints(rooms.listing, shown=config.rooms.list_for_servers),
    ]


async def _copy_push_rule(rules: PushRules, user_id: str, old_room: str, new_room: str) -> None:
    """A user's rule for a room counts for its replacement, unless there is one for that."""
    with contextlib.suppress(UnknownRule, BadRule):
        rule = await rules.rule(user_id, "room", old_room)
        if all(r["rule_id"] != new_room for r in (await rules.rules(user_id)).get("room", [])):
            await rules.put(user_id, "room", new_room, {"actions": rule["actions"]}, None, None)
