"""Media: listed, hidden, deleted (as Synapse's media admin API has it)."""

from __future__ import annotations

from typing import Any

from lmserver.admin_api import parameters as p
from lmserver.admin_api.paging import next_token
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.admin_api.rooms import known
from lmserver.media.administration import MediaAdministration
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.administration import RoomAdministration
from lmserver.storage import accounts
from lmserver.storage.database import Executor
from lmserver.storage.media import LocalMedium
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, not_found

MEDIA = SYNAPSE + "/v1/media"
ONE = "/{server_name}/{media_id}"
MAX_MEDIA_ID = 255


def _media_id(request: Request) -> str:
    value = request.params["media_id"]
    if not value or len(value) > MAX_MEDIA_ID or "\0" in value:
        raise bad_param("media_id is not valid")
    return value


class MediaEndpoints:
    """What an operator does with one medium, ours or a copy of another server's."""

    def __init__(self, our_name: str, media: MediaAdministration) -> None:
        self._our_name = our_name
        self._media = media

    @endpoint("POST", MEDIA + "/quarantine" + ONE, auth=Auth.ADMIN)
    async def hide(self, request: Request) -> JsonObject:
        """Give a medium to nobody; one that is protected stays as it is."""
        server, media_id = await self._known(request)
        await self._media.hide(server, media_id, hidden=True)
        return {}

    @endpoint("POST", MEDIA + "/unquarantine" + ONE, auth=Auth.ADMIN)
    async def show(self, request: Request) -> JsonObject:
        """Give a hidden medium to those who ask for it again."""
        server, media_id = await self._known(request)
        await self._media.hide(server, media_id, hidden=False)
        return {}

    @endpoint("POST", MEDIA + "/protect/{media_id}", auth=Auth.ADMIN)
    async def protect(self, request: Request) -> JsonObject:
        """Keep one of our media from being hidden."""
        return await self._protect(request, protected=True)

    @endpoint("POST", MEDIA + "/unprotect/{media_id}", auth=Auth.ADMIN)
    async def unprotect(self, request: Request) -> JsonObject:
        """Let one of our media be hidden with others."""
        return await self._protect(request, protected=False)

    async def _protect(self, request: Request, *, protected: bool) -> JsonObject:
        if not await self._media.protect(_media_id(request), protected=protected):
            raise not_found("Media not found")
        return {}

    @endpoint("DELETE", MEDIA + ONE, auth=Auth.ADMIN)
    async def delete(self, request: Request) -> JsonObject:
        """Delete one of our media, or the copy of another server's, which is fetched again when asked for."""
        server, media_id = await self._known(request)
        await self._media.delete(server, media_id)
        return {"deleted_media": [media_id], "total": 1}

    async def _known(self, request: Request) -> tuple[str, str]:
        server, media_id = p.server(request), _media_id(request)
        if not await self._media.is_known(server, media_id):
            raise not_found("Media not found")
        return server, media_id


class ManyMediaEndpoints:
    """What an operator does with the media of a user, of a room, or of long ago."""

    def __init__(
        self, db: Executor, our_name: str, media: MediaAdministration, rooms: RoomAdministration
    ) -> None:
        self._db = db
        self._our_name = our_name
        self._media = media
        self._rooms = rooms

    @endpoint("GET", SYNAPSE + "/v1/users/{user_id}/media", auth=Auth.ADMIN)
    async def of_user(self, request: Request) -> JsonObject:
        """What a user has uploaded in pages, the newest first."""
        user_id, start, limit = await self._user(request), p.number(request, "from", 0), p.limit(request)
        found, total = await self._media.of_user(user_id, start, limit)
        more = next_token(start, limit, total, int)
        return {"media": [_shown(*entry) for entry in found], "total": total, **more}

    @endpoint("DELETE", SYNAPSE + "/v1/users/{user_id}/media", auth=Auth.ADMIN)
    async def delete_of_user(self, request: Request) -> JsonObject:
        """Delete one page of what a user has uploaded, the newest."""
        user_id, start, limit = await self._user(request), p.number(request, "from", 0), p.limit(request)
        gone = await self._media.delete_of_user(user_id, start, limit)
        return {"deleted_media": gone, "total": len(gone)}

    @endpoint("POST", SYNAPSE + "/v1/user/{user_id}/media/quarantine", auth=Auth.ADMIN)
    async def hide_of_user(self, request: Request) -> JsonObject:
        """Hide everything a user has uploaded, but for what is protected."""
        return {"num_quarantined": await self._media.hide_of_user(await self._user(request))}

    @endpoint("GET", SYNAPSE + "/v1/room/{room_id}/media", auth=Auth.ADMIN, at_once=1)
    async def of_room(self, request: Request) -> JsonObject:
        """Media in the newest messages of a room, ours and others'; encrypted ones tell nothing."""
        local, remote = await self._in_room(request)
        return {
            "local": [f"mxc://{server}/{media_id}" for server, media_id in local],
            "remote": [f"mxc://{server}/{media_id}" for server, media_id in remote],
        }

    @endpoint("POST", SYNAPSE + "/v1/room/{room_id}/media/quarantine", auth=Auth.ADMIN, at_once=1)
    async def hide_of_room(self, request: Request) -> JsonObject:
        """Hide the media in the newest messages of a room that are here and not protected."""
        local, remote = await self._in_room(request)
        hidden = [await self._media.hide(*medium, hidden=True) for medium in (*local, *remote)]
        return {"num_quarantined": sum(hidden)}

    async def _in_room(self, request: Request) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        found = await known(self._rooms.media(p.room_id(request)))
        return (
            [medium for medium in found if medium[0] == self._our_name],
            [medium for medium in found if medium[0] != self._our_name],
        )

    @endpoint("POST", MEDIA + "/delete", auth=Auth.ADMIN, at_once=1)
    async def delete_unused(self, request: Request) -> JsonObject:
        """Delete uploads not asked for since `before_ts` and larger than `size_gt`, a thousand at most; ask
        again while there are that many. Avatars of users stay unless `keep_profiles` is false."""
        before = p.needed_number(request, "before_ts")
        larger = p.number(request, "size_gt", 0)
        keep = p.flag(request, "keep_profiles") is not False
        gone = await self._media.delete_unused(before, larger, keep_avatars=keep)
        return {"deleted_media": gone, "total": len(gone)}

    @endpoint("POST", SYNAPSE + "/v1/purge_media_cache", auth=Auth.ADMIN, at_once=1)
    async def purge_copies(self, request: Request) -> JsonObject:
        """Delete copies of other servers' media not asked for since `before_ts`."""
        return {"deleted": await self._media.purge_copies(p.needed_number(request, "before_ts"))}

    async def _user(self, request: Request) -> str:
        user_id = p.user_id(request, self._our_name)
        if await accounts.get(self._db, user_id) is None:
            raise not_found("User not found")
        return user_id


def _shown(medium: LocalMedium, protected: bool) -> dict[str, Any]:
    content = medium.content
    return {
        "media_id": medium.media_id,
        "created_ts": medium.created_ts,
        "last_access_ts": medium.used_ts,
        "media_length": None if content is None else content.size,
        "media_type": None if content is None else content.content_type,
        "upload_name": None if content is None else content.filename,
        "quarantined_by": "an administrator" if content is not None and content.quarantined else None,
        "safe_from_quarantine": protected,
    }
