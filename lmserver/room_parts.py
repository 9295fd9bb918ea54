"""The client's endpoints of rooms, wired: finding, making, entering, replacing and reporting them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.client_data import ClientData
from lmserver.accounts.push_rules import BadRule, PushRules, UnknownRule
from lmserver.client_api.directory import DirectoryEndpoints
from lmserver.client_api.reports import ReportEndpoints
from lmserver.client_api.rooms import RoomEndpoints
from lmserver.client_api.upgrades import UpgradeEndpoints
from lmserver.config import Config
from lmserver.rooms.directory import Directory
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.membership import Membership
from lmserver.rooms.presets import Versions
from lmserver.rooms.reading import Reading
from lmserver.rooms.upgrades import Upgrades
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
    data: ClientData,
    push_rules: PushRules,
    limiter: RateLimiter,
    clock: Callable[[], int],
) -> list[object]:
    """What the client API has to say of rooms as a whole."""
    versions = Versions(config.rooms.default_version, config.rooms.map_numeric_versions)
    copy_push_rule = partial(_copy_push_rule, push_rules)
    upgrades = Upgrades(db, engine, data, copy_push_rule, accounts.profile, clock)
    return [
        RoomEndpoints(
            db, engine, membership, directory, accounts.profile, limiter, clock, versions, upgrades.carry_over
        ),
        UpgradeEndpoints(upgrades, versions),
        DirectoryEndpoints(db, directory, reading),
        ReportEndpoints(db, reading, config.server_name, accounts.is_active, clock),
    ]


async def _copy_push_rule(rules: PushRules, user_id: str, old_room: str, new_room: str) -> None:
    """A user's rule for a room counts for its replacement, unless there is one for that."""
    with contextlib.suppress(UnknownRule, BadRule):
        rule = await rules.rule(user_id, "room", old_room)
        if all(r["rule_id"] != new_room for r in (await rules.rules(user_id)).get("room", [])):
            await rules.put(user_id, "room", new_room, {"actions": rule["actions"]}, None, None)
