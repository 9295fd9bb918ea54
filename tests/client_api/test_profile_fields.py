"""Profile fields beside name and avatar (CS API §Profiles), here and as other servers see them."""

from __future__ import annotations

from typing import Any

from tests.kit.client_api import NAME, V3, Api

ALICE = f"{V3}/profile/@alice:{NAME}"


VALUES: list[Any] = ["Europe/Rome", None, 5, True, [1, {"a": []}], {"x": "\u00fc"}]


async def test_a_field_is_kept_shown_and_removed(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    for value in VALUES:
        await api.call("PUT", f"{ALICE}/displayname", {"displayname": "Alice"}, token)
        assert (await api.call("GET", f"{ALICE}/m.tz"))[0] == 404
        assert await api.call("PUT", f"{ALICE}/m.tz", {"m.tz": value}, token) == (200, {})
        assert await api.call("GET", f"{ALICE}/m.tz") == (200, {"m.tz": value})
        assert await api.call("GET", ALICE) == (200, {"displayname": "Alice", "m.tz": value})
        for _ in range(2):
            assert await api.call("DELETE", f"{ALICE}/m.tz", token=token) == (200, {})
        assert (await api.call("GET", f"{ALICE}/m.tz"))[0] == 404
        assert await api.call("DELETE", f"{ALICE}/displayname", token=token) == (200, {})
        assert await api.call("GET", ALICE) == (200, {})


WRONG: list[Any] = [
    ("shoe_size", {"shoe_size": 5}, 400, "M_INVALID_PARAM"),
    ("M.tz", {"M.tz": 5}, 400, "M_INVALID_PARAM"),
    ("m.t" + "z" * 300, {}, 400, "M_KEY_TOO_LARGE"),
    ("m.tz", {}, 400, "M_MISSING_PARAM"),
    ("displayname", {}, 400, "M_MISSING_PARAM"),
    ("m.tz", {"m.tz": 0.5}, 400, "M_BAD_JSON"),
    ("m.tz", {"m.tz": 2**53}, 400, "M_BAD_JSON"),
    ("m.tz", {"m.tz": "x" * 65536}, 400, "M_PROFILE_TOO_LARGE"),
]


async def test_fields_that_cannot_be(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    for field, body, status, errcode in WRONG:
        answer = await api.call("PUT", f"{ALICE}/{field}", body, token)
        assert (answer[0], answer[1]["errcode"]) == (status, errcode)


async def test_a_whole_profile_is_bounded_and_anothers_is_not_ones_own(api: Api) -> None:
    token = (await api.register("alice"))["access_token"]
    other = (await api.register("bob"))["access_token"]
    for number in range(6):
        status, _ = await api.call("PUT", f"{ALICE}/org.x{number}", {f"org.x{number}": "y" * 10_000}, token)
        assert status == 200
    status, answer = await api.call("PUT", f"{ALICE}/org.x6", {"org.x6": "y" * 10_000}, token)
    assert (status, answer["errcode"]) == (400, "M_PROFILE_TOO_LARGE")
    assert (await api.call("PUT", f"{ALICE}/org.x0", {"org.x0": "y"}, token))[0] == 200
    for method in ("PUT", "DELETE"):
        status, answer = await api.call(method, f"{ALICE}/org.x0", {"org.x0": 1}, other)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")


async def test_member_events_say_nothing_of_further_fields(api: Api) -> None:
    alice = await api.register("alice")
    token = alice["access_token"]
    await api.call("PUT", f"{ALICE}/m.tz", {"m.tz": "Europe/Rome"}, token)
    room = (await api.call("POST", f"{V3}/createRoom", {}, token))[1]["room_id"]
    path = f"{V3}/rooms/{room}/state/m.room.member/{alice['user_id']}"
    assert await api.call("GET", path, token=token) == (200, {"membership": "join", "displayname": "alice"})


UNANSWERABLE: list[Any] = ['{"a": 1' + "0" * 40 + "}", '{"a": "\\ud800"}', '{"\\udc00": 1}']


async def test_json_we_could_not_answer_with_is_refused(api: Api) -> None:
    alice = await api.register("alice")
    headers = {"Authorization": f"Bearer {alice['access_token']}"}
    path = f"{V3}/user/{alice['user_id']}/account_data/x"
    for raw in UNANSWERABLE:
        async with api.http.request("PUT", path, data=raw, headers=headers) as response:
            assert (response.status, (await response.json())["errcode"]) == (400, "M_BAD_JSON")
