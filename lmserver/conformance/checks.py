"""All checks, in the order they run: importing a file of checks registers them."""

from __future__ import annotations

from lmserver.conformance import checks_auth, checks_keys, checks_transport
from lmserver.conformance.model import CHECKS

_FILES = [module.__name__ for module in (checks_transport, checks_keys, checks_auth)]
ALL = sorted(CHECKS, key=lambda check: _FILES.index(check.function.__module__))
