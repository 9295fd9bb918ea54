"""The client's endpoints of rooms, wired: finding, making, entering, replacing and reporting them."""

from __future__ import annotations

from collections.abc import Callable

from lmserver.accounts.accounts import Accounts
from lmserver.client_api.directory import DirectoryEndpoints
from lmserver.client_api.reports import ReportEndpoints
from lmserver.client_api.rooms import RoomEndpoints
from lmserver.config import Config
from lmserver.rooms.directory import Directory
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.membership import Membership
from lmserver.rooms.presets import Versions
from lmserver.rooms.reading import Reading
from lmserver.storage.database import Database
from lmserver.web.limits import RateLimiter


def room_endpoints(
    config: Config,
    db: Database,
    engine: RoomEngine,
    membership: Membership,
    directory: Directory,
    reading: Reading,
    accounts: Accounts,
    limiter: RateLimiter,
    clock: Callable[[], int],
) -> list[object]:
    """What the client API has to say of rooms as a whole."""
    versions = Versions(config.rooms.default_version, config.rooms.map_numeric_versions)
    return [
        RoomEndpoints(db, engine, membership, directory, accounts.profile, limiter, clock, versions),
        DirectoryEndpoints(db, directory, reading),
        ReportEndpoints(db, reading, config.server_name, accounts.is_active, clock),
    ]
