"""Identifiers by the letter (D04), and nothing that could be read as an address."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol import ids
from lmserver.protocol.errors import InvalidIdentifier

NAME_OF_253 = ".".join(["a" * 63] * 3 + ["b" * 61])

VALID: dict[Callable[[object], bool], list[str]] = {
    ids.is_server_name: [
        "example.org", "example.org:5678", "EVIL.org", "localhost", "localhost:8448", "a", "3com.com", "xn--e1afmkfd.org",
        "a--b.org", "127.0.0.1.example", "0x7f.example", "a.0x7g", "e.org:0080", "e.org:65535", NAME_OF_253, "0x7f-1",
    ],
    ids.is_user_id: ["@alice:example.org", "@watch/for/slashes:example.org", "@a.b=c_d+e-1:e.org:80"],
    ids.is_room_id: ["!abc:example.org", "!A-b.c~d_9:example.org:8448"],
    ids.is_room_alias: ["#room:example.org", "#a room/\u00e9\U0001f600#@!:example.org"],
    ids.is_event_id: ["$nKHVqt3iyLA_HEE8lT1yUaaVjjBRR-fAqpN4t7opadc", "$a"],
    ids.is_key_id: ["ed25519:1", "ed25519:abc_1", "ed25519:a_RXGa", "curve25519:X"],
    ids.is_room_version: ["1", "I.1", "org.matrix.i-d.ralston-mimi-linearized-matrix.02", "a" * 128],
    ids.is_device_id: ["ABCDEFGHIJ", "a b:c+d=", "~", "x" * 255],
}  # fmt: skip

INVALID: dict[Callable[[object], bool], list[object]] = {
    ids.is_server_name: [
        "", ".", "a..b", ".a", "localhost.", "example.org.", "example.org.:80", "-a.org", "a-.org", "a_b.org", "a b.org",
        "127.0.0.1", "127.0.0.1:80", "127.1", "0x7f.1", "0x7f000001", "0X7F.0.0.0x1", "2130706433", "017700000001", "0x",
        "1", "0", "1.2.3.4.5", "a.1", "[::1]", "[::1]:80", "::1", "fe80::1%eth0", "e.org:", "e.org:65536", "e.org:123456",
        "e.org:-1", "e.org:+1", "e.org: 1", "e.org:\u0661", "e.org:80:80", "e.org\n", "e.org:80\n", "\u00e9.org",
        "\u2460\u2461\u2466.\u2460", "\uff11\uff12\uff17.1", "e\u3002org", "a" * 64 + ".org", "a" + ".a" * 128,
        "e.org/x", "e.org?x", "u@e.org", "e.org\0", "e.org#", "e%2eorg", None, 5, b"example.org", ["example.org"],
    ],
    ids.is_user_id: [
        "", "@", "@:e.org", "@a", "@a:", "a:e.org", "@A:e.org", "@a b:e.org", "@a:127.0.0.1", "@a\0:e.org", "@\u00e9:e.org",
        "@a:e.org\n", "@a\n:e.org", "!a:e.org", "@" + "a" * 250 + ":e.org", "@a:b:e.org", None, 1,
    ],
    ids.is_room_id: ["!:e.org", "!a", "!a+b:e.org", "!a\0:e.org", "!a/b:e.org", "@a:e.org", "!" + "a" * 250 + ":e.org", {}],
    ids.is_room_alias: ["#:e.org", "#a", "#a\0:e.org", "#a\n:e.org", "#\ud800:e.org", "a:e.org", "#" + "a" * 250 + ":e.org"],
    ids.is_event_id: ["$", "a", "$a+b", "$a/b", "$a=", "$a:e.org", "$a\n", "$" + "a" * 255, "$\u00e9", None],
    ids.is_key_id: ["", "ed25519", "ed25519:", ":1", "ed25519:a-b", "ed25519:a:b", "ed25519:\u0661", "ed25519:1\n", None],
    ids.is_room_version: ["", "a" * 129, "a_b", "a b", "\u0661", "1\n", 1, None],
    ids.is_device_id: ["", "a/b", "a\n", "\0", "\x7f", "\u00e9", "x" * 256, None],
}  # fmt: skip


@pytest.mark.parametrize(("is_valid", "value"), [(f, v) for f, values in VALID.items() for v in values])
def test_valid(is_valid: Callable[[object], bool], value: str) -> None:
    assert is_valid(value)


@pytest.mark.parametrize(("is_valid", "value"), [(f, v) for f, values in INVALID.items() for v in values])
def test_invalid(is_valid: Callable[[object], bool], value: object) -> None:
    assert not is_valid(value)


@pytest.mark.parametrize("kind", ["server_name", "user_id", "room_id", "room_alias", "event_id", "key_id"])
def test_check_returns_or_raises(kind: str) -> None:
    is_valid, check = getattr(ids, f"is_{kind}"), getattr(ids, f"check_{kind}")
    for value in VALID[is_valid]:
        assert check(value) == value
    for wrong in INVALID[is_valid]:
        with pytest.raises(InvalidIdentifier):
            check(wrong)


@given(st.text("0123456789xXabf.", min_size=1, max_size=16))
def test_no_server_name_is_an_address_to_the_resolver(name: str) -> None:
    try:
        socket.inet_aton(name)
    except OSError:
        return
    assert not ids.is_server_name(name)


def test_parts() -> None:
    assert ids.server_of("@a:e.org:80") == "e.org:80"
    assert ids.localpart_of("@a/b:e.org:80") == "a/b"
    for part in (ids.server_of, ids.localpart_of):
        with pytest.raises(InvalidIdentifier):
            part("@alice")


def test_length_limit_is_255_characters() -> None:
    assert ids.is_user_id("@" + "a" * (255 - 7) + ":e.org")
    assert not ids.is_user_id("@" + "a" * (256 - 7) + ":e.org")
