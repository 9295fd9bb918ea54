"""All checks, in the order they run: importing a file of checks registers them."""

from __future__ import annotations

from lmserver.conformance import (
    checks_auth,
    checks_busy,
    checks_devices,
    checks_events,
    checks_hub,
    checks_invited,
    checks_join,
    checks_keys,
    checks_lpdu,
    checks_membership,
    checks_participant,
    checks_receive,
    checks_redactions,
    checks_requests,
    checks_rules,
    checks_send,
    checks_transport,
)
from lmserver.conformance.model import CHECKS

_IN_ORDER = (
    checks_busy, checks_transport, checks_keys, checks_auth,
    checks_join, checks_hub, checks_lpdu, checks_send, checks_rules, checks_redactions,
    checks_membership, checks_events,
    checks_participant, checks_receive, checks_invited, checks_devices, checks_requests,
)  # fmt: skip
_FILES = [module.__name__ for module in _IN_ORDER]
ALL = sorted(CHECKS, key=lambda check: _FILES.index(check.function.__module__))
