"""Other servers through the admin API: what waits for them, blocks, evidence, held rooms, notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmserver.config import ConfigError, parse_config
from lmserver.federation_client.errors import Unreachable
from lmserver.storage import destinations, evidence, holds
from lmserver.storage.evidence import NewEvidence
from tests.admin_api.conftest import ALICE, OWN, ROOT, V1, AdminApi
from tests.federation.sites import sites
from tests.kit.client_api import NAME, V3
from tests.kit.postgres import Cluster
from tests.kit.waiting import eventually

DESTINATIONS = f"{V1}/federation/destinations"
NOTICE = f"{V1}/send_server_notice"

# (method, path, body, status, errcode)
TABLE: list[tuple[str, str, Any, int, str]] = [
    ("GET", f"{DESTINATIONS}?order_by=x", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{DESTINATIONS}/none.test", None, 404, "M_NOT_FOUND"),
    ("GET", f"{DESTINATIONS}/a%00b", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{DESTINATIONS}/none.test/rooms", None, 404, "M_NOT_FOUND"),
    ("POST", f"{DESTINATIONS}/none.test/reset_connection", None, 404, "M_NOT_FOUND"),
    ("PUT", f"{OWN}/blocked_servers/a%20b", {}, 400, "M_INVALID_PARAM"),
    ("PUT", f"{OWN}/blocked_servers/evil.test", {"reason": 5}, 400, "M_BAD_JSON"),
    ("DELETE", f"{OWN}/blocked_servers/good.test", None, 404, "M_NOT_FOUND"),
    ("GET", f"{OWN}/evidence?from=x", None, 400, "M_INVALID_PARAM"),
    ("GET", f"{OWN}/evidence?room_id=%00", None, 400, "M_INVALID_PARAM"),
    ("POST", f"{OWN}/held_rooms/!none:{NAME}/release", None, 404, "M_NOT_FOUND"),
    ("POST", f"{OWN}/held_rooms/x/release", None, 400, "M_INVALID_PARAM"),
    ("POST", NOTICE, {}, 400, "M_MISSING_PARAM"),
    ("POST", NOTICE, {"user_id": ALICE, "content": {}}, 400, "M_BAD_JSON"),
    ("POST", NOTICE, {"user_id": "@a:elsewhere.test", "content": {"body": "x"}}, 400, "M_INVALID_PARAM"),
    ("POST", NOTICE, {"user_id": f"@none:{NAME}", "content": {"body": "x"}}, 404, "M_NOT_FOUND"),
    ("POST", NOTICE, {"user_id": ALICE, "type": "m.x", "content": {"body": "x"}}, 400, "M_INVALID_PARAM"),
]


async def test_wrong_requests_are_told_what_is_wrong(admin: AdminApi) -> None:
    for method, path, body, status, errcode in TABLE:
        found, answer = await admin.call(method, path, body)
        assert (found, answer.get("errcode")) == (status, errcode), (method, path, body, answer)


async def test_destinations_are_listed_with_what_waits(admin: AdminApi) -> None:
    db = admin.server.db
    for name, failed in (("a.test", 0), ("b.test", 5000), ("c.test", 9000)):
        lease = await destinations.take_lease(db, name, "us", 1, 2)
        assert lease is not None
        if failed:
            await destinations.failed(db, name, lease.fence, 3, 2**45, failed, "status 500")
    first = await admin.ok("GET", f"{DESTINATIONS}?limit=2")
    assert (first["total"], first["next_token"]) == (3, "2")
    assert [d["destination"] for d in first["destinations"]] == ["a.test", "b.test"]
    failing = await admin.ok("GET", f"{DESTINATIONS}?failing=true&order_by=failure_ts&dir=b")
    assert [d["destination"] for d in failing["destinations"]] == ["c.test", "b.test"]
    one = await admin.ok("GET", f"{DESTINATIONS}/b.test")
    assert (one["failure_ts"], one["org.lmserver.last_failure"]) == (5000, "status 500")
    assert one["org.lmserver.backlog"] == {"rooms": 0, "events": 0, "messages": 0, "edus": 0}
    await admin.ok("POST", f"{DESTINATIONS}/b.test/reset_connection")
    assert (await admin.ok("GET", f"{DESTINATIONS}/b.test"))["org.lmserver.retry_at"] == 0
    assert (await admin.ok("GET", f"{DESTINATIONS}?destination=_"))["total"] == 0


async def test_evidence_and_held_rooms(admin: AdminApi) -> None:
    db = admin.server.db
    _, room = await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.alice)
    for n, pdu in enumerate((b'{"a":1}', b"no json")):
        await evidence.add(db, room["room_id"], NewEvidence(f"${n}", "fork", "why", pdu), n)
    found = (await admin.ok("GET", f"{OWN}/evidence"))["evidence"]
    assert [(case["event_id"], case["event"], case["hub"]) for case in found] == [
        ("$1", None, NAME),
        ("$0", {"a": 1}, NAME),
    ]
    assert (await admin.ok("GET", f"{OWN}/evidence?limit=1"))["next_token"] == "1"
    assert (await admin.ok("GET", f"{OWN}/evidence?room_id=!other:{NAME}"))["evidence"] == []
    await holds.hold(db, room["room_id"], holds.RESTORED)
    assert (await admin.ok("GET", f"{OWN}/held_rooms"))["rooms"] == [
        {"room_id": room["room_id"], "hold": "restored"}
    ]
    await admin.ok("POST", f"{OWN}/held_rooms/{room['room_id']}/release")
    assert (await admin.ok("GET", f"{OWN}/held_rooms"))["rooms"] == []


async def test_a_notice_reaches_its_user(admin: AdminApi) -> None:
    content = {"msgtype": "m.text", "body": "Down at noon", "format": "x", "formatted_body": "<b>x</b>"}
    sent = await admin.ok("POST", NOTICE, {"user_id": ALICE, "content": content})
    assert sent["event_id"].startswith("$")
    _, sync = await admin.clients.call("GET", f"{V3}/sync", None, admin.alice)
    assert len(sync["rooms"]["invite"]) == 1


async def test_blocked_servers_are_kept_and_told(admin: AdminApi, tmp_path: Path) -> None:
    blocked = f"{OWN}/blocked_servers"
    for reason in ("spam", "more spam"):
        await admin.ok("PUT", f"{blocked}/evil.test", {"reason": reason})
    [entry] = (await admin.ok("GET", blocked))["blocked"]
    assert (entry["server"], entry["reason"], entry["blocked_by"]) == ("evil.test", "more spam", ROOT)
    await admin.ok("DELETE", f"{blocked}/evil.test")
    assert await admin.ok("GET", blocked) == {"configured": [], "blocked": []}
    config = {"server_name": NAME, "federation": {"blocked_servers": ["evil.test"]}}
    assert parse_config(config, tmp_path).federation.blocked_servers == {"evil.test"}
    with pytest.raises(ConfigError, match="blocked_servers"):
        parse_config({**config, "federation": {"blocked_servers": ["a b"]}}, tmp_path)


async def test_nothing_passes_between_us_and_a_blocked_server_until_it_is_unblocked(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Neither way, but for keys; what waits meanwhile is sent afterwards."""
    async with sites(cluster, tmp_path, "hub.test", "participant.test") as (hub, participant):
        alice, bob = await hub.user("alice"), await participant.user("bob")
        room = await alice.create(preset="public_chat")
        await bob.act("join", room)
        await hub.server.blocked.block("participant.test", "root", "why not")
        await alice.say(room, "unheard", "t1")
        with pytest.raises(Unreachable):
            await hub.server.client.request("GET", "participant.test", "/_matrix/federation/v1/version")
        keys = await hub.server.client.request("GET", "participant.test", "/_matrix/key/v2/server")
        assert keys.status == 200
        refused = await participant.server.client.request(
            "GET", "hub.test", "/_matrix/federation/v1/query/profile", query={"user_id": alice.user_id}
        )
        assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
        assert await hub.server.blocked.unblock("participant.test")
        await hub.server.sender.retry_now("participant.test")

        async def heard() -> bool:
            return "unheard" in str((await bob.ok("GET", f"/rooms/{room}/messages?dir=b"))["chunk"])

        await eventually(heard)
