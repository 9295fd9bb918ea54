"""The commands for what only an operator can decide, as operators call them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from lmserver.cli import main
from lmserver.protocol.room_versions import LM_02
from lmserver.storage import destinations
from lmserver.storage.database import Database
from tests.kit.engines import engine_kit
from tests.kit.rooms import BOB, HUB, PARTICIPANT, ROOM, lpdu, member, opening


@pytest.fixture
async def config(database_url: str, db: Database, tmp_path: Path) -> Path:
    """A server with one room that it shares with another server, which has failed it once."""
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    await kit.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    await kit.engine.close()
    lease = await destinations.take_lease(db, PARTICIPANT, "us", 1, 2)
    assert lease is not None
    await destinations.failed(
        db, PARTICIPANT, lease.fence, 3, 1_800_000_000_000, 1_700_000_000_000, "status 413"
    )
    path = tmp_path / "lmserver.yaml"
    path.write_text(
        yaml.safe_dump({"server_name": HUB, "data_dir": str(tmp_path), "database": {"url": database_url}}),
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    "command",
    [
        "held-rooms",
        "release-room",
        "mark-restored",
        "destinations",
        "skip-transaction",
        "registration-token",
        "send-notice",
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: lmserver " + command in capsys.readouterr().out


async def run(config: Path, *arguments: str) -> int:
    return await asyncio.to_thread(main, [*arguments, "--config", str(config)])


async def test_a_restored_database_is_marked_and_its_rooms_released(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(config, "held-rooms") == 0
    assert await run(config, "mark-restored") == 0
    assert "1 rooms held" in capsys.readouterr().out
    assert await run(config, "held-rooms") == 1
    assert f"{ROOM} restored" in capsys.readouterr().out
    assert await run(config, "release-room") == 2
    assert await run(config, "release-room", "!other:hub.test") == 1
    assert await run(config, "release-room", ROOM) == 0
    assert await run(config, "held-rooms") == 0
    assert await run(config, "release-room", "--all") == 0


async def test_servers_that_take_nothing_are_listed_with_the_reason(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(config, "destinations") == 1
    line = capsys.readouterr().out
    assert line.startswith(f"{PARTICIPANT} since 2023-11-14T22:13:20+00:00, tried 3 times")
    assert "status 413 [transaction none]" in line
    assert await run(config, "skip-transaction", PARTICIPANT) == 1
    assert await run(config, "skip-transaction", "never.test") == 1


async def test_registration_tokens_are_made_listed_and_deleted(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(config, "registration-token", "create", "--uses", "2", "--days", "0.5") == 0
    made = capsys.readouterr().out.strip()
    assert len(made) >= 16
    assert await run(config, "registration-token", "create", "party") == 0
    assert await run(config, "registration-token", "create", "party") == 1
    assert await run(config, "registration-token", "create", "a b") == 1
    assert await run(config, "registration-token", "create", "--days", "0") == 1
    assert await run(config, "registration-token", "create", "--uses", "-1") == 1
    capsys.readouterr()
    assert await run(config, "registration-token", "list") == 0
    newest, oldest = capsys.readouterr().out.splitlines()
    assert newest == "party used 0 of any number of times"
    assert oldest.startswith(f"{made} used 0 of 2 times, until ")
    assert await run(config, "registration-token", "list", "--json") == 0
    assert '"valid": true' in capsys.readouterr().out
    assert await run(config, "registration-token", "delete") == 2
    assert await run(config, "registration-token", "delete", made) == 0
    assert await run(config, "registration-token", "delete", made) == 1


@pytest.mark.parametrize("days", ["nan", "-1", "inf", "1e300", "soon"])
@pytest.mark.parametrize("command", [["registration-token", "create"], ["media", "purge"]])
def test_days_that_are_none_are_refused(
    command: list[str], days: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--config", "none.yaml", f"--days={days}"])
    assert ended.value.code == 2
    assert "is not a number of days from 0 to 36500" in capsys.readouterr().err


def test_the_commands_for_tokens_in_the_documents_are_understood(tmp_path: Path) -> None:
    """An optional word after an option is not read by argparse."""
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    calls = [words[1:] for words in lines if words[:2] == ["lmserver", "registration-token"]]
    assert len(calls) == 3
    for call in calls:
        assert main([str(tmp_path / "none.yaml") if word == "FILE" else word for word in call]) == 1
