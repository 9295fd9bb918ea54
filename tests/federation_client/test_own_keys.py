"""The file of our own keys: made, rotated and followed, whatever happens half-way."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from lmserver import own_keys
from lmserver.config import ConfigError
from lmserver.own_keys import GRACE_MS
from lmserver.protocol.signatures import check_json_signature, sign_json

NAME = "us.test"
NOW = 1_700_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "signing.key"
    own_keys.generate(path)
    return path


def test_a_rotation_makes_a_new_key_and_keeps_the_public_half_of_the_old(path: Path) -> None:
    before = own_keys.load(path, NAME)
    assert own_keys.rotate(path, NOW, leaked=False)[0] == before.signing.key_id
    after = own_keys.load(path, NAME)
    assert after.signing.key_id != before.signing.key_id and after.signing.seed != before.signing.seed
    old = after.old[before.signing.key_id]
    assert (old.key, old.expired_ts, old.leaked) == (before.signing.verify_key, NOW + GRACE_MS, False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_key_there_ever_was_is_kept(path: Path) -> None:
    made = [own_keys.load(path, NAME).signing.key_id]
    made += [own_keys.rotate(path, NOW + n, leaked=n == 3)[1] for n in range(5)]
    keys = own_keys.load(path, NAME)
    assert [*keys.old, keys.signing.key_id] == made
    assert [old.leaked for old in keys.old.values()] == [False, False, False, True, False]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_crash_half_way_leaves_the_old_keys(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "replace") if step == "replace" else (os, step)), crash)
        with pytest.raises(KeyboardInterrupt):
            own_keys.rotate(path, NOW, leaked=False)
    assert path.read_bytes() == before
    new = own_keys.rotate(path, NOW, leaked=False)[1]
    assert own_keys.load(path, NAME).signing.key_id == new
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_rotations_at_the_same_time_follow_each_other(path: Path) -> None:
    threads = [threading.Thread(target=own_keys.rotate, args=(path, NOW), kwargs={"leaked": False})
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(own_keys.load(path, NAME).old) == 8


def test_whoever_holds_the_key_follows_a_rotation(path: Path) -> None:
    keys = own_keys.load(path, NAME)
    held, listed = keys.signing, keys.old
    assert not keys.follow(NOW)
    old, new = own_keys.rotate(path, NOW, leaked=False)
    assert keys.follow(NOW + 500) and not keys.follow(NOW + 500)
    assert held is keys.signing and held.key_id == new and list(listed) == [old]
    check_json_signature(sign_json({"a": 1}, held), NAME, {new: held.verify_key})


def test_a_key_counts_until_it_was_no_longer_used(path: Path) -> None:
    """A server that noticed late has signed with the old key until then."""
    keys = own_keys.load(path, NAME)
    old, _ = own_keys.rotate(path, NOW, leaked=True)
    late = NOW + GRACE_MS + 5_000
    assert keys.follow(late)
    assert keys.old[old].expired_ts == own_keys.load(path, NAME).old[old].expired_ts == late
    assert keys.old[old].leaked
    assert not keys.follow(late)


def test_a_file_that_forgot_the_key_in_use_is_not_followed(path: Path) -> None:
    keys = own_keys.load(path, NAME)
    in_use = keys.signing.key_id
    path.unlink()
    own_keys.generate(path)
    with pytest.raises(ConfigError, match="does not list the key in use"):
        keys.follow(NOW)
    assert keys.signing.key_id == in_use


@pytest.mark.parametrize(
    "line",
    [
        "expired ed25519 b AAAA 5",
        "expired ed25519 b AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 soon",
        "expired rsa b AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 5",
        "gone ed25519 b AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 5",
        "expired ed25519 a AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 5",
        "ed25519 b AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
    ],
)
def test_a_damaged_file_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_text(f"ed25519 a AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n{line}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        own_keys.load(path, NAME)
