"""Accounts as operators look through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.list_page import ListPage
from lmserver.storage.people import escaped

ORDERS: Final = frozenset({
    "name", "admin", "deactivated", "erased", "locked", "displayname", "avatar_url", "creation_ts",
    "last_seen_ts",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class AccountQuery:
    """Which accounts. `term` is looked for in IDs and names, `user_id` in IDs alone; of
    deactivated and locked ones there are none unless asked for; `admins` None: both kinds."""

    term: str | None = None
    user_id: str | None = None
    admins: bool | None = None
    deactivated: bool = False
    locked: bool = True


@dataclass(frozen=True, slots=True)
class ListedAccount:
    """One account; times in ms, `last_seen_ts` None for one that no device was seen of."""

    user_id: str
    is_admin: bool
    deactivated: bool
    locked: bool
    suspended: bool
    erased: bool
    displayname: str | None
    avatar_url: str | None
    created_ts: int
    last_seen_ts: int | None


def _listed(row: Any) -> ListedAccount:
    return ListedAccount(*(row[name] for name in ListedAccount.__slots__))


async def one(db: Executor, user_id: str) -> ListedAccount | None:
    row = await db.fetchrow(
        "SELECT a.user_id, a.is_admin, a.deactivated, a.locked, a.suspended, a.erased, a.displayname,"
        " a.avatar_url, a.created_ts,"
        " (SELECT max(d.last_seen_ts) FROM devices AS d WHERE d.user_id = a.user_id) AS last_seen_ts"
        " FROM accounts AS a WHERE a.user_id = $1",
        user_id,
    )
    return None if row is None else _listed(row)


async def page(db: Executor, query: AccountQuery, part: ListPage) -> list[ListedAccount]:
    """One page; user IDs decide between equals."""
    rows = await db.fetch(
        "SELECT * FROM (SELECT a.user_id, a.is_admin, a.deactivated, a.locked, a.suspended, a.erased,"
        " a.displayname, a.avatar_url, a.created_ts,"
        " (SELECT max(d.last_seen_ts) FROM devices AS d WHERE d.user_id = a.user_id) AS last_seen_ts"
        " FROM accounts AS a WHERE ($1::text IS NULL OR lower(a.user_id) LIKE $1 ESCAPE '!'"
        " OR lower(a.displayname) LIKE $1 ESCAPE '!') AND ($2::text IS NULL OR a.user_id LIKE $2 ESCAPE '!')"
        " AND ($3::boolean IS NULL OR a.is_admin = $3) AND ($4 OR NOT a.deactivated) AND ($5 OR NOT a.locked)"
        ") AS f ORDER BY"
        " CASE WHEN NOT $7 THEN CASE $6 WHEN 'admin' THEN is_admin WHEN 'deactivated' THEN deactivated"
        " WHEN 'locked' THEN locked WHEN 'erased' THEN erased END END,"
        " CASE WHEN $7 THEN CASE $6 WHEN 'admin' THEN is_admin WHEN 'deactivated' THEN deactivated"
        " WHEN 'locked' THEN locked WHEN 'erased' THEN erased END END DESC,"
        " CASE WHEN NOT $7 THEN CASE $6 WHEN 'creation_ts' THEN created_ts"
        " WHEN 'last_seen_ts' THEN last_seen_ts END END,"
        " CASE WHEN $7 THEN CASE $6 WHEN 'creation_ts' THEN created_ts"
        " WHEN 'last_seen_ts' THEN last_seen_ts END END DESC NULLS LAST,"
        " CASE WHEN NOT $7 THEN CASE $6 WHEN 'displayname' THEN displayname"
        " WHEN 'avatar_url' THEN avatar_url END END,"
        " CASE WHEN $7 THEN CASE $6 WHEN 'displayname' THEN displayname"
        " WHEN 'avatar_url' THEN avatar_url END END DESC NULLS LAST,"
        " CASE WHEN $7 AND $6 = 'name' THEN user_id END DESC, user_id OFFSET $8 LIMIT $9",
        *_filters(query),
        *part.arguments,
    )
    return [_listed(row) for row in rows]


async def count(db: Executor, query: AccountQuery) -> int:
    """How many there are on all pages."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM accounts AS a WHERE ($1::text IS NULL OR lower(a.user_id) LIKE $1 ESCAPE '!'"
        " OR lower(a.displayname) LIKE $1 ESCAPE '!') AND ($2::text IS NULL OR a.user_id LIKE $2 ESCAPE '!')"
        " AND ($3::boolean IS NULL OR a.is_admin = $3) AND ($4 OR NOT a.deactivated)"
        " AND ($5 OR NOT a.locked)",
        *_filters(query),
    )
    return found


def _filters(query: AccountQuery) -> tuple[object, ...]:
    return (
        f"%{escaped(query.term.lower())}%" if query.term else None,
        f"%{escaped(query.user_id)}%" if query.user_id else None,
        query.admins,
        query.deactivated,
        query.locked,
    )
