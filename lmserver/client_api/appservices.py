"""What application services ask about themselves (AS API §Pinging)."""

from __future__ import annotations

import time
from typing import Any

import orjson

from lmserver.accounts.appservices import AppServices
from lmserver.federation_client.appservice_api import AppServiceApi
from lmserver.federation_client.errors import FederationError
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, forbidden

MAX_SHOWN = 1000


class AppServiceEndpoints:
    """Whether we reach a service that reaches us."""

    def __init__(self, services: AppServices, api: AppServiceApi) -> None:
        self._services = services
        self._api = api

    @endpoint("POST", "/_matrix/client/v1/appservice/{service_id}/ping", auth=Auth.USER)
    async def ping(self, request: Request) -> dict[str, Any]:
        """Ask the service, at the URL of its registration; the answer says how long that took."""
        [*found] = (s for s in self._services.services if s.id == request.params["service_id"])
        if not found or request.requester.appservice != found[0].id:
            raise forbidden("Only the application service itself may do this")
        if found[0].url is None:
            raise ApiError(400, "M_URL_NOT_SET", "The registration of the application service has no URL")
        txn_id = (await request.json_or_empty()).get("transaction_id")
        if not isinstance(txn_id, str | None):
            raise bad_json("transaction_id is a string")
        started = time.monotonic()
        try:
            answer = await self._api.ping(
                found[0], orjson.dumps({} if txn_id is None else {"transaction_id": txn_id})
            )
        except FederationError as error:
            if "Timeout" in error.detail:
                raise ApiError(
                    504, "M_CONNECTION_TIMEOUT", "The application service does not answer"
                ) from None
            raise ApiError(502, "M_CONNECTION_FAILED", "The application service cannot be reached") from None
        if answer.status != 200:
            shown = {"status": answer.status, "body": answer.body[:MAX_SHOWN].decode("utf-8", "replace")}
            raise ApiError(502, "M_BAD_STATUS", "The application service refuses us", shown)
        return {"duration_ms": int((time.monotonic() - started) * 1000)}
