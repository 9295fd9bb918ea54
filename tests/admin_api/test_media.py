"""Media through the admin API."""

from __future__ import annotations

from typing import Any

from yarl import URL

from lmserver.storage import media
from lmserver.storage.media import Content
from tests.admin_api.conftest import ALICE, BOB, V1, V2, AdminApi
from tests.kit.client_api import NAME, V3

MEDIA = f"{V1}/media"
NOBODY = f"@nobody:{NAME}"

# (method, path, body, status, errcode)
TABLE: list[tuple[str, str, Any, int, str]] = [
    *[(method, f"{MEDIA}{path}", {}, 404, "M_NOT_FOUND") for method, path in (
        ("POST", f"/quarantine/{NAME}/none"), ("POST", f"/unquarantine/{NAME}/none"), ("POST", "/protect/none"),
        ("POST", "/unprotect/none"), ("DELETE", f"/{NAME}/none"), ("DELETE", "/elsewhere.test/none"))],
    ("POST", f"{MEDIA}/quarantine/a%20b/x", {}, 400, "M_INVALID_PARAM"),
    ("POST", f"{MEDIA}/quarantine/{NAME}/%00", {}, 400, "M_INVALID_PARAM"),
    ("POST", f"{MEDIA}/protect/%00", {}, 400, "M_INVALID_PARAM"),
    ("POST", f"{MEDIA}/delete", {}, 400, "M_MISSING_PARAM"),
    ("POST", f"{MEDIA}/delete?before_ts=x", {}, 400, "M_INVALID_PARAM"),
    ("POST", f"{MEDIA}/delete?before_ts=1&keep_profiles=x", {}, 400, "M_INVALID_PARAM"),
    ("POST", f"{V1}/purge_media_cache", {}, 400, "M_MISSING_PARAM"),
    ("GET", f"{V1}/users/{NOBODY}/media", None, 404, "M_NOT_FOUND"),
    ("DELETE", f"{V1}/users/{NOBODY}/media", None, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/user/{NOBODY}/media/quarantine", {}, 404, "M_NOT_FOUND"),
    ("GET", f"{V1}/room/!none:{NAME}/media", None, 404, "M_NOT_FOUND"),
    ("POST", f"{V1}/room/!none:{NAME}/media/quarantine", {}, 404, "M_NOT_FOUND"),
]  # fmt: skip


async def test_wrong_requests_are_told_what_is_wrong(admin: AdminApi) -> None:
    for method, path, body, status, errcode in TABLE:
        found, answer = await admin.call(method, path, body)
        assert (found, answer.get("errcode")) == (status, errcode), (method, path, body, answer)


async def upload(admin: AdminApi, token: str, data: bytes) -> str:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/plain"}
    async with admin.clients.http.post("/_matrix/media/v3/upload", data=data, headers=headers) as response:
        return str((await response.json())["content_uri"]).rsplit("/", 1)[1]


async def status_of(admin: AdminApi, media_id: str) -> int:
    url = URL(f"/_matrix/client/v1/media/download/{NAME}/{media_id}")
    async with admin.clients.http.get(url, headers={"Authorization": f"Bearer {admin.alice}"}) as response:
        return response.status


async def test_media_are_listed_hidden_protected_and_deleted(admin: AdminApi) -> None:
    one, two = [await upload(admin, admin.alice, data) for data in (b"one", b"two two")]
    listed = await admin.ok("GET", f"{V1}/users/{ALICE}/media?limit=1")
    assert (listed["total"], listed["next_token"], listed["media"][0]["media_length"]) == (2, 1, 7)
    await admin.ok("POST", f"{MEDIA}/quarantine/{NAME}/{one}", {})
    assert (await status_of(admin, one), await status_of(admin, two)) == (404, 200)
    await admin.ok("POST", f"{MEDIA}/unquarantine/{NAME}/{one}", {})
    await admin.ok("POST", f"{MEDIA}/protect/{one}", {})
    assert (await admin.ok("POST", f"{V1}/user/{ALICE}/media/quarantine", {})) == {"num_quarantined": 1}
    await admin.ok("POST", f"{MEDIA}/quarantine/{NAME}/{one}", {})
    assert (await status_of(admin, one), await status_of(admin, two)) == (200, 404)
    shown = {m["media_id"]: m for m in (await admin.ok("GET", f"{V1}/users/{ALICE}/media"))["media"]}
    assert shown[one]["safe_from_quarantine"] and shown[two]["quarantined_by"]
    await admin.ok("POST", f"{MEDIA}/unprotect/{one}", {})
    assert await admin.ok("DELETE", f"{MEDIA}/{NAME}/{one}") == {"deleted_media": [one], "total": 1}
    assert await status_of(admin, one) == 404
    assert (await admin.ok("DELETE", f"{V1}/users/{ALICE}/media"))["total"] == 1


async def test_media_of_a_room(admin: AdminApi) -> None:
    media_id = await upload(admin, admin.bob, b"picture")
    _, room = await admin.clients.call("POST", f"{V3}/createRoom", {}, admin.bob)
    path = f"{V3}/rooms/{room['room_id']}/send/m.room.message"
    contents = [
        {"url": f"mxc://{NAME}/{media_id}", "info": {"thumbnail_url": "mxc://elsewhere.test/small"}},
        {"url": "mxc://a b/x"}, {"url": 5, "info": "mxc://"}, {"url": f"mxc://{NAME}/{media_id}"},
    ]  # fmt: skip
    for n, content in enumerate(contents):
        await admin.clients.call("PUT", f"{path}/{n}", {"body": '"mxc://', **content}, admin.bob)
    found = await admin.ok("GET", f"{V1}/room/{room['room_id']}/media")
    assert found == {"local": [f"mxc://{NAME}/{media_id}"], "remote": ["mxc://elsewhere.test/small"]}
    hidden = await admin.ok("POST", f"{V1}/room/{room['room_id']}/media/quarantine", {})
    assert hidden == {"num_quarantined": 1} and await status_of(admin, media_id) == 404


async def test_old_and_large_media_are_deleted_but_for_avatars(admin: AdminApi) -> None:
    small, large, avatar = [await upload(admin, admin.bob, data) for data in (b"x", b"y" * 100, b"z" * 100)]
    await admin.ok("PUT", f"{V2}/users/{BOB}", {"avatar_url": f"mxc://{NAME}/{avatar}"})
    later = 2**45
    assert (await admin.ok("POST", f"{MEDIA}/delete?before_ts=1", {}))["total"] == 0
    gone = await admin.ok("POST", f"{MEDIA}/delete?before_ts={later}&size_gt=50", {})
    assert gone == {"deleted_media": [large], "total": 1}
    assert (await status_of(admin, small), await status_of(admin, avatar)) == (200, 200)
    gone = await admin.ok("POST", f"{MEDIA}/delete?before_ts={later}&keep_profiles=false", {})
    assert sorted(gone["deleted_media"]) == sorted([small, avatar])


async def test_copies_of_other_servers_media_go(admin: AdminApi) -> None:
    content = Content(b"\0" * 32, 5, "text/plain", None)
    for name in ("old", "new"):
        await media.cache(admin.server.db, "elsewhere.test", name, content, 10 if name == "old" else 5000)
    assert await admin.ok("POST", f"{V1}/purge_media_cache?before_ts=1000", {}) == {"deleted": 1}
    await admin.ok("POST", f"{MEDIA}/quarantine/elsewhere.test/new", {})
    hidden = await media.cached(admin.server.db, "elsewhere.test", "new")
    assert hidden is not None and hidden.quarantined
    await admin.ok("DELETE", f"{MEDIA}/elsewhere.test/new")
