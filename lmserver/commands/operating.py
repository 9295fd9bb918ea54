"""The commands for what only an operator can decide: rooms after a restore, servers that take nothing,
who may register."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lmserver.config import Config, load_config

Guarded = Callable[[Callable[[], int]], int]
"""Runs work, and tells what goes wrong with the database in words for an operator."""


MAX_DAYS = 36_500


class Add(Protocol):
    """Adds one command to the command line."""

    def __call__(
        self, name: str, command: Callable[[argparse.Namespace], int], summary: str, description: str
    ) -> argparse.ArgumentParser: ...


def days(text: str) -> float:
    """A number of days on the command line, a hundred years at most; raises ArgumentTypeError."""
    try:
        found = float(text)
    except ValueError:
        found = -1
    if not 0 <= found <= MAX_DAYS:  # also false for nan
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 0 to {MAX_DAYS}")
    return found


def add_commands(add: Add, guarded: Guarded) -> None:
    """held-rooms, release-room, mark-restored, destinations, skip-transaction, registration-token,
    send-notice."""

    def on_config(work: Callable[[Config, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
        def command(options: argparse.Namespace) -> int:
            config = load_config(options.config)
            return guarded(lambda: work(config, options))

        return command

    commands = [
        add("held-rooms", on_config(_held_rooms), "list rooms that wait for their newest events",
            "List the rooms that may be read and not written to, because the database was restored and the"
            " other servers have not all said that nothing is missing. Exits 1 if there are any."),
        add("mark-restored", on_config(_mark_restored), "say that the database is a restored one",
            "After restoring database and data directory together, which leaves no sign of it: hold the rooms"
            " we order until other servers have given back what they lack, and drop one-time keys."),
        add("destinations", on_config(_destinations), "list servers that take nothing from us",
            "List the servers that something waits for and that cannot be reached or refuse what they are"
            " sent: since when, how often it was tried, and why. Exits 1 if there are any."),
    ]  # fmt: skip
    release = add("release-room", on_config(_release_room), "write to a held room again, as it is",
                  "Let a held room be written to again although events of it may be lost. Servers that have"
                  " those events will refuse what follows: their users have to leave and join"
                  " anew.")  # fmt: skip
    release.add_argument("room", nargs="*", metavar="ROOM", help="room IDs")
    release.add_argument("--all", action="store_true", help="every held room")
    skip = add("skip-transaction", on_config(_skip), "give up what a server refuses to take",
               "Give up the transaction that a server refuses, so that the next one can be sent. It may fetch"
               " the room events in it by itself; messages of our users to its rooms are told as"
               " refused.")  # fmt: skip
    skip.add_argument("server", metavar="SERVER", help="the server that refuses it")
    tokens = add("registration-token", on_config(_registration_token), "tokens that people register with",
                 "Make, list or delete registration tokens, for registration.mode token. It may run beside"
                 " the server, which follows at once.")  # fmt: skip
    tokens.add_argument("action", choices=["create", "list", "delete"])
    tokens.add_argument("token", nargs="?", metavar="TOKEN",
                        help="which to delete, or the new one's text (default: random)")  # fmt: skip
    tokens.add_argument("--uses", type=int, metavar="N", help="accounts it is good for (default: no end)")
    tokens.add_argument("--days", type=days, metavar="N", help="how long it is good (default: no end)")
    tokens.add_argument("--json", action="store_true", help="list one JSON object a line")
    notice = add("send-notice", on_config(_send_notice), "tell users something",
                 "Tell users of this server something, in a room that they cannot leave. The text is read"
                 " from standard input. It may run beside the server, whose users see it with their next"
                 " /sync.")  # fmt: skip
    notice.add_argument("user", nargs="*", metavar="USER", help="localparts or user IDs")
    notice.add_argument("--all", action="store_true", help="every user of this server")
    for parser in (*commands, release, skip, tokens, notice):
        parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration")


def _held_rooms(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import held_rooms

    return held_rooms.show(config)


def _release_room(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import held_rooms

    if bool(options.room) == options.all:
        print("name rooms, or give --all", file=sys.stderr)
        return 2
    return held_rooms.release(config, options.room)


def _mark_restored(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import held_rooms

    return held_rooms.mark_restored(config)


def _destinations(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import destinations

    return destinations.show(config)


def _skip(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import destinations

    return destinations.skip(config, options.server)


def _registration_token(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import registration_tokens

    if options.action == "create":
        return registration_tokens.create(config, options.token, options.uses, options.days)
    if options.action == "list":
        return registration_tokens.show(config, as_json=options.json)
    if options.token is None:
        print("name the token", file=sys.stderr)
        return 2
    return registration_tokens.delete(config, options.token)


def _send_notice(config: Config, options: argparse.Namespace) -> int:
    from lmserver.commands import notices

    if bool(options.user) == options.all:
        print("name users, or give --all", file=sys.stderr)
        return 2
    text = sys.stdin.read().strip()
    if not text:
        print("there is no text on standard input", file=sys.stderr)
        return 2
    return notices.send(config, options.user, text)
