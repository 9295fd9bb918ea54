"""`lmserver send-notice`: tell users something in a room of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from lmserver import own_keys
from lmserver.accounts.errors import AccountError
from lmserver.composition import assemble
from lmserver.config import Config
from lmserver.rooms.notices import NotSent
from lmserver.server import open_database


def send(config: Config, names: Sequence[str], text: str) -> int:
    """Tell these users, or all if none are named; 1 when somebody could not be told."""
    return asyncio.run(_send(config, names, text))


async def _send(config: Config, names: Sequence[str], text: str) -> int:
    keys = own_keys.load(config.signing_key_path, config.server_name)
    failed = 0
    async with open_database(config, _tell, beside=True) as db:
        server = assemble(config, db, keys.signing, old_keys=keys.old)
        try:
            if not names:
                print(f"told {await server.notices.send_to_all(text)} users")
            for name in names:
                try:
                    user_id = server.accounts.user_id(name)
                    print(f"told {user_id}: {await server.notices.send(user_id, text)}")
                except (NotSent, AccountError) as error:
                    _tell(str(error))
                    failed += 1
        finally:
            await server.close()
    return 1 if failed else 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
