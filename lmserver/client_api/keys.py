"""Publishing, querying and claiming encryption keys, and messages to devices (CS API §End-to-End
Encryption, §Send-to-Device messaging)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lmserver.accounts.device_data import DeviceStore, KeyConflict, TooManyKeys
from lmserver.accounts.remote import RemoteKeys
from lmserver.client_api import key_shapes as shapes
from lmserver.protocol import ids
from lmserver.rooms.sync.key_changes import KeyChanges
from lmserver.rooms.sync.tokens import BadToken, SyncToken, parse_sync
from lmserver.storage.e2e_keys import Claim
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, missing_param, user_suspended

MAX_USERS = 2_000
MAX_CLAIMS = 5_000
DEFAULT_TIMEOUT_MS = 10_000
MAX_TIMEOUT_MS = 20_000
REMOTE_SECTIONS = ("device_keys", "master_keys", "self_signing_keys", "one_time_keys")


class RemoteUsers(Protocol):
    """Keys of users of other servers, asked of all those servers within some seconds."""

    async def query(self, wanted: Mapping[str, Mapping[str, Any]], seconds: float) -> RemoteKeys: ...

    async def claim(self, wanted: Mapping[str, Mapping[str, Any]], seconds: float) -> RemoteKeys: ...


class KeyEndpoints:
    """Keys of devices, as far as a server has to know them."""

    def __init__(
        self, store: DeviceStore, our_name: str, remote: RemoteUsers, key_changes: KeyChanges
    ) -> None:
        self._key_changes = key_changes
        self._store = store
        self._our_name = our_name
        self._remote = remote

    @endpoint("POST", "/_matrix/client/v3/keys/upload", auth=Auth.USER, suspended=True)
    async def upload(self, request: Request) -> dict[str, Any]:
        """Publish this device's keys."""
        body = await request.json()
        user_id, device_id = request.requester.user_id, request.requester.device_id
        if not device_id:
            raise ApiError(400, "M_UNKNOWN_DEVICE", "An application service names the device in device_id")
        device_keys = body.get("device_keys")
        if "device_keys" in body:
            shapes.check_device_keys(device_keys, user_id, device_id)
        one_time, fallback = shapes.keys(body, "one_time_keys"), shapes.keys(body, "fallback_keys")
        try:
            counts = await self._store.upload(user_id, device_id, device_keys, one_time, fallback)
        except KeyConflict:
            raise ApiError(
                400, "M_INVALID_PARAM", "A one-time key exists already with another value"
            ) from None
        except TooManyKeys:
            raise ApiError(400, "M_INVALID_PARAM", "The device has too many one-time keys here") from None
        return {"one_time_key_counts": {"signed_curve25519": 0, **counts}}

    @endpoint("POST", "/_matrix/client/v3/keys/query", auth=Auth.USER, suspended=True)
    async def query(self, request: Request) -> dict[str, Any]:
        """Device keys of users, here and elsewhere; what is no user ID has none, and the others are told."""
        body = await request.json()
        wanted, seconds = body.get("device_keys"), _seconds(body)
        if not isinstance(wanted, dict) or len(wanted) > MAX_USERS:
            raise bad_json(f"device_keys is an object of at most {MAX_USERS} users")
        answer: dict[str, Any] = {
            "device_keys": {},
            "master_keys": {},
            "self_signing_keys": {},
            "user_signing_keys": {},
            "failures": {},
        }
        here: dict[str, list[str]] = {}
        elsewhere: dict[str, dict[str, list[str]]] = {}
        for user_id, devices in wanted.items():
            names = devices if isinstance(devices, list) else []
            if not all(isinstance(n, str) and "\0" not in n for n in names):
                raise bad_json("device_keys maps user IDs to lists of device IDs")
            if not ids.is_user_id(user_id):
                continue  # clients ask of whoever their rooms name
            server = ids.server_of(user_id)
            if server == self._our_name:
                here[user_id] = names
            else:
                elsewhere.setdefault(server, {})[user_id] = names
        await self._query_local(request.requester.user_id, here, answer)
        found = await self._remote.query(elsewhere, seconds)
        for sections in found.answers.values():
            await self._store.add_own_signatures(request.requester.user_id, sections.get("master_keys", {}))
        _merge(answer, found)
        return answer

    async def _query_local(self, asking: str, wanted: dict[str, list[str]], answer: dict[str, Any]) -> None:
        answer["device_keys"] |= await self._store.query(wanted)
        for usage, keys in (await self._store.cross_signing(wanted, asking)).items():
            answer[f"{usage}_keys"] |= keys

    @endpoint("GET", "/_matrix/client/v3/keys/changes", auth=Auth.USER)
    async def changes(self, request: Request) -> dict[str, Any]:
        """Whose devices changed between two sync tokens, as /sync tells it."""
        since = _token(request, "from")
        if since is None:
            raise missing_param("from is missing")
        user_id = request.requester.user_id
        found = await self._key_changes.between(user_id, since, _token(request, "to"))
        return {"changed": sorted(found.changed), "left": sorted(found.left)}

    @endpoint("POST", "/_matrix/client/v3/keys/claim", auth=Auth.USER, rate="claim", suspended=True)
    async def claim(self, request: Request) -> dict[str, Any]:
        """Take one-time keys of devices; each is handed out once."""
        body = await request.json()
        wanted, seconds = body.get("one_time_keys"), _seconds(body)
        if not isinstance(wanted, dict) or len(wanted) > MAX_USERS:
            raise bad_json(f"one_time_keys is an object of at most {MAX_USERS} users")
        answer: dict[str, Any] = {"one_time_keys": {}, "failures": {}}
        here: list[Claim] = []
        elsewhere: dict[str, dict[str, dict[str, str]]] = {}
        for user_id, devices in wanted.items():
            shapes.check_claim(user_id, devices)
            server = ids.server_of(user_id)
            if server == self._our_name:
                here += [Claim(user_id, device_id, algorithm) for device_id, algorithm in devices.items()]
            else:
                elsewhere.setdefault(server, {})[user_id] = devices
        if (
            len(here) > MAX_CLAIMS
            or sum(len(d) for users in elsewhere.values() for d in users.values()) > MAX_CLAIMS
        ):
            raise bad_json(f"At most {MAX_CLAIMS} keys are claimed at once")
        answer["one_time_keys"] |= await self._store.claim(request.requester.user_id, here)
        _merge(answer, await self._remote.claim(elsewhere, seconds))
        return answer

    @endpoint(
        "PUT", "/_matrix/client/v3/sendToDevice/{type}/{txn_id}", auth=Auth.USER, rate="send", suspended=True
    )
    async def send_to_device(self, request: Request) -> dict[str, Any]:
        """Send messages to devices, once for each transaction ID."""
        messages = (await request.json()).get("messages")
        if not isinstance(messages, dict) or len(messages) > MAX_USERS:
            raise bad_json(f"messages is an object of at most {MAX_USERS} users")
        for user_id, by_device in messages.items():
            shapes.check_messages(user_id, by_device)
        txn_id = request.params["txn_id"]
        type_ = request.params["type"]
        if not txn_id or len(txn_id) > 255 or "\0" in txn_id or len(type_) > 255:
            raise bad_param("The transaction ID or type is not valid")
        sender, device_id = request.requester.user_id, request.requester.device_id
        if request.requester.suspended and set(messages) - {sender}:
            raise user_suspended()  # their own devices they may still verify
        await self._store.send(sender, device_id, txn_id, type_, messages)
        return {}


def _token(request: Request, name: str) -> SyncToken | None:
    text = request.query.get(name)
    try:
        return None if text is None else parse_sync(text)
    except BadToken:
        raise bad_param(f"{name} is not a token") from None


def _merge(answer: dict[str, Any], found: RemoteKeys) -> None:
    """What other servers say of their own users; a server that did not answer is a failure."""
    for server in found.failed:
        answer["failures"][server] = {}
    for sections in found.answers.values():
        for name, section in sections.items():
            if name in REMOTE_SECTIONS and name in answer:
                answer[name] |= section


def _seconds(body: dict[str, Any]) -> float:
    """How long other servers are waited for: `timeout`, milliseconds."""
    timeout = body.get("timeout", DEFAULT_TIMEOUT_MS)
    if type(timeout) is not int or timeout < 0:
        raise bad_json("timeout is a number of milliseconds")
    return min(timeout, MAX_TIMEOUT_MS) / 1000
