"""G6: nothing that a client may put in a path, a query or a body makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yarl import URL

from lmserver.storage.database import Database
from lmserver.web.endpoint import Endpoint
from tests.client_api.test_accounts_api import NAME, V3, serve
from tests.client_api.test_surface import registry

ROOM_NAMES = ("room_id", "room", "event_id", "user_id", "alias")
PARAMETERS = [
    "\0",
    "x" * 300,
    "\u2028%s{}'\"",
    "..",
    "%",
    "!a:" + NAME,
    "$" + "x" * 43,
    "@a:" + NAME,
    "#a:" + NAME,
    "1",
]
BODIES: list[bytes] = [
    b"", b"[]", b"null", b'"x"', b"{", b"{}", b'{"a":' * 200 + b"1" + b"}" * 200, b'{"user_id":"\\ud800"}',
    b'{"limit":1e400}', b'{"limit":-1,"since":[],"filter":{"generic_search_term":"\\ud800","room_types":{}}}',
    b'{"search_term":"\\ud800\\u0000%_","limit":9007199254740993}', b'{"reason":"\\u0000","score":1.5}',
    b'{"new_version":{},"room_id":[],"visibility":5,"order":"x"}', b'{"name":"\\ud800","topic":1.5,"invite":[5]}',
    b'{"search_categories":{"room_events":{"search_term":"\\ud800","filter":{"rooms":["\\u0000"],"limit":0}}}}',
]  # fmt: skip
QUERIES = ["", "limit=-1&from=%00&since=%FF&dir=x&ts=1e9", "server=%00&via=%00&from=99_x_false&filter={&at=x"]


def paths(entry: Endpoint, rooms: dict[str, str]) -> Iterator[str]:
    """The declared path with each junk value, and with what is right where only the rest is junk."""
    for junk in PARAMETERS if "{" in entry.path else PARAMETERS[:1]:
        for good in (False, True):
            parts = [_filled(part, junk, rooms if good else {}) for part in entry.path.split("/")]
            yield "/".join(parts)


def _filled(part: str, junk: str, good: dict[str, str]) -> str:
    if not part.startswith("{"):
        return part
    return quote(good.get(part[1:-1], junk), safe="").replace("..", "%2E%2E")


async def test_g6_no_junk_is_a_failure_of_ours(db: Database, tmp_path: Path) -> None:
    api = await serve(db, tmp_path)
    try:
        alice = await api.register("alice")
        token = alice["access_token"]
        room_id = (await api.call("POST", f"{V3}/createRoom", {"preset": "public_chat"}, token))[1]["room_id"]
        rooms = {"room_id": room_id, "room": room_id, "user_id": alice["user_id"]}
        failures: list[Any] = []
        for entry in registry(api.server.client_app):
            if "/r0/" in entry.path or entry.path.endswith(("/logout", "/logout/all", "/account/deactivate")):
                continue
            for index, path in enumerate(dict.fromkeys(paths(entry, rooms))):
                body = BODIES[index % len(BODIES)] if entry.method != "GET" else None
                url = URL(f"{path}?{QUERIES[index % len(QUERIES)]}", encoded=True)
                headers = {"Authorization": f"Bearer {token}"}
                async with api.http.request(entry.method, url, data=body, headers=headers) as response:
                    if response.status >= 500 and response.status not in (502, 504):
                        failures.append((entry.method, str(url), body, await response.text()))
            if entry.method != "GET" and "{" not in entry.path:
                for body in BODIES:
                    headers = {"Authorization": f"Bearer {token}"}
                    async with api.http.request(
                        entry.method, entry.path, data=body, headers=headers
                    ) as response:
                        if response.status >= 500 and response.status not in (502, 504):
                            failures.append((entry.method, entry.path, body, await response.text()))
        assert not failures, "\n".join(map(str, failures))
    finally:
        await api.http.close()
        await api.server.close()
