"""Relays for calls, and OpenID tokens from their making to the service that asks."""

from __future__ import annotations

import base64
import hmac
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from yarl import URL

from lmserver.accounts.openid import LIFETIME_MS, OpenIdTokens
from lmserver.config import ConfigError, parse_config
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.federation.sites import Person, Site
from tests.kit.rooms import HUB, now

URIS = ["turn:turn.hub.test?transport=udp", "turns:turn.hub.test"]


async def one_site(db: Database, tmp_path: Path, **config: Any) -> tuple[Site, Person]:
    site = Site(db, Network(), HUB, tmp_path, **config)
    await site.start()
    return site, await site.user("alice")


async def test_credentials_of_a_relay_are_made_for_the_user(db: Database, tmp_path: Path) -> None:
    site, alice = await one_site(db, tmp_path, turn={"uris": URIS, "shared_secret": "s", "ttl_seconds": 600})
    try:
        answer = await alice.ok("GET", "/voip/turnServer")
        assert (answer["uris"], answer["ttl"]) == (URIS, 600)
        until, _, user = answer["username"].partition(":")
        assert (user, int(until) > 1_600_000_000) == (alice.user_id, True)
        made = base64.b64encode(hmac.digest(b"s", answer["username"].encode(), "sha1")).decode()
        assert answer["password"] == made
    finally:
        await site.stop()


async def test_openid_tokens(db: Database, tmp_path: Path) -> None:
    site, alice = await one_site(db, tmp_path)
    try:
        assert await alice.ok("GET", "/voip/turnServer") == {}
        path = f"/user/{quote(alice.user_id, safe='')}/openid/request_token"
        answer = await alice.ok("POST", path, {})
        assert {k: v for k, v in answer.items() if k != "access_token"} == {
            "token_type": "Bearer", "matrix_server_name": HUB, "expires_in": 3600,
        }  # fmt: skip
        assert (await alice.call("POST", f"/user/%40bob%3A{HUB}/openid/request_token", {}))[0] == 403
        token = answer["access_token"]
        # It opens nothing here.
        stranger = Person(site, alice.user_id, token)
        assert (await stranger.call("GET", "/account/whoami"))[0] == 401
        assert token not in str(await db.fetch("SELECT * FROM openid_tokens"))
        # A service asks whose it is, on the federation listener and without a signature.
        assert await whose(site, token) == (200, {"sub": alice.user_id})
        for wrong in (token[:-1], token + "x", token.swapcase(), "x" * 300, "\0"):
            assert (await whose(site, wrong))[0] == 401, wrong
        assert (await whose(site, ""))[1]["errcode"] == "M_MISSING_TOKEN"
        clock = [now() + LIFETIME_MS + 1]
        tokens = OpenIdTokens(db, lambda: clock[0])
        assert await tokens.user(token) is None
        newer = await tokens.issue(alice.user_id)
        assert await db.fetchval("SELECT count(*) FROM openid_tokens") == 1
        await db.execute("UPDATE accounts SET deactivated = true")
        assert await tokens.user(newer) is None
    finally:
        await site.stop()


async def whose(site: Site, token: str) -> tuple[int, Any]:
    url = URL(f"http://127.0.0.1:{site.victim.port}/_matrix/federation/v1/openid/userinfo")
    async with ClientSession() as session, session.get(url.with_query(access_token=token)) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ([], "expected a section"),
        ({"uris": [], "shared_secret": "s"}, "turn.uris"),
        ({"uris": ["https://x"], "shared_secret": "s"}, "turn.uris"),
        ({"uris": URIS}, "set shared_secret"),
        ({"uris": URIS, "username": "u"}, "set shared_secret"),
        ({"uris": URIS, "shared_secret": "s", "username": "u", "password": "p"}, "set shared_secret"),
        ({"uris": URIS, "shared_secret": 5}, "turn.shared_secret"),
        ({"uris": URIS, "shared_secret": "s", "ttl_seconds": 0}, "turn.ttl_seconds"),
        ({"uris": URIS, "shared_secret": "s", "ttl": 5}, "turn.ttl: unknown key"),
    ],
)
def test_what_is_wrong_with_a_turn_section_is_said(turn: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config({"server_name": HUB, "turn": turn}, tmp_path)
