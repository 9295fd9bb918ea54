"""Fixtures of the drills."""

from __future__ import annotations

from tests.federation_client.conftest import loopback

__all__ = ["loopback"]
