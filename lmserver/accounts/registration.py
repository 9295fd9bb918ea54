"""Who may make an account, and under which name (CS API §Account registration and management)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.auth_stages import DUMMY, REGISTRATION_TOKEN
from lmserver.accounts.errors import AccountError
from lmserver.accounts.registration_tokens import RegistrationTokens
from lmserver.protocol import ids
from lmserver.storage.database import Connection

RESERVED = frozenset({
    "abuse", "admin", "administrator", "hostmaster", "lmserver", "moderator", "notices", "postmaster", "root",
    "security", "server", "support", "system", "webmaster",
})  # fmt: skip
"""Names that would be believed: only the operator makes accounts of them, with `register-user`."""


class Registration:
    """Accounts that people make for themselves, where the operator lets them."""

    def __init__(
        self,
        accounts: Accounts,
        tokens: RegistrationTokens,
        mode: str,
        is_exclusive: Callable[[str], bool],
    ) -> None:
        self._is_exclusive = is_exclusive
        self._accounts = accounts
        self._tokens = tokens
        self._mode = mode

    @property
    def is_open(self) -> bool:
        """Whether anybody could register, with a token or without."""
        return self._mode != "closed"

    @property
    def flows(self) -> Sequence[Sequence[str]]:
        return [[REGISTRATION_TOKEN if self._mode == "token" else DUMMY]]

    async def check_name(self, name: str) -> str:
        """The user ID a name would get; raises AccountError when it is taken, reserved, or can be none."""
        user_id = self._accounts.user_id(name)
        localpart = ids.localpart_of(user_id)
        if name.startswith("@") or localpart.startswith("_") or localpart in RESERVED:
            raise AccountError("M_EXCLUSIVE", 400, "This user name is reserved")
        if self._is_exclusive(user_id):
            raise AccountError("M_EXCLUSIVE", 400, "This user name is reserved")
        if await self._accounts.exists(user_id):
            raise AccountError("M_USER_IN_USE", 400, "This user name is taken")
        return user_id

    async def register(self, name: str | None, password: str, token: str | None) -> str:
        """Make an account and return its user ID; a token loses one use in the same transaction.

        Raises AccountError or BadPassword.
        """
        if name is not None:
            await self.check_name(name)

        async def claim(db: Connection) -> None:
            if token is not None and not await self._tokens.use(db, token):
                raise AccountError("M_FORBIDDEN", 403, "The registration token has been used up")

        return await self._accounts.register(name or secrets.token_hex(8), password, claim=claim)
