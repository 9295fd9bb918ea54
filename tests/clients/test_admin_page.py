"""The page for operators in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import yaml

from tests.clients.node import Node
from tests.clients.test_hydrogen import ARTEFACTS, chromium
from tests.kit.processes import ServerProcess, lmserver
from tests.kit.users import register
from tests.kit.waiting import eventually

__all__ = ["chromium"]
PASSWORD = "a long password"
ROOMS = ("Harbour walk", "Bread and cakes", "Committee", "Photographs")


async def test_an_operator_looks_after_a_server_in_a_browser(
    servers: tuple[ServerProcess, ServerProcess], node: Node, chromium: str, tmp_path: Path
) -> None:
    """The screenshot is kept in tests/artefacts."""
    hub, participant = servers
    made = lmserver(
        "register-user", "--config", str(hub.config), "--user", "page-operator", "--admin", "--password-stdin",
        stdin=PASSWORD + "\n",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    async with aiohttp.ClientSession() as http:
        maria, jonas = (
            await register(http, hub, "page-maria"),
            await register(http, participant, "page-jonas"),
        )
        for number, name in enumerate(ROOMS):
            host, guest = (jonas, maria) if number % 2 else (maria, jonas)
            room = (await host.ok("POST", "/createRoom", {"name": name, "preset": "public_chat"}))["room_id"]

            async def joined(room: str = room, guest: object = guest, host: object = host) -> bool:
                name = host.server.name  # type: ignore[attr-defined]
                return (await guest.call("POST", f"/join/{room}?server_name={name}", {}))[0] == 200  # type: ignore[attr-defined]

            await eventually(joined)
        await maria.ok("POST", f"/users/{jonas.user_id}/report", {"reason": "He never brings the cake"})
    ARTEFACTS.mkdir(exist_ok=True)
    screenshot = ARTEFACTS / "admin.png"
    screenshot.unlink(missing_ok=True)
    port = yaml.safe_load(hub.config.read_text(encoding="utf-8"))["admin"]["port"]
    answer = node.run(
        "admin.mjs",
        admin=f"http://127.0.0.1:{port}",
        name="page-operator",
        password=PASSWORD,
        user="page-maria",
        chromium=chromium,
        profile=str(tmp_path / "profile"),
        screenshot=str(screenshot),
    )
    texts = answer["texts"]
    assert screenshot.read_bytes().startswith(b"\x89PNG")
    assert maria.user_id in texts["users"]
    assert all(name in texts["rooms"] for name in ROOMS)
    assert hub.name in texts["rooms"] and participant.name in texts["rooms"]
    assert participant.name in texts["destinations"]
    assert "He never brings the cake" in texts["reports"]
    assert "Nothing is held against any hub" in texts["evidence"]
