"""`lmserver user`: accounts, from the shell."""

from __future__ import annotations

import asyncio
import sys

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.errors import AccountError
from lmserver.accounts.passwords import BadPassword
from lmserver.commands.shell import BY, MAX_SHOWN, failed, tell, when
from lmserver.config import Config
from lmserver.server import open_accounts
from lmserver.storage.account_list import AccountQuery
from lmserver.storage.list_page import ListPage


def run(config: Config, action: str, which: str | None, *, admin: bool) -> int:
    """1 when it cannot be done."""

    async def work() -> int:
        async with open_accounts(config, tell) as (db, accounts):
            administration = AccountAdministration(db, accounts, _nobody)
            if action == "list":
                return await _list(administration, which)
            try:
                return await _do(accounts, administration, action, which or "", admin)
            except (AccountError, BadPassword) as error:
                return failed(str(error))

    return asyncio.run(work())


async def _nobody(user_id: str) -> None:
    """No rooms are told from here: nothing that these commands do changes a name."""


async def _list(administration: AccountAdministration, term: str | None) -> int:
    query = AccountQuery(term, deactivated=True)
    found, total = await administration.page(query, ListPage("name", limit=MAX_SHOWN))
    for account in found:
        marks = {
            "administrator": account.is_admin,
            "locked": account.locked,
            "suspended": account.suspended,
            "deactivated": account.deactivated,
        }
        said = "".join(f" [{mark}]" for mark, holds in marks.items() if holds)
        seen = "never seen" if account.last_seen_ts is None else f"seen {when(account.last_seen_ts)}"
        print(f"{account.user_id} made {when(account.created_ts)}, {seen}{said}")
    tell(f"{total} accounts" if total <= MAX_SHOWN else f"{total} accounts, the first {MAX_SHOWN} shown")
    return 0


async def _do(
    accounts: Accounts, administration: AccountAdministration, action: str, which: str, admin: bool
) -> int:
    user_id = accounts.user_id(which)
    match action:
        case "create":
            await accounts.register(user_id, _password(), is_admin=admin)
            print(user_id)
        case "reset-password":
            await administration.reset_password(user_id, _password(), log_out=True)
            print(f"{user_id} has a new password and is logged out")
        case "deactivate":
            await administration.deactivate(BY, user_id)
            print(f"{user_id} has ended and leaves all rooms while the server runs")
        case "revoke":
            print(f"{user_id}: {len(await administration.revoke(user_id))} logins ended")
        case "suspend" | "unsuspend":
            await administration.set_suspended(BY, user_id, action == "suspend")
            print(f"{user_id} {action}ed")
        case _:
            await administration.set_locked(BY, user_id, action == "lock")
            print(f"{user_id} {action}ed")
    return 0


def _password() -> str:
    return sys.stdin.readline().rstrip("\r\n")
