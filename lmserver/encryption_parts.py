"""The parts that have to do with encryption, wired: clients' keys, signatures and backups."""

from __future__ import annotations

from collections.abc import Sequence

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.cross_signing import CrossSigning
from lmserver.accounts.dehydrated import DehydratedDevices
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.device_lists import DeviceLists
from lmserver.accounts.key_backups import KeyBackups
from lmserver.accounts.remote import RemoteUsers
from lmserver.client_api.cross_signing import CrossSigningEndpoints
from lmserver.client_api.dehydrated import DehydratedEndpoints
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.client_api.keys import KeyEndpoints
from lmserver.client_api.room_keys import RoomKeyEndpoints
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.key_changes import KeyChanges
from lmserver.storage.database import Database


def encryption_endpoints(
    our_name: str,
    db: Database,
    accounts: Accounts,
    devices: DeviceStore,
    device_lists: DeviceLists,
    remote: RemoteUsers,
    journal: Journal,
    feeds: Feeds,
    interaction: UserInteraction,
) -> Sequence[object]:
    """What clients that encrypt ask for."""
    return (
        KeyEndpoints(devices, our_name, remote, KeyChanges(db, journal, feeds)),
        CrossSigningEndpoints(CrossSigning(db, device_lists, remote.masters), interaction),
        RoomKeyEndpoints(KeyBackups(db)),
        DehydratedEndpoints(DehydratedDevices(db, accounts, devices, device_lists)),
    )
