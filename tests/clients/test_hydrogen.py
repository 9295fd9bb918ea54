"""Hydrogen, unmodified from npm, in headless Chromium on two federated servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.clients.node import Node
from tests.clients.pictures import lighthouse
from tests.kit.processes import ServerProcess

ARTEFACTS = Path(__file__).parent.parent / "artefacts"
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


def test_a_browser_joins_reads_and_writes_in_a_room_of_another_server(
    servers: tuple[ServerProcess, ServerProcess], node: Node, chromium: str, tmp_path: Path
) -> None:
    """The screenshot is kept in tests/artefacts."""
    ARTEFACTS.mkdir(exist_ok=True)
    screenshot = ARTEFACTS / "hydrogen.png"
    screenshot.unlink(missing_ok=True)
    answer = node.run(
        "hydrogen.mjs",
        servers=[server.client_url for server in servers],
        names=[server.name for server in servers],
        picture=lighthouse(),
        chromium=chromium,
        profile=str(tmp_path / "profile"),
        screenshot=str(screenshot),
    )
    assert screenshot.read_bytes().startswith(b"\x89PNG")
    asked = "\n".join(answer["paths"])
    assert "/_matrix/client/r0/sync" in asked
    assert f"/_matrix/client/v1/media/thumbnail/{quote(servers[0].name)}/" in asked
