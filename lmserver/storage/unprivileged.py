"""How PostgreSQL runs when we are root, as which it refuses to run.

Best in a user namespace in which root is mapped to nobody: no account is made, no owner changed, and
everything may stay under a 0700 home. Where namespaces are forbidden, as an account the system has
(postgres, else nobody): it must reach its binaries and its data, so what lies out of its reach is
copied (binaries) or placed (data) under /var/lib.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NOBODY = 65534
_ACCOUNTS = ("postgres", "nobody")
PLACES = Path("/var/lib/lmserver")


class CannotRun(Exception):
    """Neither way works here; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the binaries and the cluster's folder are, and how a command is started on them.

    `home` holds `postgres` (the cluster); `prefix` comes before a command; `identity` is what
    `subprocess` is told about user and groups; `owner` is who must own cluster and socket folder.
    """

    binaries: Path
    home: Path
    prefix: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    def command(self, words: list[str]) -> list[str]:
        return [*self.prefix, *words]

    def hand_over(self, folder: Path) -> None:
        """Make the folder, 0700, and all in it the owner's."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.owner is None:
            return
        for root, folders, files in os.walk(folder):
            for name in [".", *folders, *files]:
                os.chown(Path(root) / name, *self.owner, follow_symlinks=False)


def choose(binaries: Path, home: Path, progress: Callable[[str], None]) -> Ground:
    """The ground for a cluster in `home`; raises CannotRun.

    A cluster that exists keeps the way it was made in, which its owner tells.
    """
    if os.geteuid() != 0:
        return Ground(binaries, home)
    made_by_account = _owner_of(_place(home) / "postgres") or _owner_of(home / "postgres")
    prefix = _namespace()
    if prefix is not None and not made_by_account:
        return Ground(binaries, home, prefix)
    return _as_account(binaries, home, progress)


def _owner_of(cluster: Path) -> int | None:
    """The account that owns a cluster; None for root or no cluster."""
    try:
        return (cluster / "PG_VERSION").stat().st_uid or None
    except OSError:
        return None


def _namespace() -> tuple[str, ...] | None:
    """The words that start a command as nobody in a user namespace, where that is allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    prefix = (unshare, "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}")
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if allowed else None


def _as_account(binaries: Path, home: Path, progress: Callable[[str], None]) -> Ground:
    for name in _ACCOUNTS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            place = home if _reaches(home, identity) else _place(home)
            if place != home and (home / "postgres/PG_VERSION").exists():
                raise CannotRun(
                    f"user namespaces are not allowed here any more, and {name} cannot reach the database in"
                    f" {home}: move the data directory where every folder above it may be entered by others"
                )
            place.mkdir(parents=True, exist_ok=True, mode=0o755)
            if not _reaches(binaries / "postgres", identity):
                binaries = _copied(binaries, place, progress)
        except OSError as error:
            raise CannotRun(f"{error.filename} cannot be written: {error.strerror}") from error
        ground = Ground(binaries, place, (), (account.pw_uid, account.pw_gid), identity)
        if _runs([str(binaries / "postgres"), "--version"], identity):
            return ground
    raise CannotRun(
        "PostgreSQL refuses to run as root; user namespaces are not allowed here, and no account of the"
        f" system ({' or '.join(_ACCOUNTS)}) can run it: run lmserver as another user, or set database.url"
        " to a PostgreSQL of your own"
    )


def _place(home: Path) -> Path:
    """Where an account keeps the cluster of a data directory that it cannot reach."""
    return PLACES / hashlib.sha256(str(home).encode()).hexdigest()[:16]


def _reaches(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the account gets there; a folder that does not exist yet is judged by its parent."""
    while not path.exists():
        path = path.parent
    return _runs(["test", "-x", str(path)], identity)


def _runs(command: list[str], identity: dict[str, Any]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd="/", **identity)
    except OSError:
        return False
    return done.returncode == 0


def _copied(binaries: Path, place: Path, progress: Callable[[str], None]) -> Path:
    """A copy of the whole installation; binaries find their libraries and files relative to it."""
    installation = binaries.parent
    mark = hashlib.sha256(f"{installation} {(binaries / 'postgres').stat().st_mtime_ns}".encode())
    copy = place / f"postgresql-{mark.hexdigest()[:12]}"
    inside = Path(installation.parent.name) / installation.name
    if not copy.exists():
        progress(f"Copying PostgreSQL to {copy}, where an unprivileged account can run it ...")
        unfinished = place / f"{copy.name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(installation, unfinished / inside, symlinks=True)
        # A wheel keeps the libraries it brings beside its package.
        libraries = installation.parent.with_name(installation.parent.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        _open_to_all(unfinished)
        unfinished.rename(copy)
    return copy / inside / binaries.name


def _open_to_all(copy: Path) -> None:
    """Read and, what the owner may execute, execute."""
    for folder, _, files in os.walk(copy):
        Path(folder).chmod(0o755)
        for file in (Path(folder) / name for name in files):
            if not file.is_symlink():
                mode = file.stat().st_mode
                file.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
