"""Logging in at a provider of the operator's choice (CS API §SSO client login/authentication).

A login begins with a redirect and ends with the provider's answer to it: in the same browser, once,
within SESSION_MS. Whoever the provider says has come is the same local user ever after.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

import structlog

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.errors import AccountError
from lmserver.accounts.interactive_auth import InteractiveAuth, session_key
from lmserver.accounts.registration import Registration
from lmserver.config_oidc import OidcProvider
from lmserver.federation_client.errors import OidcError
from lmserver.storage import sso
from lmserver.storage.database import Connection, Database, UniqueViolation
from lmserver.storage.sso import SsoSession

log = structlog.get_logger(__name__)

STAGE: Final = "m.login.sso"
SESSION_MS: Final = 15 * 60_000
SESSIONS_PER_ADDRESS: Final = 1000
"""A company behind one address logs in on Monday morning."""
MAX_STATE: Final = 200
MAX_CODE: Final = 4096
MAX_NAME: Final = 256


class SsoFailed(Exception):
    """The login came to nothing; the text may be shown to who tried."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the browser goes, and what it has to bring back in a cookie."""

    url: str
    browser: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Who has logged in; with `redirect_url` None something was confirmed."""

    user_id: str
    redirect_url: str | None


class Provider(Protocol):
    """One provider as it is asked (federation_client/oidc.py); every method may raise OidcError."""

    @property
    def settings(self) -> OidcProvider: ...

    async def authorization_url(self, state: str, nonce: str, verifier: str) -> str: ...

    async def claims(self, code: str, nonce: str, verifier: str) -> dict[str, Any]: ...

    def render(self, template: str, claims: Mapping[str, Any]) -> str: ...


class SingleSignOn:
    """The providers, and who comes back from them."""

    def __init__(
        self,
        db: Database,
        providers: Sequence[Provider],
        accounts: Accounts,
        registration: Registration,
        auth: InteractiveAuth,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._providers = {provider.settings.id: provider for provider in providers}
        self._accounts = accounts
        self._registration = registration
        self._auth = auth
        self._clock = clock

    @property
    def providers(self) -> Sequence[tuple[str, str]]:
        """ID and name of each, in the operator's order."""
        return [(p.settings.id, p.settings.name) for p in self._providers.values()]

    async def providers_of(self, user_id: str) -> list[str]:
        """Those that a user can prove themselves with."""
        return [p for p in await sso.providers_of(self._db, user_id) if p in self._providers]

    async def begin(self, provider_id: str, redirect_url: str, address: str) -> Begun | None:
        """Begin a login for a client; None for an unknown provider. Raises SsoFailed."""
        return await self._begin(provider_id, redirect_url, None, address)

    async def begin_confirming(self, session_id: str, address: str) -> Begun | None:
        """Begin a login that confirms a user-interactive session; None when there is nothing to confirm.
        Raises SsoFailed."""
        key = session_key(session_id)
        owner = await self._auth.owner(key)
        known = [] if owner is None else await self.providers_of(owner)
        return await self._begin(known[0], None, key, address) if known else None

    async def _begin(
        self, provider_id: str, redirect_url: str | None, confirms: bytes | None, address: str
    ) -> Begun | None:
        provider = self._providers.get(provider_id)
        if provider is None:
            return None
        state, browser, nonce = (secrets.token_urlsafe(24) for _ in range(3))
        session = SsoSession(
            _hash(browser), provider_id, nonce, secrets.token_urlsafe(48), redirect_url, confirms, address
        )
        try:
            url = await provider.authorization_url(state, nonce, session.verifier)
        except OidcError as error:
            log.warning("sso_failed", provider=provider_id, reason=str(error))
            raise SsoFailed("The login provider cannot be reached. Try again later.") from None

        async def work(db: Connection) -> None:
            await sso.begin(db, _hash(state), session, self._clock(), SESSIONS_PER_ADDRESS)

        await self._db.run(work)
        return Begun(url, browser)

    async def finish(self, state: str, browser: str, code: str) -> Finished:
        """The provider has sent the browser back. Raises SsoFailed."""
        session = None
        if len(state) <= MAX_STATE and len(code) <= MAX_CODE:
            session = await sso.take(self._db, _hash(state), self._clock() - SESSION_MS)
        provider = None if session is None else self._providers.get(session.provider)
        if session is None or provider is None:
            raise SsoFailed("This login has ended or was used already. Begin again.")
        if not hmac.compare_digest(session.browser_hash, _hash(browser)):
            raise SsoFailed("This login was begun in another browser. Begin again.")
        try:
            claims = await provider.claims(code, session.nonce, session.verifier)
        except OidcError as error:
            log.warning("sso_failed", provider=session.provider, reason=str(error))
            raise SsoFailed("The login provider did not confirm who you are.") from None
        if session.confirms is not None:
            return await self._confirm(session.confirms, provider, claims)
        return Finished(await self._user(provider, claims), session.redirect_url)

    async def _confirm(self, key: bytes, provider: Provider, claims: Mapping[str, Any]) -> Finished:
        user_id = await sso.user_of(self._db, provider.settings.id, claims["sub"])
        owner = await self._auth.owner(key)
        if user_id is None or owner != user_id:
            raise SsoFailed("You are logged in at the provider as somebody else.")
        await self._auth.complete(key, STAGE, user_id)
        return Finished(user_id, None)

    async def _user(self, provider: Provider, claims: Mapping[str, Any]) -> str:
        """The local user of a provider's user; made at the first time."""
        settings, subject = provider.settings, claims["sub"]
        known = await sso.user_of(self._db, settings.id, subject)
        if known is not None:
            return known
        localpart = provider.render(settings.localpart_template, claims)
        try:
            user_id = self._accounts.user_id(localpart)
            if localpart.startswith("@"):
                raise AccountError("M_INVALID_USERNAME", 400, "a localpart, no user ID")
            if settings.allow_existing_users and await self._accounts.is_active(user_id):
                await sso.link(self._db, settings.id, subject, user_id)
                return user_id
            await self._registration.check_name(localpart)
            await self._accounts.register_without_password(
                localpart,
                lambda db: sso.link(db, settings.id, subject, user_id),
                displayname=_display_name(provider, claims),
            )
        except UniqueViolation:
            raise SsoFailed("Try again.") from None
        except AccountError as error:
            log.warning("sso_no_account", provider=settings.id, reason=error.reason)
            raise SsoFailed(f"There can be no account for you here: {error.reason}.") from None
        return user_id


def _display_name(provider: Provider, claims: Mapping[str, Any]) -> str | None:
    """As the provider names its user, if it does."""
    name = provider.render(provider.settings.display_name_template, claims)[:MAX_NAME]
    return name if name and "\0" not in name else None


def _hash(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
