"""The command line. Each command imports what it needs when it runs, so --help is instant."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lmserver import __version__
from lmserver.commands import administering, operating
from lmserver.config import Config, ConfigError, load_config
from lmserver.config_template import Template, render
from lmserver.conformance.options import add_arguments

DEV_NAME = "localhost:8448"
DEV_FOLDER = Path("lmserver-data")
DEV_FEDERATION_PORT = 8448
DEV_CLIENT_PORT = 8008


class CommandError(Exception):
    """A command that cannot be done; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 1 for what went wrong, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ConfigError as error:
        for problem in error.problems:
            _tell(f"configuration: {problem}")
    except CommandError as error:
        _tell(str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _tell(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 130
    return 1


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- the parser -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmserver",
        description="A homeserver for Linearized Matrix: Matrix rooms as append-only lists.",
        epilog="`lmserver COMMAND --help` explains a command. Begin with `lmserver run`.",
    )
    parser.add_argument("--version", action="version", version=f"lmserver {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _add(commands, "run", _run, "run the server",
               "Run the server until SIGTERM or Ctrl-C. Without --config it serves localhost:8448 in"
               " developer mode with data under ./lmserver-data.")  # fmt: skip
    run.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: developer mode)")

    generate = _add(commands, "generate-config", _generate_config, "print a commented configuration",
                    "Print a commented YAML configuration on standard output.")  # fmt: skip
    generate.add_argument("--server-name", required=True, metavar="NAME",
                          help="the name other servers know this one by, such as example.org")  # fmt: skip
    generate.add_argument("--data-dir", required=True, type=Path, metavar="DIR",
                          help="where the signing key and the embedded database live")  # fmt: skip
    generate.add_argument("--client-port", type=int, default=DEV_CLIENT_PORT, metavar="N",
                          help="port of the client API (default: %(default)s)")  # fmt: skip
    generate.add_argument("--federation-port", type=int, metavar="N",
                          help="port for other servers (default: the name's port, else 8448)")  # fmt: skip
    generate.add_argument("--database-url", metavar="URL",
                          help="a PostgreSQL of your own (default: the embedded one)")  # fmt: skip
    generate.add_argument("--dev", type=Path, metavar="DIR",
                          help="developer mode: a throw-away certificate authority in DIR, shared by every"
                          " server made with the same DIR; loopback allowed, registration open")  # fmt: skip

    check = _add(commands, "check-config", _check_config, "say what is wrong with a configuration",
                 "Check a configuration and the signing key it names; exit 1 if it is wrong.")  # fmt: skip
    _add_config(check)

    migrate = _add(commands, "migrate", _migrate, "bring the database to this version's schema",
                   "Bring the database to this version's schema. `run` does it too.")  # fmt: skip
    _add_config(migrate)

    key = _add(commands, "generate-key", _generate_key, "make a signing key",
               "Make an Ed25519 signing key in a file only its owner can read. An existing file is"
               " never overwritten.")  # fmt: skip
    key.add_argument("file", type=Path, metavar="FILE", help="the key file to make")

    rotate = _add(commands, "rotate-key", _rotate_key, "replace the signing key",
                  "Make a new signing key and keep the public half of the old one, so that what it signed"
                  " can be verified for ever. A running server follows within a second. Keep a copy of the"
                  " file afterwards.")  # fmt: skip
    _add_config(rotate)
    rotate.add_argument("--revoke", action="store_true",
                        help="others have the old key: tell all servers in our rooms at once")  # fmt: skip

    user = _add(commands, "register-user", _register_user, "make an account",
                "Make an account, whether the server is running or not. The password is one line on standard"
                " input.",
                "example: echo 'a long password' | lmserver register-user --config lmserver.yaml --user alice"
                " --password-stdin")  # fmt: skip
    _add_config(user)
    user.add_argument("--user", required=True, metavar="NAME", help="the localpart, such as alice")
    user.add_argument("--password-stdin", action="store_true", required=True,
                      help="read the password from standard input, one line")  # fmt: skip
    user.add_argument("--admin", action="store_true", help="make the user an administrator")

    verify = _add(commands, "verify", _verify, "prove every room from its stored bytes",
                  "Recompute every hash, signature, event ID, link and state entry of every room from the"
                  " stored bytes. Exits 1 and names room and position if anything is wrong.")  # fmt: skip
    _add_config(verify)

    proof = _add(commands, "evidence", _evidence, "list what rooms' hubs did that the protocol forbids",
                "List what this server, as a participant, holds against its rooms' hubs: forks, replays,"
                " altered events, broken rules. It only reads and may run beside the server.")  # fmt: skip
    _add_config(proof)
    proof.add_argument("--room", metavar="ROOM", help="only this room's hub")
    proof.add_argument("--json", action="store_true",
                      help="one JSON object a line, with the signed events that prove each case")  # fmt: skip

    operating.add_commands(partial(_add, commands), _with_database_errors)
    administering.add_commands(partial(_add, commands), _with_database_errors)

    conflicts = _add(commands, "key-conflicts", _key_conflicts, "list key IDs of others that have two keys",
                     "List key IDs that another server, or a notary, has published with other keys than the"
                     " one we knew first, which stays in use. It may run beside the server.")  # fmt: skip
    _add_config(conflicts)

    inspect = _add(commands, "inspect-event", _inspect_event, "show what an event's hashes and ID are",
                   "Read an event (LPDU or PDU) as JSON from standard input and print one JSON object: its"
                   " form, hashes, event ID, redacted form, the bytes hashed for the ID, and whether its"
                   " signatures hold.",
                   "example: lmserver inspect-event --keys keys.json < event.json")  # fmt: skip
    inspect.add_argument(
        "--room-version", metavar="V", help="room version (default: the create event's own, else .02)"
    )
    inspect.add_argument("--keys", type=Path, metavar="FILE",
                         help="JSON: {server: {key ID: unpadded base64 public key}}")  # fmt: skip

    demo = _add(commands, "demo", _demo, "watch two servers federate a room",
                "Start two servers with databases and certificates of their own, tell a story with two users,"
                " and check every step.")  # fmt: skip
    demo.add_argument("--keep", type=Path, metavar="DIR", help="leave data and logs in DIR")
    _add_peer_commands(commands)
    return parser


def _add_peer_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Those that look at other servers."""
    peer = _add(commands, "federation-check", _federation_check, "say why a server can or cannot be reached",
                "Take every step from a server's name to its keys as this server would, and say what is"
                " wrong and what to do about it. Exits 1 if the server cannot be federated with.",
                "example: lmserver federation-check example.org --config lmserver.yaml")  # fmt: skip
    peer.add_argument("server", metavar="SERVER", help="a server name, such as example.org")
    peer.add_argument("--config", type=Path, metavar="FILE", help="as this server, signing with its key")
    peer.add_argument("--json", action="store_true", help="print one JSON object")

    conformance = _add(commands, "conformance", _conformance, "test a server against the draft",
                       "Run the draft's requirements against any Linearized Matrix server, as a black box,"
                       " and print what it passes, fails and cannot be tested for.")  # fmt: skip
    add_arguments(conformance)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description, epilog=epilog)
    parser.set_defaults(command=command)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration")


# -- commands ---------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from lmserver import server

    if options.config is not None:
        config, ready = load_config(options.config), lambda: None
    else:
        path = _dev_config()
        config = load_config(path)
        ready = partial(_dev_banner, config, path)
    return _with_database_errors(lambda: server.run(config, ready=ready, progress=_tell))


def _with_database_errors(work: Callable[[], int]) -> int:
    """What can go wrong before a server serves, in words for its operator."""
    from lmserver.storage.database import DatabaseUnavailable, UnsafeDatabase
    from lmserver.storage.embedded_postgres import EmbeddedPostgresError
    from lmserver.storage.migrations import MigrationError

    try:
        return work()
    except (EmbeddedPostgresError, MigrationError, UnsafeDatabase, DatabaseUnavailable) as error:
        raise CommandError(f"database: {error}") from error


def _dev_config() -> Path:
    """The developer configuration, made on the first start."""
    path = DEV_FOLDER / "lmserver.yaml"
    if not path.exists():
        _tell(f"First start: making a configuration for {DEV_NAME} under ./{DEV_FOLDER} ...")
        text = _template(DEV_NAME, DEV_FOLDER.resolve(), DEV_CLIENT_PORT, None, None, DEV_FOLDER / "ca")
        DEV_FOLDER.mkdir(mode=0o700, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def _dev_banner(config: Config, path: Path) -> None:
    url = config.client.public_url or f"http://127.0.0.1:{config.client.port}"
    _tell(f"""
{config.server_name} is ready. Client API: {url}   federation: https://{config.server_name}

Make an account:
  curl -s {url}/_matrix/client/v3/register -d \\
    '{{"username": "alice", "password": "a long password", "auth": {{"type": "m.login.dummy"}}}}'

Log in from a Matrix client: choose the homeserver {url}, user alice. From the shell:
  curl -s {url}/_matrix/client/v3/login -d \\
    '{{"type": "m.login.password", "identifier": {{"type": "m.id.user", "user": "alice"}},
      "password": "a long password"}}'

Configuration: {path}   Stop with Ctrl-C.
""")


def _generate_config(options: argparse.Namespace) -> int:
    print(
        _template(
            options.server_name,
            options.data_dir,
            options.client_port,
            options.federation_port,
            options.database_url,
            options.dev,
        ),
        end="",
    )
    return 0


def _template(
    name: str,
    data_dir: Path,
    client_port: int,
    federation_port: int | None,
    url: str | None,
    dev: Path | None,
) -> str:
    from lmserver.protocol import ids

    if not ids.is_server_name(name):
        raise CommandError(
            f"{name!r} is not a server name: a DNS name with an optional port, such as example.org"
        )
    named_port = int(name.rsplit(":", 1)[1]) if ":" in name else DEV_FEDERATION_PORT
    template = Template(
        name,
        data_dir.resolve() if dev is not None else data_dir,
        client_port,
        federation_port if federation_port is not None else named_port,
        url,
    )
    if dev is None:
        return render(template)
    from dataclasses import replace

    from lmserver import dev_ca

    made = dev_ca.issue(dev.resolve(), name)
    return render(
        replace(template, dev_certificate=made.certificate, dev_private_key=made.private_key, dev_ca=made.ca)
    )


def _check_config(options: argparse.Namespace) -> int:
    from lmserver import own_keys
    from lmserver.config_files import file_problems

    config = load_config(options.config)
    problems = file_problems(config)
    if problems:
        raise ConfigError(problems)
    if config.signing_key_path.exists():
        own_keys.load(config.signing_key_path, config.server_name)
    else:
        _tell(f"note: {config.signing_key_path} does not exist; the first start makes it")
    _check_days_left(config)
    for warning in config.warnings():
        _tell(f"warning: {warning}")
    print(f"{options.config}: good")
    return 0


def _check_days_left(config: Config) -> None:
    from lmserver import tls

    listener = config.federation_listener
    if listener.tls_certificate is None or listener.tls_private_key is None:
        return
    days = tls.days_left(listener.tls_certificate, listener.tls_private_key)
    if days < tls.WARN_SECONDS / 86400:
        _tell(f"warning: {listener.tls_certificate} has {days:.0f} days left")


def _migrate(options: argparse.Namespace) -> int:
    from lmserver import server

    config = load_config(options.config)

    def work() -> int:
        server.migrate(config, _tell)
        return 0

    return _with_database_errors(work)


def _generate_key(options: argparse.Namespace) -> int:
    from lmserver import own_keys

    key_id = own_keys.generate(options.file)
    print(f"{key_id} in {options.file}")
    return 0


def _rotate_key(options: argparse.Namespace) -> int:
    from lmserver import own_keys
    from lmserver.composition import clock_ms

    path = load_config(options.config).signing_key_path
    old, new = own_keys.rotate(path, clock_ms(), leaked=options.revoke)
    print(f"{new} in {path}; {old} is listed as {'leaked' if options.revoke else 'expired'}")
    _tell("A running server signs with the new key within a second.")
    return 0


def _register_user(options: argparse.Namespace) -> int:
    from lmserver import server
    from lmserver.accounts.errors import AccountError
    from lmserver.accounts.passwords import BadPassword

    config = load_config(options.config)
    password = sys.stdin.readline().rstrip("\r\n")

    def work() -> int:
        try:
            user_id = server.register_user(
                config, options.user, password, admin=options.admin, progress=_tell
            )
        except (AccountError, BadPassword) as error:
            raise CommandError(str(error)) from error
        print(user_id)
        return 0

    return _with_database_errors(work)


def _verify(options: argparse.Namespace) -> int:
    from lmserver.commands import verify

    config = load_config(options.config)
    return _with_database_errors(lambda: verify.run(config))


def _evidence(options: argparse.Namespace) -> int:
    from lmserver.commands import evidence

    config = load_config(options.config)
    return _with_database_errors(lambda: evidence.run(config, options.room, as_json=options.json))


def _key_conflicts(options: argparse.Namespace) -> int:
    from lmserver.commands import conflicts

    config = load_config(options.config)
    return _with_database_errors(lambda: conflicts.run(config))


def _inspect_event(options: argparse.Namespace) -> int:
    from lmserver.commands.inspect_event import inspect
    from lmserver.protocol.errors import ProtocolError

    keys = {}
    if options.keys is not None:
        try:
            keys = json.loads(options.keys.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CommandError(f"{options.keys}: {error}") from error
        if not isinstance(keys, dict) or not all(isinstance(entry, dict) for entry in keys.values()):
            raise CommandError(f"{options.keys}: expected {{server: {{key ID: key}}}}")
    try:
        report = inspect(sys.stdin.buffer.read(), options.room_version, keys)
    except ProtocolError as error:
        raise CommandError(f"not an event: {error}") from error
    json.dump(report, sys.stdout, ensure_ascii=False, indent=2)
    print()
    return 0


def _demo(options: argparse.Namespace) -> int:
    from lmserver.commands import demo

    return demo.run(options.keep)


def _federation_check(options: argparse.Namespace) -> int:
    from lmserver.federation_check import command

    return command.run(options.server, options.config, as_json=options.json)


def _conformance(options: argparse.Namespace) -> int:
    from lmserver.conformance import command

    return command.run(options)
