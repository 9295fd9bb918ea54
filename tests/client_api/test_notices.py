"""Server notices: a room for each user, made once, tagged, that cannot be declined."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from lmserver import own_keys
from lmserver.cli import main
from lmserver.rooms.notices import NotSent
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.federation.sites import Person, Site
from tests.kit.rooms import HUB


async def one_site(db: Database, folder: Path, **config: Any) -> Site:
    site = Site(db, Network(), HUB, folder, **config)
    await site.start()
    return site


async def invited(person: Person) -> list[str]:
    return (await person.pending()).get("invite", [])


def bodies(messages: Any) -> list[str]:
    return [e["content"]["body"] for e in messages["chunk"] if e["type"] == "m.room.message"]


async def test_a_user_is_told_in_a_room_that_cannot_be_declined(db: Database, tmp_path: Path) -> None:
    site = await one_site(db, tmp_path)
    try:
        alice, notices = await site.user("alice"), site.server.notices
        # Ignoring the speaker, or wanting no invites at all, changes nothing.
        data = f"/user/{quote(alice.user_id, safe='')}/account_data"
        await alice.ok("PUT", f"{data}/m.invite_permission_config", {"default_action": "block"})
        await asyncio.gather(*(notices.send(alice.user_id, f"notice {n}") for n in range(3)))
        await alice.ok("PUT", f"{data}/m.invite_permission_config", {})
        [room_id] = await invited(alice)
        room = quote(room_id, safe="")
        tags = await alice.ok("GET", f"/user/{quote(alice.user_id, safe='')}/rooms/{room}/tags")
        assert tags["tags"] == {"m.server_notice": {}}
        for _ in range(2):
            status, answer = await alice.room("leave", room_id)
            assert (status, answer["errcode"]) == (403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")
            await alice.act("join", room_id)
        assert sorted(bodies(await alice.ok("GET", f"/rooms/{room}/messages?dir=b"))) == [
            "notice 0", "notice 1", "notice 2",
        ]  # fmt: skip
        path = f"/rooms/{room}/send/m.room.message/1"
        assert (await alice.call("PUT", path, {"msgtype": "m.text", "body": "no"}))[0] == 403
        member = await alice.ok("GET", f"/rooms/{room}/state/m.room.member/{quote(notices.speaker, safe='')}")
        assert member["displayname"] == "Server notices"
        # Nobody logs in as the speaker.
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "notices"},
            "password": "",
        }
        assert (await alice.call("POST", "/login", login))[0] == 403
        for nobody in (f"@none:{HUB}", "@alice:other.test", notices.speaker):
            with pytest.raises(NotSent):
                await notices.send(nobody, "x")
    finally:
        await site.stop()


async def test_who_declined_is_invited_again(db: Database, tmp_path: Path) -> None:
    site = await one_site(db, tmp_path, server_notices={"can_be_declined": True, "localpart": "ops"})
    try:
        alice = await site.user("alice")
        await site.user("bob")
        assert await site.server.notices.send_to_all("first") == 2
        [room_id] = await invited(alice)
        await alice.act("leave", room_id)
        await site.server.notices.send(alice.user_id, "second")
        assert await invited(alice) == [room_id]
        await site.server.accounts.deactivate(f"@bob:{HUB}")
        assert await site.server.notices.send_to_all("third") == 1
    finally:
        await site.stop()


async def test_the_command(
    database_url: str, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "lmserver.yaml"
    raw = {"server_name": HUB, "data_dir": str(tmp_path), "database": {"url": database_url}}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    own_keys.generate(tmp_path / "signing.key")
    site = await one_site(db, tmp_path)
    try:
        alice = await site.user("alice")

        async def run(text: str, *arguments: str) -> int:
            monkeypatch.setattr("sys.stdin", io.StringIO(text))
            return await asyncio.to_thread(main, ["send-notice", *arguments, "--config", str(path)])

        assert await run("down at noon\n", "alice") == 0
        assert f"told {alice.user_id}: $" in capsys.readouterr().out
        assert await run("and back", "--all") == 0
        assert "told 1 users" in capsys.readouterr().out
        assert await run("x", "alice", "nobody") == 1
        assert await run("x", "not a name!") == 1
        assert await run("x") == 2
        assert await run("", "alice") == 2
        [room_id] = await invited(alice)
        await alice.act("join", room_id)
        messages = await alice.ok("GET", f"/rooms/{quote(room_id, safe='')}/messages?dir=f&limit=50")
        assert bodies(messages) == ["down at noon", "and back", "x"]
    finally:
        await site.stop()
