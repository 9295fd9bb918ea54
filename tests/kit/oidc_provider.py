"""An OpenID Connect provider that tells the truth, or what a test wants instead."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web
from aiohttp.test_utils import TestServer
from authlib.common.encoding import urlsafe_b64encode
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

CLIENT_ID = "lmserver"
SECRET = "a secret of the client"
RSA = RSAKey.generate_key(2048, {"kid": "one"})


class Provider:
    """`claims` change what the next ID token says, `key` and `algorithm` how it is signed."""

    def __init__(self) -> None:
        self.key: Any = RSA
        self.published: list[Any] = [self.key]
        self.algorithm = "RS256"
        self.claims: dict[str, Any] = {}
        self.userinfo: dict[str, Any] = {}
        self.requests: list[dict[str, str]] = []
        self.key_fetches = 0
        self._codes: dict[str, dict[str, str]] = {}
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/keys", self._jwks)
        app.router.add_post("/token", self._token)
        app.router.add_get("/userinfo", self._userinfo)
        self._server = TestServer(app)

    async def start(self) -> None:
        await self._server.start_server()

    async def close(self) -> None:
        await self._server.close()

    @property
    def issuer(self) -> str:
        return str(self._server.make_url("")).rstrip("/")

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "id": "corp",
            "name": "The Company",
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            **more,
        }

    def use_key(self, key: Any, algorithm: str, *, publish: bool = True) -> None:
        self.key, self.algorithm = key, algorithm
        if publish:
            self.published = [key]

    def authorize(self, url: str, subject: str = "s-1", **claims: Any) -> dict[str, str]:
        """What the browser brings back after somebody has logged in: code and state."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert url.startswith(f"{self.issuer}/authorize?")
        assert (asked["response_type"], asked["client_id"], asked["code_challenge_method"]) == (
            "code",
            CLIENT_ID,
            "S256",
        )
        self.claims = {"sub": subject, "preferred_username": "Alice", "name": "Alice A.", **claims}
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        return {"code": code, "state": asked["state"]}

    async def _discovery(self, _: web.Request) -> web.Response:
        issuer = self.issuer
        return web.json_response({
            "issuer": issuer, "authorization_endpoint": f"{issuer}/authorize", "token_endpoint": f"{issuer}/token",
            "jwks_uri": f"{issuer}/keys", "userinfo_endpoint": f"{issuer}/userinfo",
        })  # fmt: skip

    async def _jwks(self, _: web.Request) -> web.Response:
        self.key_fetches += 1
        return web.json_response({"keys": [key.as_dict(private=False) for key in self.published]})

    async def _token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        asked = self._codes.pop(form["code"], None)
        challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).decode()
        right = request.headers.get("Authorization", "").startswith("Basic ")
        if (
            asked is None
            or not right
            or challenge != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return web.json_response(
            {"access_token": "at", "token_type": "Bearer", "id_token": self._signed(claims)}
        )

    def _signed(self, claims: dict[str, Any]) -> str:
        if self.algorithm == "none":
            parts = (b'{"alg":"none"}', __import__("json").dumps(claims).encode(), b"")
            return ".".join(urlsafe_b64encode(part).decode() for part in parts)
        return jwt.encode(
            {"alg": self.algorithm, "kid": self.key.kid}, claims, self.key, algorithms=[self.algorithm]
        )

    async def _userinfo(self, _: web.Request) -> web.Response:
        return web.json_response({"sub": self.claims.get("sub"), **self.userinfo})


def ec_key() -> ECKey:
    return ECKey.generate_key("P-256", {"kid": "ec"})


def secret_key() -> OctKey:
    return OctKey.import_key(SECRET, {"kid": "one"})
