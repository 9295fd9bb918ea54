"""Our signing key and those before it: one file, replaced as a whole, followed while the server runs.

The first line is the key we sign with, each further line a key that we signed with once:

    ed25519 VERSION SEED
    expired ed25519 VERSION PUBLIC_KEY TIMESTAMP
    leaked ed25519 VERSION PUBLIC_KEY TIMESTAMP

A rotation is one rename, so a crash leaves either the keys from before it or those from after it. The seed
of the old key is forgotten, its public half kept for ever: the events it signed have to verify for ever.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lmserver.config import ConfigError
from lmserver.protocol import ids, unpadded_base64
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.signatures import SigningKey, VerifyKey

GRACE_MS: Final = 10_000
"""A running server signs with the old key until it has seen the new file: so much longer it counts."""

_RETIRED: Final = ("expired", "leaked")


@dataclass(frozen=True, slots=True)
class OldKey:
    """A key that is no longer signed with; it counts for what is older than `expired_ts` (ms)."""

    key: VerifyKey
    expired_ts: int
    leaked: bool = False


class OwnKeys:
    """The keys of one file. `signing` and `old` stay the same objects when `follow` finds others in it."""

    def __init__(self, path: Path, signing: SigningKey, old: Mapping[str, OldKey]) -> None:
        self.signing = signing
        self.old = dict(old)
        self._path = path
        self._seen = _fingerprint(path)

    def follow(self, now: int) -> bool:
        """Take up what a rotation has written; True if it was one. Raises ConfigError."""
        fingerprint = _fingerprint(self._path)
        if fingerprint == self._seen:
            return False
        found = load(self._path, self.signing.server_name)
        self._seen = fingerprint
        if found.signing.key_id == self.signing.key_id:
            return False
        before = found.old.get(self.signing.key_id)
        if before is None:
            raise ConfigError([f"{self._path}: does not list the key in use as expired; restart to use it"])
        late = before.expired_ts < now
        if late:
            # We have signed with it until now, and what we signed has to verify.
            found.old[self.signing.key_id] = OldKey(before.key, now, before.leaked)
        self.old.update(found.old)
        self.signing.become(found.signing)
        if late:
            with _locked(self._path):
                _write(self._path, found.signing, self.old)
        return True


def generate(path: Path) -> str:
    """Write a new key file of mode 0600 and return its key ID; raises ConfigError if it exists."""
    key = _new_key("", {})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(path):
        if path.exists():
            raise ConfigError([f"{path}: exists; a server that loses its key cannot prove who it is"])
        _write(path, key, {})
    return key.key_id


def load(path: Path, server_name: str) -> OwnKeys:
    """Read a key file; raises ConfigError, also for a key that is predictable (attack K7)."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(
            [f"signing_key_path: {path} cannot be read ({reason}): try lmserver generate-key"]
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError([f"signing_key_path: {path} can be read by others; run chmod 600 {path}"])
    try:
        words = [line.split() for line in lines if line.strip()]
        signing = _signing_key(words[0] if words else [], server_name)
        old = dict(_old_key(line) for line in words[1:])
        if len(old) != len(words) - 1 or signing.key_id in old:
            raise ValueError
    except (ValueError, ProtocolError) as error:
        raise ConfigError(
            [f"signing_key_path: {path} is not a key file, or its key is not random: lmserver generate-key"]
        ) from error
    return OwnKeys(path, signing, old)


def rotate(path: Path, now: int, *, leaked: bool) -> tuple[str, str]:
    """Put a new key into the file and list the one in it as expired; the key IDs, old and new.

    Raises ConfigError. `leaked` says that others have the old key.
    """
    with _locked(path):
        keys = load(path, "")
        before = keys.signing
        keys.old[before.key_id] = OldKey(before.verify_key, now + GRACE_MS, leaked)
        new = _new_key("", keys.old)
        _write(path, new, keys.old)
    return before.key_id, new.key_id


# -- the file ---------------------------------------------------------------------------------------


def _new_key(server_name: str, taken: Mapping[str, OldKey]) -> SigningKey:
    while True:
        key_id = "ed25519:a_" + os.urandom(3).hex()
        if key_id not in taken:
            return SigningKey.from_seed(server_name, key_id, os.urandom(32))


def _signing_key(words: Sequence[str], server_name: str) -> SigningKey:
    if len(words) != 3:
        raise ValueError
    seed = unpadded_base64.decode(words[2])
    if len(seed) != 32 or len(set(seed)) < 8:
        raise ValueError
    return SigningKey.from_seed(server_name, _key_id(words), seed)


def _old_key(words: Sequence[str]) -> tuple[str, OldKey]:
    if len(words) != 5 or words[0] not in _RETIRED:
        raise ValueError
    key = VerifyKey.from_base64(words[3])
    return _key_id(words[1:]), OldKey(key, int(words[4]), words[0] == "leaked")


def _key_id(words: Sequence[str]) -> str:
    if words[0] != "ed25519":
        raise ValueError
    return ids.check_key_id(f"ed25519:{words[1]}")


def _text(signing: SigningKey, old: Mapping[str, OldKey]) -> str:
    lines = [f"{signing.key_id.replace(':', ' ')} {unpadded_base64.encode(signing.seed)}"]
    for key_id, key in old.items():
        word, public = _RETIRED[key.leaked], unpadded_base64.encode(key.key.key_bytes)
        lines.append(f"{word} {key_id.replace(':', ' ')} {public} {key.expired_ts}")
    return "\n".join(lines) + "\n"


def _write(path: Path, signing: SigningKey, old: Mapping[str, OldKey]) -> None:
    """Replace the file. A temporary file left by a crash is of no use to anybody and goes."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    if os.geteuid() == 0 and path.exists():
        # Root rotates the key of a server that runs as somebody else.
        owner = path.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_text(signing, old))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, whatever the process. Raises ConfigError when there is no folder."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError([f"signing_key_path: {path.parent}: {error.strerror}"]) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _fingerprint(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)
