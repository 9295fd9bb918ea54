"""Who is in rooms, wired: getting in and out, here and elsewhere, and rooms that end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.invite_policy import InvitePolicy
from lmserver.config import Config
from lmserver.federation_client.keyring import Keyring
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms.administration import RoomAdministration
from lmserver.rooms.declines import Declines
from lmserver.rooms.departures import Departures
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.handshakes import Handshakes
from lmserver.rooms.invites import Accounts as Invitable
from lmserver.rooms.invites import Invites
from lmserver.rooms.joining import Joining
from lmserver.rooms.membership import Membership
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.outsiders import Outsiders
from lmserver.rooms.purging import RoomPurges
from lmserver.rooms.push.outside_invites import OutsideInvites
from lmserver.rooms.turns import Audience, Turns
from lmserver.storage.database import Database
from lmserver.web.limits import RateLimiter

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class MembershipParts:
    """What users do, what other servers tell us of it, what is still to be told to them, and what operators
    do."""

    membership: Membership
    joining: Joining
    invites: Invites
    invite_policy: InvitePolicy
    outsiders: Outsiders
    declines: Declines
    departures: Departures
    administration: RoomAdministration


def membership_parts(
    config: Config,
    db: Database,
    key: SigningKey,
    api: RoomApi,
    keyring: Keyring,
    engine: RoomEngine,
    turns: Turns,
    accounts: Accounts,
    invitable: Invitable,
    pushes: OutsideInvites,
    audience: Audience,
    notifier: Notifier,
    limiter: RateLimiter,
    clock: Callable[[], int],
) -> MembershipParts:
    """Joins, invites, knocks, leaves, and what follows from them."""
    joining = Joining(db, key, api, keyring, turns, audience.publish, clock)
    policy = InvitePolicy(db, limiter)
    invites = Invites(db, key, api, keyring, turns, invitable, policy, pushes, notifier.publish)
    handshakes = Handshakes(db, key, api, notifier.publish, clock)
    membership = Membership(db, key, engine, joining, handshakes, invites, api, accounts.profile, clock)
    days = config.rooms.purge_empty_after_days
    keep_empty_ms = None if days is None else days * DAY_MS
    purges = RoomPurges(db, turns, membership, joining.alone, clock, keep_empty_ms)
    return MembershipParts(
        membership,
        joining,
        invites,
        policy,
        Outsiders(db, config.server_name, policy, pushes, notifier.publish),
        Declines(db, api, clock),
        Departures(db, membership, clock),
        RoomAdministration(db, engine, membership, purges, clock),
    )
