"""What the command is told."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

_SERVER_NAME = re.compile(r"[A-Za-z0-9.-]{1,255}(:[0-9]{1,5})?")
EPILOG = """\
The suite is a federation server named NAME: the server under test must reach it at that name, and
trust its certificate. On one machine, with an lmserver made by `generate-config --dev ca`:

  lmserver conformance localhost:8448 --as localhost:9448 --also localhost:9449 --also localhost:9450 \\
    --dev ca --client-url http://127.0.0.1:8008 --register

Exit status: 0 when nothing failed, 1 when something did, 2 when the suite could not run.
docs/conformance.md says more.
"""


@dataclass(frozen=True)
class Options:
    """One run. Of `certificate` and `private_key` both are given or none."""

    server: str
    name: str
    also: tuple[str, ...] = ()
    listen: str | None = None
    plain_http: bool = False
    dev: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    ca_file: Path | None = None
    signing_key: Path | None = None
    stable: bool = False
    role: str = "both"
    room: str | None = None
    alias: str | None = None
    user: str | None = None
    password: str | None = None
    client_url: str | None = None
    client_token: str | None = None
    register: bool = False
    wait: float = 0.0
    only: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lmserver conformance`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("server", nargs="?", metavar="SERVER", help="name of the server under test")
    us = parser.add_argument_group("the suite as a server")
    us.add_argument(
        "--as",
        dest="name",
        metavar="NAME",
        help="name the server under test reaches the suite by, such as localhost:9448",
    )
    us.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of the suite, for checks with a third server; up to two",
    )
    us.add_argument("--listen", metavar="HOST:PORT", help="where to listen (default: the port of NAME)")
    us.add_argument(
        "--signing-key",
        type=Path,
        metavar="FILE",
        help="the suite's key, made if FILE is not there (default: in --dev's DIR, else a new key each run)",
    )
    us.add_argument(
        "--dev",
        type=Path,
        metavar="DIR",
        help="certificates from the throw-away authority in DIR, and trust in it",
    )
    us.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM certificate for all names")
    us.add_argument("--tls-private-key", type=Path, metavar="FILE", help="its private key")
    us.add_argument("--ca-file", type=Path, metavar="FILE", help="authorities to trust besides the system's")
    us.add_argument("--plain-http", action="store_true", help="no TLS in either direction, for tests")
    them = parser.add_argument_group("rooms and users of the server under test")
    them.add_argument(
        "--client-url", metavar="URL", help="its client API: rooms are made and joined through it, unattended"
    )
    them.add_argument("--client-token", metavar="TOKEN", help="access token of a user of the client API")
    them.add_argument(
        "--user", metavar="USER", help="user to log in as; without --client-url the user to invite"
    )
    them.add_argument("--password", metavar="TEXT", help="password of --user")
    them.add_argument("--register", action="store_true", help="register a fresh user (open registration)")
    them.add_argument(
        "--room", metavar="ROOM_ID", help="a public room of the server, to be tested as its hub"
    )
    them.add_argument("--alias", metavar="ALIAS", help="the same by alias")
    them.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for people to invite or join as printed (default: not)",
    )
    what = parser.add_argument_group("what is checked")
    what.add_argument(
        "--role",
        choices=("both", "hub", "participant"),
        default="both",
        help="the role the server is tested in (default: %(default)s)",
    )
    what.add_argument(
        "--stable",
        action="store_true",
        help="stable paths and room version I.1 (default: the draft's unstable .02)",
    )
    what.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only checks whose name matches, such as 'auth.*'; may be given again",
    )
    what.add_argument("--list", action="store_true", help="print all checks with their sections and stop")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--verbose", action="store_true", help="a line for every check, exchanges of failed ones"
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as JSON")
    out.add_argument("--strict", action="store_true", help="what is only SHOULD fails the run too")


def options_of(parsed: argparse.Namespace) -> Options:
    """Raises ValueError with what is wrong or missing."""
    if parsed.server is None or parsed.name is None:
        raise ValueError("SERVER and --as NAME are needed")
    for name in (parsed.server, parsed.name, *parsed.also):
        if not _SERVER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a server name: a DNS name with an optional port")
    if (parsed.tls_certificate is None) != (parsed.tls_private_key is None):
        raise ValueError("--tls-certificate and --tls-private-key go together")
    if not (parsed.plain_http or parsed.dev or parsed.tls_certificate):
        raise ValueError(
            "a certificate is needed: --dev DIR, --tls-certificate with --tls-private-key, or --plain-http"
        )
    if len(parsed.also) > 2:
        raise ValueError("--also is for up to two names")
    logins = [parsed.client_token is not None, parsed.password is not None, parsed.register]
    if parsed.client_url is not None and sum(logins) != 1:
        raise ValueError("--client-url needs one of --client-token, --user with --password, --register")
    return Options(
        server=parsed.server,
        name=parsed.name,
        also=tuple(parsed.also),
        listen=parsed.listen,
        plain_http=parsed.plain_http,
        dev=parsed.dev,
        certificate=parsed.tls_certificate,
        private_key=parsed.tls_private_key,
        ca_file=parsed.ca_file,
        signing_key=parsed.signing_key,
        stable=parsed.stable,
        role=parsed.role,
        room=parsed.room,
        alias=parsed.alias,
        user=parsed.user,
        password=parsed.password,
        client_url=parsed.client_url,
        client_token=parsed.client_token,
        register=parsed.register,
        wait=parsed.wait,
        only=tuple(parsed.only),
    )
