"""`federation.notaries`: servers whose word we take for keys of servers that cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lmserver.protocol import ids
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.signatures import VerifyKey

MAX_NOTARIES: Final = 5


@dataclass(frozen=True, slots=True)
class Notary:
    """With `keys` (by key ID) only answers signed with one of those count, else with any it publishes."""

    name: str
    keys: Mapping[str, VerifyKey] = field(default_factory=dict)


def read_notaries(value: object, problems: list[str]) -> tuple[Notary, ...]:
    """A list of names, or of mappings with `name` and `keys`; what is wrong is added to `problems`."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_NOTARIES:
        problems.append(f"federation.notaries: expected a list of at most {MAX_NOTARIES} servers")
        return ()
    found = [_notary(item, problems) for item in value]
    return tuple(notary for notary in found if notary is not None)


def _notary(item: object, problems: list[str]) -> Notary | None:
    entry: dict[Any, Any] = item if isinstance(item, dict) else {"name": item}
    name, keys = entry.get("name"), entry.get("keys")
    if set(entry) - {"name", "keys"} or not isinstance(name, str) or not ids.is_server_name(name):
        problems.append("federation.notaries: an entry is a server name, or has a name and keys")
        return None
    if keys is None:
        return Notary(name)
    try:
        pinned = {ids.check_key_id(i): VerifyKey.from_base64(key) for i, key in dict(keys).items()}
    except (ProtocolError, TypeError, ValueError, AttributeError):
        pinned = {}
    if not pinned:
        problems.append(f"federation.notaries: keys of {name}: expected key IDs with unpadded base64 keys")
        return None
    return Notary(name, pinned)
