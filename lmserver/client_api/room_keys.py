"""Backing up room keys (CS API §Server-side key backups)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeGuard

import orjson

from lmserver.accounts.key_backups import (
    BackupFull,
    KeyBackups,
    NoBackup,
    OtherAlgorithm,
    WrongVersion,
)
from lmserver.client_api.key_shapes import check_canonical
from lmserver.protocol import ids
from lmserver.storage.key_backups import BackedUpKey, Backup
from lmserver.web.endpoint import Auth, Request, Streamed, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, missing_param, not_found, too_large

VERSIONS = "/_matrix/client/v3/room_keys/version"
KEYS = "/_matrix/client/v3/room_keys/keys"
MAX_BODY = 8 * 1024 * 1024
MAX_KEYS_AT_ONCE = 10_000
MAX_SESSION_DATA = 16 * 1024
MAX_TEXT = 255
MAX_COUNT = 2**53 - 1
BLOCK = 64 * 1024
_JSON = {"Content-Type": "application/json"}


class RoomKeyEndpoints:
    """Versions of the user's backup, and the keys in them."""

    def __init__(self, backups: KeyBackups) -> None:
        self._backups = backups

    # -- versions -------------------------------------------------------------------------------

    @endpoint("POST", VERSIONS, auth=Auth.USER, suspended=True)
    async def create(self, request: Request) -> dict[str, Any]:
        """Begin a new backup, which is the current one from now on."""
        algorithm, auth_data = _backup(await request.json())
        try:
            version = await self._backups.create(request.requester.user_id, algorithm, auth_data)
        except BackupFull:
            raise ApiError(403, "M_FORBIDDEN", "Too many backups were made") from None
        return {"version": str(version)}

    @endpoint("GET", VERSIONS, auth=Auth.USER)
    async def current(self, request: Request) -> dict[str, Any]:
        """The current backup."""
        return await self._shown(request, None)

    @endpoint("GET", VERSIONS + "/{version}", auth=Auth.USER)
    async def get(self, request: Request) -> dict[str, Any]:
        """A backup by its version."""
        return await self._shown(request, _version(request.params["version"]))

    async def _shown(self, request: Request, version: int | None) -> dict[str, Any]:
        try:
            backup = await self._backups.get(request.requester.user_id, version)
        except NoBackup:
            raise _no_backup() from None
        return {
            "version": str(backup.version),
            "algorithm": backup.algorithm,
            "auth_data": orjson.loads(backup.auth_data),
            **_state(backup),
        }

    @endpoint("PUT", VERSIONS + "/{version}", auth=Auth.USER, suspended=True)
    async def update(self, request: Request) -> dict[str, Any]:
        """New `auth_data` for a backup; nothing else of it changes."""
        body = await request.json()
        algorithm, auth_data = _backup(body)
        text = request.params["version"]
        if body.get("version", text) != text:
            raise bad_param("The version is not that of the path")
        try:
            await self._backups.update(request.requester.user_id, _version(text), algorithm, auth_data)
        except NoBackup:
            raise _no_backup() from None
        except OtherAlgorithm:
            raise bad_param("The algorithm is not that of the backup") from None
        return {}

    @endpoint("DELETE", VERSIONS + "/{version}", auth=Auth.USER, suspended=True)
    async def delete(self, request: Request) -> dict[str, Any]:
        """Delete a backup with its keys."""
        try:
            await self._backups.delete(request.requester.user_id, _version(request.params["version"]))
        except NoBackup:
            raise _no_backup() from None
        return {}

    # -- keys -----------------------------------------------------------------------------------

    @endpoint("PUT", KEYS, auth=Auth.USER, max_body=MAX_BODY, at_once=2, suspended=True)
    async def put_all(self, request: Request) -> dict[str, Any]:
        """Store keys of several rooms."""
        rooms = (await request.json()).get("rooms")
        if not isinstance(rooms, dict):
            raise bad_json("rooms is an object")
        return await self._put(request, [k for room_id, room in rooms.items() for k in _room(room_id, room)])

    @endpoint("PUT", KEYS + "/{room_id}", auth=Auth.USER, max_body=MAX_BODY, at_once=2, suspended=True)
    async def put_room(self, request: Request) -> dict[str, Any]:
        """Store keys of one room."""
        return await self._put(request, _room(request.params["room_id"], await request.json()))

    @endpoint("PUT", KEYS + "/{room_id}/{session_id}", auth=Auth.USER, suspended=True)
    async def put_session(self, request: Request) -> dict[str, Any]:
        """Store the key of one session."""
        room_id, session_id = request.params["room_id"], request.params["session_id"]
        return await self._put(request, _room(room_id, {"sessions": {session_id: await request.json()}}))

    async def _put(self, request: Request, keys: list[BackedUpKey]) -> dict[str, Any]:
        if len(keys) > MAX_KEYS_AT_ONCE:
            raise bad_json(f"At most {MAX_KEYS_AT_ONCE} keys at once")
        try:
            backup = await self._backups.put_keys(request.requester.user_id, _wanted(request), keys)
        except NoBackup:
            raise _no_backup() from None
        except WrongVersion as wrong:
            current = {"current_version": str(wrong.current)}
            raise ApiError(
                403, "M_WRONG_ROOM_KEYS_VERSION", "This is not the current backup", current
            ) from None
        except BackupFull:
            raise ApiError(413, "M_TOO_LARGE", "The backups hold too many keys") from None
        return _state(backup)

    @endpoint("GET", KEYS, auth=Auth.USER, at_once=2)
    async def get_all(self, request: Request) -> Streamed:
        """All keys, by room."""
        keys = await self._keys(request, None)
        return Streamed(_rooms(keys), None, _JSON)

    @endpoint("GET", KEYS + "/{room_id}", auth=Auth.USER, at_once=2)
    async def get_room(self, request: Request) -> Streamed:
        """The keys of a room; none is no error."""
        keys = await self._keys(request, request.params["room_id"])
        return Streamed(_sessions(keys), None, _JSON)

    async def _keys(self, request: Request, room_id: str | None) -> AsyncIterator[BackedUpKey]:
        user_id, version = request.requester.user_id, _wanted(request)
        try:
            await self._backups.get(user_id, version)
        except NoBackup:
            raise _no_backup() from None
        if room_id is not None and not ids.is_room_id(room_id):
            raise bad_param("The room ID is not valid")
        return self._backups.keys(user_id, version, room_id)

    @endpoint("GET", KEYS + "/{room_id}/{session_id}", auth=Auth.USER)
    async def get_session(self, request: Request) -> dict[str, Any]:
        """The key of a session."""
        room_id, session_id = _session(request)
        try:
            key = await self._backups.key(request.requester.user_id, _wanted(request), room_id, session_id)
        except NoBackup:
            raise _no_backup() from None
        if key is None:
            raise not_found("No such key")
        return {**_shown(key), "session_data": orjson.loads(key.session_data)}

    @endpoint("DELETE", KEYS, auth=Auth.USER, suspended=True)
    async def delete_all(self, request: Request) -> dict[str, Any]:
        """Delete all keys of a backup."""
        return await self._delete(request)

    @endpoint("DELETE", KEYS + "/{room_id}", auth=Auth.USER, suspended=True)
    async def delete_room(self, request: Request) -> dict[str, Any]:
        """Delete the keys of a room."""
        if not ids.is_room_id(request.params["room_id"]):
            raise bad_param("The room ID is not valid")
        return await self._delete(request, request.params["room_id"])

    @endpoint("DELETE", KEYS + "/{room_id}/{session_id}", auth=Auth.USER, suspended=True)
    async def delete_session(self, request: Request) -> dict[str, Any]:
        """Delete the key of a session."""
        return await self._delete(request, *_session(request))

    async def _delete(self, request: Request, *what: str) -> dict[str, Any]:
        try:
            return _state(await self._backups.delete_keys(request.requester.user_id, _wanted(request), *what))
        except NoBackup:
            raise _no_backup() from None


def _no_backup() -> ApiError:
    return not_found("No such backup")


def _state(backup: Backup) -> dict[str, Any]:
    return {"count": backup.key_count, "etag": str(backup.etag)}


def _version(text: str) -> int:
    """A version as we gave it out; what we never did is not found."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _no_backup()
    return int(text)


def _wanted(request: Request) -> int:
    text = request.query.get("version")
    if text is None:
        raise missing_param("version is missing")
    return _version(text)


def _session(request: Request) -> tuple[str, str]:
    room_id, session_id = request.params["room_id"], request.params["session_id"]
    if not ids.is_room_id(room_id) or not _is_text(session_id):
        raise bad_param("The room or session ID is not valid")
    return room_id, session_id


def _backup(body: dict[str, Any]) -> tuple[str, bytes]:
    algorithm, auth_data = body.get("algorithm"), body.get("auth_data")
    if not _is_text(algorithm) or not isinstance(auth_data, dict):
        raise bad_json("A backup has an algorithm and auth_data")
    check_canonical(auth_data, "auth_data")
    return algorithm, orjson.dumps(auth_data)


def _room(room_id: str, room: object) -> list[BackedUpKey]:
    sessions = room.get("sessions") if isinstance(room, dict) else None
    if not ids.is_room_id(room_id) or not isinstance(sessions, dict):
        raise bad_json("Keys are given by room and session")
    return [_parsed(room_id, session_id, key) for session_id, key in sessions.items()]


def _parsed(room_id: str, session_id: str, key: object) -> BackedUpKey:
    if not _is_text(session_id) or not isinstance(key, dict):
        raise bad_json("Keys are given by room and session")
    index, forwarded = key.get("first_message_index"), key.get("forwarded_count")
    verified, data = key.get("is_verified"), key.get("session_data")
    if not (_is_count(index) and _is_count(forwarded) and type(verified) is bool and isinstance(data, dict)):
        raise bad_json("A key has first_message_index, forwarded_count, is_verified and session_data")
    encoded = orjson.dumps(data)
    if len(encoded) > MAX_SESSION_DATA:
        raise too_large()
    return BackedUpKey(room_id, session_id, index, forwarded, verified, encoded)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and "\0" not in value


def _shown(key: BackedUpKey) -> dict[str, Any]:
    return {
        "first_message_index": key.first_message_index,
        "forwarded_count": key.forwarded_count,
        "is_verified": key.is_verified,
        "session_data": orjson.Fragment(key.session_data),
    }


async def _rooms(keys: AsyncIterator[BackedUpKey]) -> AsyncGenerator[bytes, None]:
    """The document of all rooms, as the keys come."""
    block, room_id = bytearray(b'{"rooms":{'), ""
    async for key in keys:
        if key.room_id != room_id:
            block += b"}}," if room_id else b""
            room_id = key.room_id
            block += orjson.dumps(room_id) + b':{"sessions":{'
        else:
            block += b","
        block += _member(key)
        if len(block) > BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block) + (b"}}}}" if room_id else b"}}")


async def _sessions(keys: AsyncIterator[BackedUpKey]) -> AsyncGenerator[bytes, None]:
    """The document of one room."""
    block, first = bytearray(b'{"sessions":{'), True
    async for key in keys:
        block += _member(key) if first else b"," + _member(key)
        first = False
        if len(block) > BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block) + b"}}"


def _member(key: BackedUpKey) -> bytes:
    return orjson.dumps(key.session_id) + b":" + orjson.dumps(_shown(key))
