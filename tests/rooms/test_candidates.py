"""Which servers are asked about a room elsewhere, and what is made of their refusals."""

from __future__ import annotations

from typing import Any

import pytest

from lmserver.federation_client.errors import BadResponse, RemoteError, Unreachable
from lmserver.protocol.errors import UnknownRoomVersion
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.candidates import MAX_ASKED, Candidates, ask, candidates
from lmserver.rooms.outcomes import MembershipError
from lmserver.storage import outside
from lmserver.storage.outside import OutsideMembership

US = "us.test"


def invite(**changes: Any) -> OutsideMembership:
    create = {"type": "m.room.create", "state_key": "", "sender": "@c:creator.test", "content": {}}
    fields = {
        "user_id": f"@u:{US}", "room_id": "!r:room.test", "membership": "invite", "hub_server": "inviting.test",
        "sender": "@i:inviter.test", "room_version": "I.1", "event": b"{}", "event_id": "$e",
        "stripped_state": outside.encode_state([create]), **changes,
    }  # fmt: skip
    return OutsideMembership(**fields)


def drained(servers: Candidates) -> list[str]:
    found = []
    while (server := servers.next()) is not None:
        found.append(server)
    return found


def test_the_order_is_who_told_us_then_the_rules_then_guesses() -> None:
    servers = candidates(US, "!r:room.test", invite(), None, ["via.test", "inviter.test"])
    assert drained(servers) == ["inviting.test", "creator.test", "room.test", "inviter.test", "via.test"]
    assert drained(candidates(US, "!r:room.test", None, "hub.test", [])) == ["hub.test", "room.test"]


def test_nobody_is_asked_twice_nor_we_ourselves_nor_more_than_a_few() -> None:
    via = ["room.test", US, "127.0.0.1", "not a name", "", *(f"s{n}.test" for n in range(100))]
    asked = drained(candidates(US, "!r:room.test", invite(sender=f"@i:{US}"), None, via))
    assert asked[:3] == ["inviting.test", "creator.test", "room.test"]
    assert len(asked) == MAX_ASKED == len(set(asked))
    assert US not in asked


async def test_a_hub_that_is_named_is_asked_next_and_names_cannot_keep_us_going() -> None:
    asked = []

    async def attempt(server: str) -> None:
        asked.append(server)
        raise RemoteError(400, "M_WRONG_SERVER", "", hub=f"hop{len(asked)}.test")

    with pytest.raises(MembershipError):
        await ask(Candidates(US, ["a.test", "b.test"]), attempt)
    assert asked == ["a.test", *(f"hop{n}.test" for n in range(1, MAX_ASKED))]
    asked.clear()

    async def circle(server: str) -> None:
        asked.append(server)
        raise RemoteError(
            400, "M_WRONG_SERVER", "", hub={"a.test": "b.test", "b.test": US}.get(server, "a.test")
        )

    with pytest.raises(MembershipError):
        await ask(Candidates(US, ["a.test"]), circle)
    assert asked == ["a.test", "b.test"]


@pytest.mark.parametrize(
    ("refusals", "told"),
    [
        ([Unreachable("x"), Unreachable("x")], ("M_UNKNOWN", 502)),
        ([RemoteError(403, "M_FORBIDDEN", ""), Unreachable("x")], ("M_FORBIDDEN", 403)),
        ([RemoteError(404, "M_NOT_FOUND", ""), RemoteError(403, "M_FORBIDDEN", "")], ("M_FORBIDDEN", 403)),
        ([RemoteError(404, "M_NOT_FOUND", ""), RemoteError(400, "M_UNKNOWN", "")], ("M_NOT_FOUND", 404)),
        ([RemoteError(429, "M_LIMIT_EXCEEDED", "", 7), BadResponse("x")], ("M_LIMIT_EXCEEDED", 429)),
        ([RemoteError(400, "M_UNSUPPORTED_ROOM_VERSION", "")], ("M_INCOMPATIBLE_ROOM_VERSION", 400)),
        ([UnknownRoomVersion("x"), BadResponse("x")], ("M_INCOMPATIBLE_ROOM_VERSION", 400)),
        # What one peer says of "not the hub": status 400 and an error that means something else.
        ([RemoteError(400, "M_FORBIDDEN", "")], ("M_UNKNOWN", 502)),
        ([RemoteError(500, "", "")], ("M_UNKNOWN", 502)),
    ],
)  # fmt: skip
async def test_the_most_telling_refusal_is_told(refusals: list[Exception], told: tuple[str, int]) -> None:
    waiting = list(refusals)

    async def attempt(server: str) -> None:
        raise waiting.pop(0)

    with pytest.raises(MembershipError) as failed:
        await ask(Candidates(US, [f"s{n}.test" for n in range(len(refusals))]), attempt)
    assert (failed.value.errcode, failed.value.status) == told
    assert waiting == []


async def test_a_room_nobody_can_be_asked_about_is_not_found() -> None:
    """What only we could know, and do not (CS API §POST /join: no 5xx for a mistyped room ID)."""

    async def never(server: str) -> None:
        raise AssertionError(server)

    with pytest.raises(MembershipError) as failed:
        await ask(candidates(US, f"!none:{US}", None, None, []), never)
    assert (failed.value.errcode, failed.value.status) == ("M_NOT_FOUND", 404)


async def test_a_room_of_an_unknown_version_is_refused_with_that_version() -> None:
    """Ours to find out, or told by the hub (CS API §POST /join/{roomIdOrAlias})."""

    async def hub_says(server: str) -> None:
        raise RemoteError(400, "M_INCOMPATIBLE_ROOM_VERSION", "", room_version="X.9")

    async def we_see(server: str) -> None:
        room_version("X.9")

    for attempt in (hub_says, we_see):
        with pytest.raises(MembershipError) as refused:
            await ask(Candidates(US, ["a.test"]), attempt)
        error = refused.value
        assert (error.status, error.errcode, error.room_version) == (
            400, "M_INCOMPATIBLE_ROOM_VERSION", "X.9",
        )  # fmt: skip
