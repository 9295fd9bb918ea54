"""Where a user is logged in (CS API §Server Administration)."""

from __future__ import annotations

from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.errors import AccountError
from lmserver.client_api.login import api_error
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, forbidden, not_found


class WhoisEndpoints:
    """The one endpoint of operators that the specification gives to clients, and to users of themselves."""

    def __init__(self, our_name: str, administration: AccountAdministration) -> None:
        self._our_name = our_name
        self._administration = administration

    @endpoint("GET", "/_matrix/client/v3/admin/whois/{user_id}", auth=Auth.USER)
    async def whois(self, request: Request) -> JsonObject:
        """Where the user's devices were seen last; 403 for anybody but the user and administrators."""
        user_id = request.params["user_id"]
        if not ids.is_user_id(user_id):
            raise bad_param("user_id is not valid")
        if user_id != request.requester.user_id and not request.requester.is_admin:
            raise forbidden("You are not a server admin")
        if ids.server_of(user_id) != self._our_name:
            raise not_found("User not found")
        try:
            return await self._administration.whois(user_id)
        except AccountError as error:
            raise api_error(error) from None
