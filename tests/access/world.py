"""One server, one room, and everybody who may knock at its door, made once without a password hashed."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import yaml
from yarl import URL

from lmserver.accounts.access_tokens import ACCESS_MS
from lmserver.protocol.room_versions import LM_02_ID
from lmserver.storage.database import Database
from tests.access.table import COLUMNS, Row
from tests.evilpeer.network import Network
from tests.kit.client_api import NAME, V3, Api, serve
from tests.kit.clock import Clock
from tests.kit.cross_signing import Identity, SigningDevice
from tests.kit.images import encoded
from tests.kit.sliding import room, window

PERSONAL = "owners-secret"
"""In everything that is the owner's alone; no answer to anybody else may hold it."""
SAID = "told-in-the-room"
"""In what was said and set after the ban; for members alone."""
ACCOUNTS = {
    "owner": "alice", "member": "bob", "stranger": "carol", "banned": "dave", "admin": "root", "locked": "erin", "suspended": "sam",
    "expired": "frank", "victim": "victim",
}  # fmt: skip
LOGINS = 3
BRIDGE = "token-of-a-bridge"
GENEROUS = {"per_second": 10_000, "burst": 10_000}
NO_HASH = "!"
_numbers = count(1)

SECTIONS: dict[str, Any] = {
    "client": {"public_url": "https://hub.test"},
    "presence": {"enabled": True},
    "url_previews": {"enabled": True},
    "oidc_providers": [
        {"id": "corp", "name": "Corp", "issuer": "https://idp.test", "client_id": "c", "client_secret": "s"}
    ],
}


class World:
    """`tokens` by role; `values` fill paths, queries and bodies."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self.api = api
        self._clock = clock
        self.ids = {role: f"@{name}:{NAME}" for role, name in ACCOUNTS.items()}
        self.tokens: dict[str, list[str]] = {}
        self.values: dict[str, Any] = {}

    @classmethod
    async def make(cls, db: Database, folder: Path) -> World:
        clock = Clock()
        limits = dict.fromkeys(
            ("requests", "anonymous", "send", "join", "knock", "invite", "create_room", "claim", "report", "search",
             "media_upload", "media_download", "url_preview", "login", "registration"), GENEROUS,
        )  # fmt: skip
        sections = {**SECTIONS, "limits": limits, "appservices": [_registration(folder)]}
        world = cls(await serve(db, folder, sections, clock, Network()), clock)
        await world.api.server.appservices.services.start()
        await world._people()
        await world._room()
        await world._belongings()
        return world

    async def close(self) -> None:
        await self.api.http.close()
        await self.api.server.close()

    async def ask(self, method: str, path: str, token: str | None, body: Any = None) -> tuple[int, bytes]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = body if isinstance(body, bytes) else None if body is None else orjson.dumps(body)
        url = URL(path, encoded=True)
        async with self.api.http.request(
            method, url, data=data, headers=headers, allow_redirects=False
        ) as response:
            return response.status, await response.read()

    async def ok(self, method: str, path: str, body: Any = None, role: str = "owner") -> Any:
        status, text = await self.ask(method, path, self.tokens[role][0], body)
        assert status == 200, (method, path, text)
        return orjson.loads(text)

    def request(self, row: Row, role: str) -> tuple[str, str, Any]:
        """Method, target and body of a row as this role would send it."""
        number = next(_numbers)
        values = {**self.values, "role": role, "me": self.ids.get(role, "@nobody:x"), "txn_id": f"x{number}"}
        values |= {name: str(_filled(text, values)) for name, text in row.fill.items()}
        path = "/".join(
            quote(str(_filled(part, values)), safe="") if part.startswith("{") else part
            for part in row.path.split("/")
        )
        query = "&".join(
            f"{name}={quote(str(_filled(value, values)), safe='')}"
            for name, _, value in (pair.partition("=") for pair in row.query.split("&") if pair)
        )
        if role == "bridge":
            query = f"{query}&user_id={quote(self.ids['owner'])}"
        return row.method, f"{path}?{query}" if query else path, _filled(row.body, values)

    # -- making ---------------------------------------------------------------------------------

    async def _people(self) -> None:
        accounts = self.api.server.accounts
        for role, name in ACCOUNTS.items():
            await self.api.server.db.execute(
                "INSERT INTO accounts (user_id, password_hash, is_admin, created_ts) VALUES ($1, $2, $3, 1)",
                self.ids[role], NO_HASH, role == "admin",
            )  # fmt: skip
            logins = [
                await accounts.log_in(self.ids[role], f"{name}{n}", None, refreshable=role == "expired")
                for n in range(LOGINS)
            ]
            self.tokens[role] = [login.access_token for login in logins]
        await accounts.set_locked(self.ids["locked"], True)
        await accounts.set_suspended(self.ids["suspended"], True)
        self._clock.pass_(ACCESS_MS)

    async def _room(self) -> None:
        made = await self.ok(
            "POST", f"{V3}/createRoom", {"preset": "private_chat", "room_alias_name": "ours"}
        )
        room_id = made["room_id"]
        for role in ("member", "banned"):
            await self.ok("POST", f"{V3}/rooms/{room_id}/invite", {"user_id": self.ids[role]})
            await self.ok("POST", f"{V3}/rooms/{room_id}/join", {}, role)
        await self.ok("PUT", f"{V3}/rooms/{room_id}/state/m.room.name", {"name": "before"})
        await self.ok("POST", f"{V3}/rooms/{room_id}/ban", {"user_id": self.ids["banned"]})
        await self.ok("PUT", f"{V3}/rooms/{room_id}/state/m.room.name", {"name": SAID})
        for role in COLUMNS:
            await self.ok("PUT", f"{V3}/directory/room/%23of-{role}:{NAME}", {"room_id": room_id})
        sent = [
            await self.ok(
                "PUT", f"{V3}/rooms/{room_id}/send/m.room.message/{n}", {"msgtype": "m.text", "body": SAID}
            )
            for n in range(2)
        ]
        self.values |= {
            "room_id": room_id, "room": room_id, "event_id": sent[0]["event_id"], "spare_event": sent[1]["event_id"],
            "alias": f"#ours:{NAME}", "event_type": "m.room.name", "said": SAID, "room_version": LM_02_ID,
            "sliding": {"lists": {"all": window([0, 9], state=[("*", "*")])},
                        "room_subscriptions": {room_id: room(9, [("*", "*")])}},
        }  # fmt: skip

    async def _belongings(self) -> None:
        """What the owner has beside the room."""
        me, device = self.ids["owner"], f"{ACCOUNTS['owner']}0"
        signing = SigningDevice(me, device)
        user = f"{V3}/user/{me}"
        await self.ok("PUT", f"{V3}/profile/{me}/displayname", {"displayname": "Alice"})
        await self.ok("PUT", f"{V3}/devices/{device}", {"display_name": "phone"})
        await self.ok("POST", f"{V3}/keys/upload", {"device_keys": signing.keys})
        rule = {"pattern": PERSONAL, "actions": ["notify"]}
        await self.ok("PUT", f"{V3}/pushrules/global/content/mine", rule)
        kept = await self.ok("POST", f"{user}/filter", {"event_fields": [PERSONAL]})
        backup = {"algorithm": "m.test", "auth_data": {PERSONAL: 1}}
        version = (await self.ok("POST", f"{V3}/room_keys/version", backup))["version"]
        session = {
            "first_message_index": 0,
            "forwarded_count": 0,
            "is_verified": True,
            "session_data": {PERSONAL: 1},
        }
        room_id = self.values["room_id"]
        await self.ok("PUT", f"{V3}/room_keys/keys/{room_id}/s?version={version}", session)
        picture = await self.ok("POST", "/_matrix/media/v3/upload", encoded(16, 16))
        reserved = await self.ok("POST", "/_matrix/media/v1/create", {})
        synced = await self.ok("GET", f"{V3}/sync?timeout=0")
        asleep = SigningDevice(me, "ASLEEP")
        self.values |= {
            "user_id": me, "owner": me, "device_id": device, "secret": PERSONAL, "device_keys": signing.keys,
            "master_key": Identity(me, signing).body["master_key"], "kind": "content", "rule_id": "mine",
            "field": "displayname", "type": "org.test", "tag": "u.work", "filter_id": kept["filter_id"],
            "version": version, "session_id": "s", "backed_up": session, "server_name": NAME,
            "media_id": picture["content_uri"].rsplit("/", 1)[1], "file_name": "x.png",
            "reserved_id": reserved["content_uri"].rsplit("/", 1)[1], "receipt_type": "m.read", "stage": "m.none", "service_id": "bridge",
            "provider": "none", "since": synced["next_batch"],
            "dehydrated": {"device_id": "ASLEEP", "device_data": {"algorithm": "x", "device_pickle": PERSONAL},
                           "initial_device_display_name": "asleep", "device_keys": asleep.keys},
        }  # fmt: skip


def _registration(folder: Path) -> str:
    """Of an application service that has users of its own, and none of those of the world."""
    namespace = [{"regex": f"@_bridge_.*:{NAME}", "exclusive": True}]
    path = folder / "bridge.yaml"
    entry = {
        "id": "bridge", "url": None, "as_token": BRIDGE, "hs_token": "token-for-a-bridge", "sender_localpart": "_bridge_bot",
        "namespaces": {"users": namespace, "aliases": [], "rooms": []},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(entry), encoding="utf-8")
    return str(path)


def _filled(value: Any, values: dict[str, Any]) -> Any:
    """The value with `{name}` replaced, in keys too; a text that is nothing else becomes the value."""
    if isinstance(value, dict):
        return {_filled(key, values): _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    name = value[1:-1]
    return values[name] if value == f"{{{name}}}" and name in values else value.format(**values)
