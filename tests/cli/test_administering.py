"""The commands for users, rooms, media, reports and other servers, as operators call them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lmserver.accounts.passwords import Passwords
from lmserver.cli import main
from lmserver.storage import accounts, blocked_servers, media, reports, room_purges
from lmserver.storage.database import Database
from lmserver.storage.media import Content
from lmserver.storage.reports import Report
from tests.cli.test_operating import config, run
from tests.kit.rooms import HUB, PARTICIPANT, ROOM

__all__ = ["config"]
CAROL = f"@carol:{HUB}"


@pytest.mark.parametrize("command", ["user", "room", "media", "report", "destination"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: lmserver " + command in capsys.readouterr().out


async def test_users(
    config: Path, db: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def typing(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))

    typing("a long password")
    assert await run(config, "user", "create", "carol", "--admin") == 0
    assert (await accounts.get(db, CAROL)).displayname == "carol"  # type: ignore[union-attr]
    typing("short")
    assert await run(config, "user", "create", "dave") == 1
    typing("a long password")
    assert await run(config, "user", "create", "carol") == 1
    assert await run(config, "user", "list", "car") == 0
    assert f"{CAROL} made " in (out := capsys.readouterr().out) and "[administrator]" in out
    for action, locked in (("lock", True), ("unlock", False)):
        assert await run(config, "user", action, "carol") == 0
        assert (await accounts.get(db, CAROL)).locked is locked  # type: ignore[union-attr]
    for action, marked in (("suspend", True), ("unsuspend", False)):
        assert await run(config, "user", action, "carol") == 0
        assert await run(config, "user", "list", "car") == 0
        assert ("[suspended]" in capsys.readouterr().out) is marked
    await accounts.add_device(db, CAROL, "D", None)
    assert await run(config, "user", "revoke", CAROL) == 0
    assert "1 logins ended" in capsys.readouterr().out
    typing("another password")
    assert await run(config, "user", "reset-password", "carol") == 0
    account, passwords = await accounts.get(db, CAROL), Passwords()
    assert account is not None and await passwords.check(account.password_hash, "another password")
    passwords.close()
    assert await run(config, "user", "deactivate", "carol") == 0
    assert (await accounts.get(db, CAROL)).deactivated  # type: ignore[union-attr]
    for action in ("deactivate", "lock", "revoke"):
        assert await run(config, "user", action, "nobody") == 1
    assert await run(config, "user", "lock") == 2
    assert await run(config, "user", "lock", "@carol:elsewhere.test") == 1


async def test_rooms(config: Path, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(config, "room", "list") == 0
    assert f"{ROOM} " in (out := capsys.readouterr().out) and f"hub {HUB}, 2 members" in out
    assert await run(config, "room", "list", "nothing like it", "--json") == 0
    assert capsys.readouterr().out == ""
    assert await run(config, "room", "block", ROOM) == 0
    assert await room_purges.is_closed(db, ROOM)
    assert await run(config, "room", "inspect", ROOM) == 0
    shown = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert (shown["hub_server"], shown["blocked"], len(shown["members"])) == (HUB, True, 2)
    assert await run(config, "room", "unblock", ROOM) == 0
    assert await run(config, "room", "unblock", ROOM) == 1
    assert await run(config, "room", "purge", ROOM, "--force") == 0
    assert await run(config, "room", "purge", ROOM) == 1
    [purge] = await room_purges.active(db, 10)
    assert (purge.room_id, purge.forced) == (ROOM, True)
    for action in ("inspect", "purge"):
        assert await run(config, "room", action, f"!none:{HUB}") == 1
    assert await run(config, "room", "purge") == 2
    assert await run(config, "room", "block", "no room") == 1


async def test_media(config: Path, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    content = Content(b"\0" * 32, 5, "text/plain", None)
    for media_id in ("one", "two"):
        await media.announce(db, media_id, CAROL, 1)
        await media.fill(db, media_id, content)
    await media.cache(db, PARTICIPANT, "copy", content, 1)
    await media.cache(db, PARTICIPANT, "copy2", content, 1)
    assert await run(config, "media", "quarantine", f"mxc://{HUB}/one") == 0
    assert await run(config, "media", "list", "carol") == 0
    out = capsys.readouterr().out
    assert f"mxc://{HUB}/one 5 bytes" in out and out.count("[hidden]") == 1
    assert await run(config, "media", "unquarantine", f"mxc://{HUB}/one") == 0
    assert await run(config, "media", "quarantine", f"mxc://{PARTICIPANT}/copy") == 0
    for gone in (f"mxc://{HUB}/one", f"mxc://{PARTICIPANT}/copy"):
        assert await run(config, "media", "delete", gone) == 0
        assert await run(config, "media", "delete", gone) == 1
    assert await run(config, "media", "purge", "--days", "1", "--copies") == 0
    assert await run(config, "media", "purge", "--days", "1") == 0
    assert capsys.readouterr().out.count("1 media deleted") == 2
    with pytest.raises(SystemExit):
        await run(config, "media", "purge", "--days", "-1")
    for wrong in (("purge",), ("delete", "one"), ("list",)):
        assert await run(config, "media", *wrong) == 2


async def test_reports(config: Path, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    number = str(await reports.file(db, Report(CAROL, "room", ROOM, None, None, "loud", None, 5)))
    assert await run(config, "report", "list") == 0
    assert f'{CAROL} reports the room {ROOM}: "loud"' in capsys.readouterr().out
    assert await run(config, "report", "show", number) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "loud"
    assert await run(config, "report", "dismiss", number) == 0
    for wrong in (number, "x", "-1"[1:] + "9" * 30):
        assert await run(config, "report", "dismiss", wrong) == 1


async def test_destinations(config: Path, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(config, "destination", "list") == 0
    assert f"{PARTICIPANT} fails since 2023-" in capsys.readouterr().out
    assert await run(config, "destination", "retry", PARTICIPANT) == 0
    assert await run(config, "destination", "retry", "none.test") == 1
    assert await run(config, "destination", "block", PARTICIPANT, "--reason", "spam") == 0
    assert [b.reason for b in await blocked_servers.listed(db, 10)] == ["spam"]
    assert await run(config, "destination", "blocked") == 0
    assert f"{PARTICIPANT} by the command line" in capsys.readouterr().out
    assert await run(config, "destination", "unblock", PARTICIPANT) == 0
    assert await run(config, "destination", "unblock", PARTICIPANT) == 1
    assert await run(config, "destination", "block", "a b") == 1
