"""An OpenID Connect provider as we ask it: discovery, the code for tokens, the ID token proven.

What the provider says counts only when its ID token verifies: signed with a key of its JWKS by an
asymmetric algorithm, issued by it, for us, now, in answer to our own request (OpenID Connect Core
1.0 §3.1.3.7).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import jinja2
import orjson
import structlog
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from jinja2.sandbox import SandboxedEnvironment
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from lmserver.config_oidc import OidcProvider
from lmserver.federation_client.errors import BadResponse, FederationError, OidcError
from lmserver.federation_client.web_client import WebAnswer, WebClient

log = structlog.get_logger(__name__)

SECONDS: Final = 10.0
MAX_ANSWER: Final = 256 * 1024
KEEP_SECONDS: Final = 3600.0
AGAIN_SECONDS: Final = 60.0
"""How soon keys are fetched again for a token that none of the known ones has signed."""
LEEWAY: Final = 60
MAX_KEYS: Final = 50
MAX_SUBJECT: Final = 255
ALGORITHMS: Final = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip
DISCOVERY: Final = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class _Metadata:
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    posts_secret: bool


@dataclass(slots=True)
class _Kept:
    value: Any
    at: float


class OidcClient:
    """We, as a client of one provider. `redirect_uri` is where it sends browsers back to."""

    def __init__(
        self,
        settings: OidcProvider,
        web: WebClient,
        redirect_uri: str,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._web = web
        self._redirect_uri = redirect_uri
        self._wall = wall
        self._metadata: _Kept | None = None
        self._keys: _Kept | None = None
        self._templates = SandboxedEnvironment(autoescape=False)

    def render(self, template: str, claims: Mapping[str, Any]) -> str:
        """A template of the operator's, for a user with these claims; empty where it does not fit them."""
        try:
            return self._templates.from_string(template).render(user=claims).strip()
        except jinja2.TemplateError as error:
            log.warning("sso_template", reason=str(error))
            return ""

    async def authorization_url(self, state: str, nonce: str, verifier: str) -> str:
        """Where the browser is sent to. Raises OidcError."""
        endpoint = (await self._discover()).authorization_endpoint
        challenge: str = create_s256_code_challenge(verifier)  # type: ignore[no-untyped-call]  # its stubs have none
        query = urlencode({
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        })  # fmt: skip
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{query}"

    async def claims(self, code: str, nonce: str, verifier: str) -> dict[str, Any]:
        """Who has logged in: the verified claims of the ID token, with the user info's. Raises OidcError."""
        metadata = await self._discover()
        tokens = await self._exchange(metadata, code, verifier)
        id_token, access_token = tokens.get("id_token"), tokens.get("access_token")
        if not isinstance(id_token, str):
            raise OidcError("the provider gave no ID token")
        claims = await self._verify(metadata, id_token, nonce)
        if metadata.userinfo_endpoint is not None and isinstance(access_token, str):
            claims = {**await self._userinfo(metadata.userinfo_endpoint, access_token, claims), **claims}
        return claims

    # -- asking ---------------------------------------------------------------------------------

    async def _discover(self) -> _Metadata:
        if self._metadata is None or self._wall() - self._metadata.at > KEEP_SECONDS:
            found = await self._json("GET", self.settings.issuer.rstrip("/") + DISCOVERY)
            if found.get("issuer") != self.settings.issuer:
                raise OidcError("the provider calls itself by another issuer")
            self._metadata = _Kept(_metadata(found, self.settings.issuer), self._wall())
        kept: _Metadata = self._metadata.value
        return kept

    async def _exchange(self, metadata: _Metadata, code: str, verifier: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
            "client_id": self.settings.client_id,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        secret = self.settings.client_secret
        if secret is not None and metadata.posts_secret:
            form["client_secret"] = secret
        elif secret is not None:  # RFC 6749 §2.3.1
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return await self._json("POST", metadata.token_endpoint, headers, urlencode(form).encode())

    async def _userinfo(self, url: str, token: str, claims: Mapping[str, Any]) -> dict[str, Any]:
        found = await self._json("GET", url, {"Authorization": f"Bearer {token}"})
        if found.get("sub") != claims["sub"]:
            raise OidcError("the user info is somebody else's")
        return found

    async def _json(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> dict[str, Any]:
        try:
            answer = await self._web.request(
                method,
                url,
                headers={"Accept": "application/json", **(headers or {})},
                body=body,
                seconds=SECONDS,
                max_answer=MAX_ANSWER,
            )
            return _object(answer)
        except FederationError as error:
            raise OidcError(f"the provider gave no usable answer: {error}") from error

    # -- proving --------------------------------------------------------------------------------

    async def _verify(self, metadata: _Metadata, id_token: str, nonce: str) -> dict[str, Any]:
        try:
            claims = jwt.decode(
                id_token, await self._key_set(metadata, id_token), algorithms=ALGORITHMS
            ).claims
            jwt.JWTClaimsRegistry(
                now=lambda: int(self._wall()),
                leeway=LEEWAY,
                iss={"essential": True, "value": self.settings.issuer},
                aud={"essential": True, "value": self.settings.client_id},
                exp={"essential": True},
                iat={"essential": True},
                sub={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OidcError(f"the ID token does not verify: {type(error).__name__}") from error
        subject, audience = claims["sub"], claims["aud"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or "\0" in subject:
            raise OidcError("the ID token has no usable subject")
        several = isinstance(audience, list) and len(audience) > 1
        if (several or "azp" in claims) and claims.get("azp") != self.settings.client_id:
            raise OidcError("the ID token is for somebody else")
        return dict(claims)

    async def _key_set(self, metadata: _Metadata, id_token: str) -> KeySet:
        """The provider's keys, fetched again when none of them can have signed the token."""
        age = None if self._keys is None else self._wall() - self._keys.at
        if self._keys is None or age is None or age > KEEP_SECONDS:
            return await self._fetch_keys(metadata)
        kept: KeySet = self._keys.value
        if age > AGAIN_SECONDS and not _has_key(kept, id_token):
            return await self._fetch_keys(metadata)
        return kept

    async def _fetch_keys(self, metadata: _Metadata) -> KeySet:
        found = await self._json("GET", metadata.jwks_uri)
        keys = found.get("keys")
        if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
            raise OidcError("the provider has no usable keys")
        usable = [k for k in keys if isinstance(k, dict) and k.get("kty") in ("RSA", "EC", "OKP")]
        try:
            made = KeySet.import_key_set({"keys": usable})
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OidcError("the provider has no usable keys") from error
        self._keys = _Kept(made, self._wall())
        return made


def _has_key(keys: KeySet, id_token: str) -> bool:
    try:
        header = orjson.loads(base64.urlsafe_b64decode(id_token.split(".", 1)[0] + "==="))
        return any(key.kid == header.get("kid") for key in keys.keys)
    except (ValueError, AttributeError):
        return True


def _object(answer: WebAnswer) -> dict[str, Any]:
    if answer.status != 200:
        raise BadResponse("unexpected status", str(answer.status))
    try:
        value = orjson.loads(answer.body)
    except orjson.JSONDecodeError as error:
        raise BadResponse("not JSON") from error
    if not isinstance(value, dict):
        raise BadResponse("not a JSON object")
    return value


def _metadata(found: Mapping[str, Any], issuer: str) -> _Metadata:
    """Endpoints over TLS, unless the issuer itself is without."""

    def url(name: str, *, needed: bool = True) -> str | None:
        value = found.get(name)
        if value is None and not needed:
            return None
        scheme = urlsplit(value).scheme if isinstance(value, str) else ""
        if not isinstance(value, str) or scheme not in ("https", urlsplit(issuer).scheme):
            raise OidcError(f"the provider has no usable {name}")
        return value

    methods = found.get("token_endpoint_auth_methods_supported")
    posts = (
        isinstance(methods, list) and "client_secret_basic" not in methods and "client_secret_post" in methods
    )
    return _Metadata(
        url("authorization_endpoint") or "",
        url("token_endpoint") or "",
        url("jwks_uri") or "",
        url("userinfo_endpoint", needed=False),
        posts,
    )
