"""The user directory: whom one may find, under words of their name.

Words are made here and nowhere else, so that what is stored and what is searched for agree; a search
finds words by their beginnings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor

MAX_WORDS: Final = 16
MAX_WORD: Final = 64
_WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Person:
    """A user as found."""

    user_id: str
    display_name: str | None
    avatar_url: str | None


def words_of(text: str) -> list[str]:
    """Letters and digits of a text in lower case, in words; nothing else ever reaches a query."""
    found = dict.fromkeys(word[:MAX_WORD] for word in _WORD.findall(text[:4096].casefold()))
    return list(found)[:MAX_WORDS]


async def seen(db: Executor, contents: Mapping[str, Mapping[str, Any]], *, new_only: bool) -> None:
    """Note what member events (by user) say of their users; with `new_only` nobody is changed who is
    known already."""
    people = [_person(user_id, content) for user_id, content in sorted(contents.items())]
    names = [" ".join(_words_of_person(person)) for person in people]
    arguments = (
        [p.user_id for p in people],
        [p.display_name for p in people],
        [p.avatar_url for p in people],
        names,
    )
    if new_only:
        await db.execute(
            "INSERT INTO directory_users (user_id, display_name, avatar_url, words)"
            " SELECT n.user_id, n.display_name, n.avatar_url,"
            " array_to_tsvector(string_to_array(n.words, ' '))"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])"
            " AS n (user_id, display_name, avatar_url, words) ON CONFLICT (user_id) DO NOTHING",
            *arguments,
        )
    else:
        await db.execute(
            "INSERT INTO directory_users AS d (user_id, display_name, avatar_url, words)"
            " SELECT n.user_id, n.display_name, n.avatar_url,"
            " array_to_tsvector(string_to_array(n.words, ' '))"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])"
            " AS n (user_id, display_name, avatar_url, words) ON CONFLICT (user_id) DO UPDATE"
            " SET display_name = EXCLUDED.display_name, avatar_url = EXCLUDED.avatar_url,"
            " words = EXCLUDED.words"
            " WHERE d.display_name IS DISTINCT FROM EXCLUDED.display_name"
            " OR d.avatar_url IS DISTINCT FROM EXCLUDED.avatar_url",
            *arguments,
        )


async def note(db: Executor, our_name: str, contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Note the users of joins; of our own users only those not known yet."""
    for new_only in (True, False):
        chosen = {u: c for u, c in contents.items() if u.endswith(":" + our_name) is new_only}
        if chosen:
            await seen(db, chosen, new_only=new_only)


def _person(user_id: str, content: Mapping[str, Any]) -> Person:
    return Person(user_id, _text(content.get("displayname")), _text(content.get("avatar_url")))


def _text(value: object) -> str | None:
    """Text a column can hold: PostgreSQL's has no NUL."""
    return value.replace("\0", "") if isinstance(value, str) else None


def _words_of_person(person: Person) -> list[str]:
    localpart = person.user_id[1:].partition(":")[0]
    return words_of(f"{localpart} {person.display_name or ''}")


async def search(db: Executor, user_id: str, term: str, limit: int) -> list[Person]:
    """Users under words that begin as the term's: those who share a room with the user, and those in
    a room anybody may join or read."""
    words = words_of(term)
    if not words:
        return []
    rows = await db.fetch(
        "SELECT d.user_id, d.display_name, d.avatar_url FROM directory_users AS d"
        " LEFT JOIN accounts AS a ON a.user_id = d.user_id"
        " WHERE d.words @@ $1::text::tsquery AND d.user_id <> $2 AND a.deactivated IS NOT TRUE"
        " AND EXISTS (SELECT 1 FROM room_state AS o JOIN rooms AS r ON r.room_id = o.room_id"
        " WHERE o.state_key = d.user_id AND o.type = 'm.room.member' AND o.membership = 'join'"
        " AND o.to_position IS NULL AND (r.is_public OR EXISTS (SELECT 1 FROM room_state AS mine"
        " WHERE mine.room_id = o.room_id AND mine.type = 'm.room.member' AND mine.state_key = $2"
        " AND mine.membership = 'join' AND mine.to_position IS NULL)))"
        " ORDER BY ts_rank(d.words, $1::text::tsquery) DESC, d.user_id LIMIT $3",
        _query(words),
        user_id,
        limit,
    )
    return [Person(r["user_id"], r["display_name"], r["avatar_url"]) for r in rows]


def _query(words: list[str]) -> str:
    """Words of letters and digits alone, so there is nothing to quote."""
    return " & ".join(f"'{word}':*" for word in words)


async def search_accounts(db: Executor, user_id: str, term: str, limit: int) -> list[Person]:
    """Users of this server with the term anywhere in their ID or name, whatever rooms they are in."""
    rows = await db.fetch(
        "SELECT user_id, displayname, avatar_url FROM accounts WHERE NOT deactivated AND user_id <> $2"
        " AND (lower(user_id) LIKE $1 ESCAPE '!' OR lower(displayname) LIKE $1 ESCAPE '!')"
        " ORDER BY user_id LIMIT $3",
        f"%{escaped(term.lower())}%",
        user_id,
        limit,
    )
    return [Person(r["user_id"], r["displayname"], r["avatar_url"]) for r in rows]


def escaped(text: str) -> str:
    """For LIKE with ESCAPE '!': every character stands for itself (attack Q1)."""
    return re.sub(r"([!%_])", r"!\1", re.sub("[\0\ud800-\udfff]", "", text))
