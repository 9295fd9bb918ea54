"""Application services: who they are, and as whom they may act (AS API §Identity assertion)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.errors import AccountError
from lmserver.config_appservices import AppService
from lmserver.protocol import ids
from lmserver.storage import appservices
from lmserver.storage.database import Connection, Database

PAGE: Final = 1000


class AppServices:
    """The services of the configuration."""

    def __init__(self, db: Database, accounts: Accounts, services: Sequence[AppService]) -> None:
        self._db = db
        self._accounts = accounts
        self.services = tuple(services)
        self._by_token = {_hash(service.as_token): service for service in services}

    async def start(self) -> None:
        """Make the services' own accounts, and note which accounts are theirs by the namespaces of now."""
        owned: dict[str, list[str]] = {service.id: [] for service in self.services}
        for service in self.services:
            if not await self._accounts.exists(service.sender):
                await self.make_user(service, ids.localpart_of(service.sender))
        last = ""
        while self.services and (page := await appservices.accounts_after(self._db, last, PAGE)):
            for service in self.services:
                owned[service.id] += [user_id for user_id in page if service.owns(user_id)]
            last = page[-1]
        for service in self.services:
            await appservices.set_users(self._db, service.id, owned[service.id])

    def of_token(self, token: str) -> AppService | None:
        return self._by_token.get(_hash(token)) if self._by_token else None

    async def act_as(self, service: AppService, user_id: str | None) -> str:
        """The user a request of a service is for: its own unless it names another of its namespace.

        Raises AccountError.
        """
        wanted = service.sender if user_id is None else user_id
        if not ids.is_user_id(wanted) or not service.owns(wanted):
            raise AccountError("M_FORBIDDEN", 403, "The application service may not act as this user")
        if not await self._accounts.is_active(wanted):
            raise AccountError("M_FORBIDDEN", 403, "The application service has not registered this user")
        return wanted

    async def make_user(self, service: AppService, name: str) -> str:
        """Make an account of the service's; raises AccountError."""
        user_id = self._accounts.user_id(name)
        if not service.owns(user_id) or name.startswith("@"):
            raise AccountError("M_EXCLUSIVE", 400, "This user name is not in the service's namespace")
        if self._is_others(user_id, service):
            raise AccountError("M_EXCLUSIVE", 400, "This user name is another service's")
        return await self._accounts.register_without_password(name, _nothing)

    async def note_user(self, db: Connection, user_id: str) -> None:
        """Whose a new account is, in the transaction that makes it."""
        for service in self.services:
            if service.owns(user_id):
                await appservices.add_user(db, user_id, service.id)

    def is_exclusive(self, user_id: str) -> bool:
        """Whether nobody but a service may have this user ID."""
        return any(service.owns_alone(user_id) for service in self.services)

    def alias_is_others(self, alias: str, user_id: str) -> bool:
        """Whether an alias is in the exclusive namespace of a service that the user is none of."""
        return any(
            namespace.exclusive and namespace.has(alias)
            for service in self.services
            if not service.owns(user_id)
            for namespace in service.aliases
        )

    def _is_others(self, user_id: str, service: AppService) -> bool:
        return any(other.owns_alone(user_id) for other in self.services if other is not service)


async def _nothing(_: Connection) -> None:
    """An account of a service needs nothing more than its namespace."""


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
