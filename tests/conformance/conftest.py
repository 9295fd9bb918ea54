"""The server under test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmserver.federation_client import destination_sender
from lmserver.storage.database import Database
from tests.conformance.subject import Subject


@pytest.fixture
async def subject(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    """An lmserver that tries again soon."""
    monkeypatch.setattr(destination_sender, "FIRST_BACKOFF_MS", 50)
    made = Subject(db, tmp_path)
    await made.start()
    yield made
    await made.stop()
