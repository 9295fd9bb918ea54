"""Publishing cross-signing keys and signatures (CS API §Cross-signing)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.cross_signing import CrossSigning, Refused, Unconfirmed
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.client_api.key_shapes import check_canonical
from lmserver.protocol import cross_signing, ids
from lmserver.protocol.cross_signing import USAGES, BadKey, CrossSigningKey
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json

MAX_SIGNATURES = 500
"""Signatures of one request: each costs a verification."""


class CrossSigningEndpoints:
    """Cross-signing keys of the user, and what the user signs."""

    def __init__(self, keys: CrossSigning, interaction: UserInteraction) -> None:
        self._keys = keys
        self._interaction = interaction

    @endpoint("POST", "/_matrix/client/v3/keys/device_signing/upload",
              "/_matrix/client/unstable/keys/device_signing/upload",
              auth=Auth.USER, suspended=True)  # fmt: skip
    async def upload(self, request: Request) -> dict[str, Any]:
        """Publish cross-signing keys; to replace some the user proves again who they are (MSC3967)."""
        body, user_id = await request.json(), request.requester.user_id
        keys = _keys(body, user_id)
        try:
            try:
                await self._keys.upload(user_id, keys, confirmed=False)
            except Unconfirmed:
                await self._interaction.confirm(request, body)
                await self._keys.upload(user_id, keys, confirmed=True)
        except Refused as refused:
            status = 403 if refused.errcode == "M_FORBIDDEN" else 400
            raise ApiError(status, refused.errcode, refused.reason) from None
        return {}

    @endpoint("POST", "/_matrix/client/v3/keys/signatures/upload",
              "/_matrix/client/unstable/keys/signatures/upload", auth=Auth.USER, suspended=True)  # fmt: skip
    async def sign(self, request: Request) -> dict[str, Any]:
        """Publish signatures over own devices and keys, and over other users' master keys."""
        wanted = _signed(await request.json())
        refused = await self._keys.sign(request.requester.user_id, wanted)
        return {
            "failures": {
                user_id: {key: {"errcode": r.errcode, "error": r.reason} for key, r in of_user.items()}
                for user_id, of_user in refused.items()
            }
        }


def _keys(body: dict[str, Any], user_id: str) -> list[CrossSigningKey]:
    keys = []
    for usage in USAGES:
        name = f"{usage}_key"
        value = body.get(name)
        if value is None:
            continue
        check_canonical(value, name)
        try:
            keys.append(cross_signing.parse(value, user_id, usage))
        except BadKey as error:
            raise ApiError(400, "M_INVALID_PARAM", str(error)) from None
    return keys


def _signed(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """User ID to device ID or public key to the signed object."""
    for user_id, objects in body.items():
        if not ids.is_user_id(user_id) or not isinstance(objects, dict):
            raise bad_json("Signatures are given by user and key")
        for key, value in objects.items():
            if "\0" in key or not isinstance(value, dict):
                raise bad_json("Signatures are given by user and key")
            check_canonical(value, "a signed object")
    if sum(map(len, body.values())) > MAX_SIGNATURES:
        raise bad_json(f"At most {MAX_SIGNATURES} signatures at once")
    return body
