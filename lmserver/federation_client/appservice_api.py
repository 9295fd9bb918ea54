"""What we ask of application services (AS API §Pushing events, §Querying, §Ping)."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from lmserver.config_appservices import AppService
from lmserver.federation_client.errors import FederationError
from lmserver.federation_client.web_client import WebAnswer, WebClient

SECONDS: Final = 30.0
QUERY_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 * 1024
V1: Final = "/_matrix/app/v1"


class AppServiceApi:
    """Requests to services. The token goes in the header and, for old ones, in the query."""

    def __init__(self, web: WebClient) -> None:
        self._web = web

    async def send(self, service: AppService, txn_id: int, body: bytes) -> int:
        """PUT a transaction; the status. Raises FederationError."""
        return (await self._ask(service, "PUT", f"/transactions/{txn_id}", body, SECONDS)).status

    async def knows_user(self, service: AppService, user_id: str) -> bool:
        """Whether there is such a user, whom the service has made then; an error means no."""
        return await self._knows(service, f"/users/{quote(user_id, safe='')}")

    async def knows_alias(self, service: AppService, alias: str) -> bool:
        return await self._knows(service, f"/rooms/{quote(alias, safe='')}")

    async def _knows(self, service: AppService, path: str) -> bool:
        try:
            return (await self._ask(service, "GET", path, None, QUERY_SECONDS)).status == 200
        except FederationError:
            return False

    async def ping(self, service: AppService, body: bytes) -> WebAnswer:
        """Raises FederationError."""
        return await self._ask(service, "POST", "/ping", body, QUERY_SECONDS)

    async def _ask(
        self, service: AppService, method: str, path: str, body: bytes | None, seconds: float
    ) -> WebAnswer:
        url = f"{service.url}{V1}{path}?{urlencode({'access_token': service.hs_token})}"
        headers = {"Authorization": f"Bearer {service.hs_token}", "Content-Type": "application/json"}
        return await self._web.request(
            method, url, headers=headers, body=body, seconds=seconds, max_answer=MAX_ANSWER
        )
