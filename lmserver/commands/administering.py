"""The commands for users, rooms, media, reports and other servers: the admin API's work from the shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from lmserver.commands.operating import Add, Guarded, days
from lmserver.config import load_config

_BESIDE: Final = " It may run beside the server, which follows within half a minute, or with it stopped."

# command: (summary, description, actions, what they are done to)
_COMMANDS: Final = {
    "user": (
        "list, make, change or end accounts",
        "List accounts, make one, end one for good (deactivate), lock one out and let it in again, let one do"
        " hardly more than read (suspend), set a"
        " password, or end all logins (revoke). Passwords are one line on standard input." + _BESIDE,
        (
            "list",
            "create",
            "deactivate",
            "lock",
            "unlock",
            "suspend",
            "unsuspend",
            "reset-password",
            "revoke",
        ),
        "a localpart or user ID; for list, a part of a name or ID",
    ),
    "room": (
        "list, look into, close or delete rooms",
        "List rooms, show one as JSON (inspect), close one to our users and open it again (block, unblock),"
        " or delete one (purge): our users leave, then all of it goes. The server does that, now or when"
        " it is started." + _BESIDE,
        ("list", "inspect", "block", "unblock", "purge"),
        "a room ID; for list, a part of a name, alias or hub",
    ),
    "media": (
        "list, hide or delete media",
        "List what a user has uploaded, give a medium to nobody or to all again (quarantine, unquarantine),"
        " delete one, or delete what nobody has asked for in --days days (purge): uploads, or with --copies"
        " the copies of other servers' media." + _BESIDE,
        ("list", "quarantine", "unquarantine", "delete", "purge"),
        "an mxc:// URI; for list, a user",
    ),
    "report": (
        "list, show or dismiss what users reported",
        "List what users have reported, the newest first, show one as JSON, or delete one that is dealt with"
        " (dismiss)." + _BESIDE,
        ("list", "show", "dismiss"),
        "the number of a report",
    ),
    "destination": (
        "list, retry or block other servers",
        "List servers with what waits for them, try one now (retry), have nothing more to do with one (block,"
        " unblock), or list those (blocked). See also `destinations` and `skip-transaction`." + _BESIDE,
        ("list", "retry", "block", "unblock", "blocked"),
        "a server name; for list, a part of it",
    ),
}


def add_commands(add: Add, guarded: Guarded) -> None:
    """user, room, media, report and destination."""
    for name, (summary, description, actions, target) in _COMMANDS.items():

        def command(options: argparse.Namespace, name: str = name) -> int:
            return _run(name, options, guarded)

        parser = add(name, command, summary, description)
        parser.add_argument("action", choices=actions)
        parser.add_argument("target", nargs="?", metavar="WHICH", help=target)
        parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration")
        if name == "user":
            parser.add_argument("--admin", action="store_true", help="create: an administrator")
        if name == "room":
            parser.add_argument(
                "--force", action="store_true", help="purge: without waiting for other servers"
            )
            parser.add_argument("--json", action="store_true", help="list one JSON object a line")
        if name == "media":
            parser.add_argument("--days", type=days, metavar="N", help="purge: not asked for in so many days")
            parser.add_argument("--copies", action="store_true", help="purge: copies of other servers' media")
        if name == "destination":
            parser.add_argument("--reason", default="", metavar="TEXT", help="block: why")


_WITHOUT_TARGET: Final = frozenset({"list", "purge", "blocked"})


def _run(name: str, options: argparse.Namespace, guarded: Guarded) -> int:
    wants_target = options.action not in _WITHOUT_TARGET or (name, options.action) == ("room", "purge")
    if options.target is None and (wants_target or (name, options.action) == ("media", "list")):
        print("say which", file=sys.stderr)
        return 2
    config = load_config(options.config)
    match name:
        case "user":
            from lmserver.commands import users

            return guarded(lambda: users.run(config, options.action, options.target, admin=options.admin))
        case "room":
            from lmserver.commands import rooms

            return guarded(
                lambda: rooms.run(
                    config, options.action, options.target, forced=options.force, as_json=options.json
                )
            )
        case "media":
            from lmserver.commands import media

            return guarded(
                lambda: media.run(config, options.action, options.target, options.days, copies=options.copies)
            )
        case "report":
            from lmserver.commands import reports

            return guarded(lambda: reports.run(config, options.action, options.target))
        case _:
            from lmserver.commands import destinations

            return guarded(lambda: destinations.run(config, options.action, options.target, options.reason))
