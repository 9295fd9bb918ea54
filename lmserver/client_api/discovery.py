"""What clients ask before and beside everything else."""

from __future__ import annotations

from typing import Any

from lmserver.protocol.room_versions import SUPPORTED
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import not_found

# What a client may rely on: nothing is listed that is not there.
SPEC_VERSIONS = ["r0.6.1", *(f"v1.{minor}" for minor in range(1, 12))]


# What clients look for before they offer it: cross-signing, dehydrated devices, lists of whom one lets
# invite oneself, an end to all invites, sliding sync, and fields of profiles.
UNSTABLE_FEATURES = {
    "org.matrix.e2e_cross_signing": True,
    "org.matrix.msc3814": True,
    "org.matrix.msc4155": True,
    "org.matrix.msc4380": True,
    "org.matrix.msc4380.stable": True,
    "org.matrix.simplified_msc3575": True,
    "uk.tcpip.msc4133.stable": True,
}

MODERATION = {"suspend": True, "lock": True}
"""What operators may do to accounts through their clients."""


class DiscoveryEndpoints:
    """Versions, capabilities, and polite answers for what is not offered."""

    def __init__(self, public_url: str | None, default_version: str) -> None:
        self._public_url = public_url
        self._default_version = default_version

    @endpoint("GET", "/_matrix/client/versions", auth=Auth.NONE)
    async def versions(self, request: Request) -> dict[str, Any]:
        """Supported versions of the specification."""
        return {"versions": SPEC_VERSIONS, "unstable_features": UNSTABLE_FEATURES}

    @endpoint("GET", "/.well-known/matrix/client", auth=Auth.NONE)
    async def well_known(self, request: Request) -> dict[str, Any]:
        """Where the client API is; 404 when it is not configured."""
        if self._public_url is None:
            raise not_found()
        return {"m.homeserver": {"base_url": self._public_url}}

    @endpoint("GET", "/_matrix/client/v3/capabilities", auth=Auth.USER)
    async def capabilities(self, request: Request) -> dict[str, Any]:
        """Capabilities. Every version is called stable, or clients urge to upgrade rooms of the
        version that peers use today."""
        versions = {"default": self._default_version, "available": dict.fromkeys(SUPPORTED, "stable")}
        moderation = {"m.account_moderation": MODERATION} if request.requester.is_admin else {}
        return {
            "capabilities": {
                **moderation,
                "m.room_versions": versions,
                "m.change_password": {"enabled": True},
                "m.set_displayname": {"enabled": True},
                "m.set_avatar_url": {"enabled": True},
                "m.profile_fields": {"enabled": True},
                "m.3pid_changes": {"enabled": False},
                "m.get_login_token": {"enabled": True},
            }
        }

    @endpoint("GET", "/_matrix/client/v3/thirdparty/protocols", auth=Auth.USER)
    async def third_party_protocols(self, request: Request) -> dict[str, Any]:
        """There are no bridges."""
        return {}
