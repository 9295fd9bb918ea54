"""Passwords: argon2 in a small thread pool, so that hashing neither blocks nor multiplies."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

MIN_LENGTH = 8
MAX_LENGTH = 512
THREADS = 2
# Hashed when there is no account, so that an unknown name takes as long as a wrong password.
_DUMMY = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$V3gGJQ1p3k0oFJh0m2yQKQ5hRAkUAfVEMhGIs8lOQ8o"


class BadPassword(ValueError):
    """A new password that is too short or too long."""


def check_length(password: str) -> None:
    """Raises BadPassword for what cannot be a new one."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise BadPassword(f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters")


class Passwords:
    """Hashes and checks passwords off the event loop."""

    def __init__(self) -> None:
        # OWASP's second recommended setting: 19 MiB, 2 passes.
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")

    async def hash(self, password: str) -> str:
        """Raises BadPassword."""
        check_length(password)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._hasher.hash, password)

    async def check(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is right; takes as long when there is no hash to compare with."""
        if len(password) > MAX_LENGTH:
            return False
        loop = asyncio.get_running_loop()
        right = await loop.run_in_executor(self._pool, self._verify, password_hash or _DUMMY, password)
        return right and bool(password_hash)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (Argon2Error, InvalidHashError):
            return False

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
