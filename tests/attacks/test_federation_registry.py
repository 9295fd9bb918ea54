"""Every federation endpoint: documented, signed for or listed as open, and limited by a rate that exists."""

from __future__ import annotations

import pytest
from aiohttp import web

from lmserver.config_limits import DEFAULT_LIMITS
from lmserver.web.app import DISPATCHER
from lmserver.web.endpoint import Auth, Endpoint
from tests.evilpeer.arena import Arena
from tests.evilpeer.peer import UNSTABLE
from tests.kit.rooms import EVIL, HUB, ROOM

OPEN = {"/_matrix/key/v2/server", "/_matrix/key/v2/query/{server_name}", "/_matrix/key/v2/query",
        "/_matrix/federation/v1/version", "/_matrix/federation/v1/openid/userinfo", "/.well-known/matrix/server"}  # fmt: skip


def declared(arena: Arena, app: web.Application | None = None) -> list[Endpoint]:
    """Every endpoint of the federation listener, or another, through its dispatcher."""
    return list((app or arena.victim.server.federation_app)[DISPATCHER].endpoints)


async def test_every_endpoint_wants_a_signature_unless_it_is_listed(arena: Arena) -> None:
    entries = declared(arena)
    assert len(entries) > 30
    for entry in entries:
        assert entry.doc, f"{entry.path} is not documented"
        assert (entry.auth is Auth.NONE) == (entry.path in OPEN), entry.path
        if entry.path in OPEN:
            continue
        concrete = "/".join("x" if part.startswith("{") else part for part in entry.path.split("/"))
        body = None if entry.method == "GET" else b"{}"
        good = arena.evil.authorization(entry.method, concrete + "x", HUB, body)
        for headers in ([], ["Bearer x"], [good]):
            status, answer = await arena.evil.ask_raw(HUB, entry.method, concrete, body, *headers)
            assert (status, answer["errcode"]) == (401, "M_FORBIDDEN"), entry.path


async def test_every_endpoint_has_a_rate(arena: Arena) -> None:
    server = arena.victim.server
    for app in (server.federation_app, server.client_app):
        for entry in declared(arena, app):
            assert entry.rate in DEFAULT_LIMITS, entry.path


@pytest.mark.parametrize("config", [{"limits": {"federation_membership": {"per_second": 0.01, "burst": 2}}}])
async def test_i4_a_server_that_asks_too_often_is_told_when_to_come_back(arena: Arena) -> None:
    path = f"{UNSTABLE}/make_join/{ROOM}/@x:{EVIL}?ver=1"
    answers = [await arena.ask("GET", path) for _ in range(3)]
    assert [status for status, _ in answers][2] == 429
    assert answers[2][1]["errcode"] == "M_LIMIT_EXCEEDED"
    assert 0 < answers[2][1]["retry_after_ms"] <= 100_000
