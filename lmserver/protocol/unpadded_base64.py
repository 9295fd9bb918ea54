"""Base64 without padding, one text per value (D04 §Unpadded Base64).

Python's decoder skips characters it does not know and ignores stray trailing bits, so many texts
would mean the same bytes; hashes and signatures that compare as text need exactly one.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64encode

from lmserver.protocol.errors import InvalidBase64


def encode(data: bytes) -> str:
    """The standard alphabet, without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode("ascii")


def encode_urlsafe(data: bytes) -> str:
    """The URL-safe alphabet, without padding (event IDs)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The bytes of a text in the standard alphabet, with the exact padding or none.

    Raises InvalidBase64 for any other character, wrong padding and non-zero trailing bits.
    """
    bare = text.rstrip("=")
    padding = "=" * (-len(bare) % 4)
    if text not in (bare, bare + padding):
        raise InvalidBase64("base64 padding is wrong")
    try:
        data = binascii.a2b_base64((bare + padding).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidBase64("not base64") from error
    if encode(data) != bare:
        raise InvalidBase64("base64 is not canonical")
    return data
