"""Logging in at an OpenID Connect provider, and what a forged, late or stolen answer of it gets."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from joserfc.jwk import RSAKey
from yarl import URL

from lmserver.accounts.sso import SESSION_MS
from lmserver.config import ConfigError, parse_config
from lmserver.storage.database import Database
from tests.kit.client_api import NAME, PASSWORD, V3, Api, login, serve
from tests.kit.clock import Clock
from tests.kit.oidc_provider import RSA, Provider, ec_key, secret_key

CLIENT = "https://app.example.org/login?x=1#room"
CALLBACK = "/_lmserver/sso/callback"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    await made.start()
    yield made
    await made.close()


def settings(provider: Provider, **more: Any) -> dict[str, Any]:
    return {
        "client": {"public_url": "https://hub.test"},
        "federation": {"allowed_networks": ["127.0.0.0/8"]},
        "oidc_providers": [provider.config(**more)],
        "sso": {"trusted_clients": ["https://trusted.example.org/"]},
    }


@pytest.fixture
async def api(db: Database, tmp_path: Path, provider: Provider, clock: Clock) -> AsyncIterator[Api]:
    made = await serve(db, tmp_path, settings(provider), clock=clock, mode="closed")
    yield made
    await made.close()


async def get(api: Api, path: str, cookie: str = "") -> tuple[int, str, Any]:
    headers = {"Cookie": cookie} if cookie else {}
    async with api.http.request(
        "GET", URL(path, encoded=True), headers=headers, allow_redirects=False
    ) as response:
        return response.status, await response.text(), response.headers.copy()


async def begin(api: Api, url: str = CLIENT, path: str = f"{V3}/login/sso/redirect") -> tuple[str, str]:
    """Where the browser is sent, and its cookie."""
    status, _, headers = await get(api, f"{path}?redirectUrl={quote(url, safe='')}")
    assert status == 302
    assert re.search(r"; HttpOnly; SameSite=Lax; Secure$", headers["Set-Cookie"])
    return headers["Location"], headers["Set-Cookie"].split(";")[0]


async def come_back(api: Api, answer: dict[str, str], cookie: str) -> tuple[int, str, Any]:
    return await get(api, f"{CALLBACK}?code={answer['code']}&state={answer['state']}", cookie)


def token_of(page: str) -> str:
    [link] = re.findall(r"class=go href='([^']*)'", page)
    return parse_qs(urlsplit(unescape(link)).query)["loginToken"][0]


async def log_in(api: Api, provider: Provider, **claims: Any) -> dict[str, Any]:
    url, cookie = await begin(api)
    status, page, _ = await come_back(api, provider.authorize(url, **claims), cookie)
    assert status == 200, page
    status, answer = await api.call("POST", f"{V3}/login", {"type": "m.login.token", "token": token_of(page)})
    assert status == 200, answer
    return dict(answer)


async def test_a_new_user_comes_back_as_the_same_user(api: Api, provider: Provider) -> None:
    flows = (await api.call("GET", f"{V3}/login"))[1]["flows"]
    assert {"type": "m.login.sso", "identity_providers": [{"id": "corp", "name": "The Company"}]} in flows
    url, cookie = await begin(api)
    status, page, headers = await come_back(api, provider.authorize(url), cookie)
    assert status == 200
    assert "app.example.org" in page
    assert f"@alice:{NAME}" in page
    [link] = re.findall(r"class=go href='([^']*)'", page)
    assert unescape(link).startswith("https://app.example.org/login?x=1&loginToken=")
    assert link.endswith("#room")
    assert headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    body = {"type": "m.login.token", "token": token_of(page)}
    first = (await api.call("POST", f"{V3}/login", body))[1]
    assert (first["user_id"], (await api.call("POST", f"{V3}/login", body))[0]) == (f"@alice:{NAME}", 403)
    profile = (await api.call("GET", f"{V3}/profile/@alice:{NAME}"))[1]
    assert profile == {"displayname": "Alice A."}
    await log_in(api, provider, sub="2", preferred_username="nameless", name="")
    assert (await api.call("GET", f"{V3}/profile/@nameless:{NAME}"))[1] == {"displayname": "nameless"}
    again = await log_in(api, provider, preferred_username="somebody-else")
    assert again["user_id"] == first["user_id"]
    assert (await api.call("POST", f"{V3}/login", login("alice", "")))[0] == 403


async def test_trusted_clients_are_not_asked(api: Api, provider: Provider) -> None:
    url, cookie = await begin(api, "https://trusted.example.org/app")
    status, _, headers = await come_back(api, provider.authorize(url), cookie)
    assert status == 302
    assert headers["Location"].startswith("https://trusted.example.org/app?loginToken=lml_")
    url, cookie = await begin(api, "https://trusted.example.org.evil.test/app")
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 200


FORGED: list[Any] = [
    {"claims": {"nonce": "another"}},
    {"claims": {"nonce": None}},
    {"claims": {"iss": "https://evil.test"}},
    {"claims": {"aud": "another-client"}},
    {"claims": {"aud": ["lmserver", "another"]}},
    {"claims": {"azp": "another"}},
    {"claims": {"exp": int(time.time()) - 3600}},
    {"claims": {"exp": None}},
    {"claims": {"exp": "tomorrow"}},
    {"claims": {"sub": None}},
    {"claims": {"sub": 5}},
    {"claims": {"sub": "x" * 300}},
    {"key": RSAKey.generate_key(2048, {"kid": "one"}), "algorithm": "RS256"},
    {"key": secret_key(), "algorithm": "HS256"},
    {"key": None, "algorithm": "none"},
]


async def test_c3_a_forged_or_old_id_token_logs_nobody_in(api: Api, provider: Provider, db: Database) -> None:
    for forged in FORGED:
        provider.key, provider.algorithm = RSA, "RS256"
        url, cookie = await begin(api)
        answer = provider.authorize(url, **forged.get("claims", {}))
        if "algorithm" in forged:
            provider.use_key(forged["key"], forged["algorithm"], publish=False)
        status, page, _ = await come_back(api, answer, cookie)
        assert (status, "did not confirm" in page) == (403, True)
        assert await db.fetchval("SELECT count(*) FROM accounts") == 0


async def test_keys_may_be_elliptic_and_are_fetched_again_when_they_change(
    api: Api, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.use_key(ec_key(), "ES256")
    await log_in(api, provider)
    fetched = provider.key_fetches
    await log_in(api, provider)
    assert provider.key_fetches == fetched
    provider.use_key(RSAKey.generate_key(2048, {"kid": "two"}), "RS256")
    url, cookie = await begin(api)
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 403  # asked a moment ago
    monkeypatch.setattr("lmserver.federation_client.oidc.AGAIN_SECONDS", 0.0)
    await log_in(api, provider)


async def test_an_answer_is_good_once_in_its_browser_and_for_a_while(
    api: Api, provider: Provider, clock: Clock
) -> None:
    url, cookie = await begin(api)
    answer = provider.authorize(url)
    assert (await come_back(api, answer, cookie))[0] == 200
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 403  # replayed
    url, cookie = await begin(api)
    other = (await begin(api))[1]
    assert (await come_back(api, provider.authorize(url), other))[0] == 403
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 403  # and not again
    url, cookie = await begin(api)
    assert (await come_back(api, provider.authorize(url), ""))[0] == 403
    url, cookie = await begin(api)
    clock.pass_(SESSION_MS + 1000)
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 403
    for query in ("", "?error=access_denied", "?state=x", "?code=x", f"?code=x&state={'y' * 3000}"):
        status, page, _ = await get(api, CALLBACK + query)
        assert status in (400, 403)
        assert "access_denied" not in page


async def test_logins_on_their_way_are_few(
    api: Api, db: Database, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserver.accounts.sso.SESSIONS_PER_ADDRESS", 3)
    begun = [await begin(api) for _ in range(5)]
    assert await db.fetchval("SELECT count(*) FROM sso_sessions") == 3
    for number, wanted in ((0, 403), (4, 200)):
        url, cookie = begun[number]
        assert (await come_back(api, provider.authorize(url), cookie))[0] == wanted


async def test_of_several_providers_people_choose_one(
    db: Database, tmp_path: Path, provider: Provider
) -> None:
    entries = [provider.config(), provider.config(id="other", name="<Others>")]
    api = await serve(db, tmp_path, {**settings(provider), "oidc_providers": entries}, mode="closed")
    _, page, _ = await get(api, f"{V3}/login/sso/redirect?redirectUrl={quote(CLIENT, safe='')}")
    assert "&lt;Others&gt;" in page
    links = [unescape(link) for link in re.findall(r"class=go href='https://hub.test([^']*)'", page)]
    assert [link.partition("?")[0].rpartition("/")[2] for link in links] == ["corp", "other"]
    status, _, headers = await get(api, links[1])
    assert (status, headers["Location"].startswith(provider.issuer)) == (302, True)
    await api.close()


ADDRESSES: list[Any] = [
    "",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "data:text/html,x",
    "app",
    "https://a b/",
    "https://[x/",
    "file:///etc",
    "https://" + "x" * 3000,
]


async def test_c15_addresses_that_no_client_has(api: Api) -> None:
    for url in ADDRESSES:
        status, answer = await api.call("GET", f"{V3}/login/sso/redirect?redirectUrl={quote(url, safe='')}")
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM" if url else "M_MISSING_PARAM")


async def test_c15_what_pages_show_is_escaped(api: Api, provider: Provider) -> None:
    evil = "\"'><script>alert(1)</script>"
    for path in (
        f"{V3}/auth/m.login.sso/fallback/web?session={quote(evil)}",
        f"/_lmserver/sso/confirm?session={quote(evil)}",
        f"{CALLBACK}?error={quote(evil)}&error_description={quote(evil)}",
    ):
        _, page, headers = await get(api, path)
        assert "<script>alert" not in page
        assert headers["X-Frame-Options"] == "DENY"
    url, cookie = await begin(api, "https://app.test/'onmouseover='alert(1)'<b>")
    status, page, _ = await come_back(api, provider.authorize(url), cookie)
    assert (status, "<b>" in page, "'onmouseover" in page) == (200, False, False)


async def test_unknown_providers_and_stages(api: Api) -> None:
    assert (await api.call("GET", f"{V3}/login/sso/redirect/nope?redirectUrl=x:y"))[1][
        "errcode"
    ] == "M_NOT_FOUND"
    assert (await api.call("GET", f"{V3}/auth/m.login.other/fallback/web?session=x"))[0] == 404
    assert (await api.call("GET", f"{V3}/auth/m.login.sso/fallback/web"))[1]["errcode"] == "M_MISSING_PARAM"


NAMES: list[Any] = ["admin", "_ghost", "a b", "", "@eve:hub.test", None]


async def test_names_that_cannot_be_had_make_no_account(api: Api, provider: Provider, db: Database) -> None:
    for name in NAMES:
        url, cookie = await begin(api)
        status, page, _ = await come_back(api, provider.authorize(url, preferred_username=name), cookie)
        assert (status, "no account for you" in page) == (403, True)
        assert await db.fetchval("SELECT count(*) FROM external_ids") == 0


async def test_an_account_that_is_there_is_nobodys_unless_the_operator_says_so(
    db: Database, tmp_path: Path, api: Api, provider: Provider
) -> None:
    await api.server.accounts.register("alice", PASSWORD)
    url, cookie = await begin(api)
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 403
    other = await serve(db, tmp_path, settings(provider, allow_existing_users=True), mode="closed")
    assert (await log_in(other, provider))["user_id"] == f"@alice:{NAME}"
    await other.close()


async def test_user_info_is_taken_only_of_the_same_user(api: Api, provider: Provider) -> None:
    provider.userinfo = {"preferred_username": "bob"}
    assert (await log_in(api, provider, preferred_username=None))["user_id"] == f"@bob:{NAME}"
    provider.userinfo = {"sub": "another"}
    url, cookie = await begin(api)
    assert (await come_back(api, provider.authorize(url), cookie))[0] == 403


async def test_c3_a_deactivated_user_does_not_come_in_through_the_provider(
    api: Api, provider: Provider
) -> None:
    user_id = (await log_in(api, provider))["user_id"]
    await api.server.accounts.deactivate(user_id)
    url, cookie = await begin(api)
    _, page, _ = await come_back(api, provider.authorize(url), cookie)
    status, answer = await api.call("POST", f"{V3}/login", {"type": "m.login.token", "token": token_of(page)})
    assert (status, answer["errcode"]) == (403, "M_USER_DEACTIVATED")


async def test_who_has_no_password_confirms_at_the_provider(
    api: Api, provider: Provider, db: Database
) -> None:
    token = (await log_in(api, provider))["access_token"]
    body = {"devices": ["X"]}
    status, answer = await api.call("POST", f"{V3}/delete_devices", body, token)
    assert (status, answer["flows"]) == (401, [{"stages": ["m.login.sso"]}])
    session = answer["session"]
    auth = {"session": session, "type": "m.login.sso"}
    assert (await api.call("POST", f"{V3}/delete_devices", {**body, "auth": auth}, token))[0] == 401
    _, page, _ = await get(api, f"{V3}/auth/m.login.sso/fallback/web?session={session}")
    [link] = re.findall(r"class=go href='https://hub.test([^']*)'", page)
    for subject, wanted in (("somebody-else", 403), ("s-1", 200)):
        status, _, headers = await get(api, unescape(link))
        assert status == 302
        answer = provider.authorize(headers["Location"], subject)
        status, page, _ = await come_back(api, answer, headers["Set-Cookie"].split(";")[0])
        assert (status, "onAuthDone" in page) == (wanted, wanted == 200)
        status, _ = await api.call(
            "POST", f"{V3}/delete_devices", {**body, "auth": {"session": session}}, token
        )
        assert status == (401 if wanted == 403 else 200)
    assert session not in str(await db.fetch("SELECT * FROM sso_sessions"))
    assert (await get(api, unescape(link)))[0] == 404


def test_what_is_wrong_with_a_provider_is_named(tmp_path: Path) -> None:
    right = {"id": "a", "issuer": "https://x.test", "client_id": "c"}
    base = {"server_name": NAME, "client": {"public_url": "https://hub.test"}}
    assert parse_config({**base, "oidc_providers": [right]}, tmp_path).oidc_providers[0].name == "a"
    for wrong in (
        5, [5], [right, right], [{**right, "id": "A B"}], [{**right, "issuer": "http://x.test"}], [{**right, "color": 1}],
        [{**right, "scopes": ["profile"]}], [{**right, "client_secret": 5}], [{**right, "client_secret_path": "/none"}],
        [{**right, "issuer": "https://x.test?y"}], [{**right, "allow_existing_users": 1}], [right] * 21,
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="oidc_providers"):
            parse_config({**base, "oidc_providers": wrong}, tmp_path)
    with pytest.raises(ConfigError, match="public_url"):
        parse_config({"server_name": NAME, "oidc_providers": [right]}, tmp_path)
    with pytest.raises(ConfigError, match="trusted_clients"):
        parse_config({**base, "sso": {"trusted_clients": ["https://app.test"]}}, tmp_path)
