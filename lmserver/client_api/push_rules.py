"""Push rules over HTTP (CS API §Push Rules API)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.push_rules import BadRule, PushRules, UnknownRule
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, missing_param, not_found

RULES = "/_matrix/client/v3/pushrules"
RULE = RULES + "/global/{kind}/{rule_id}"


class PushRuleEndpoints:
    """Reading and changing one's own rules."""

    def __init__(self, rules: PushRules) -> None:
        self._rules = rules

    # Clients ask with the trailing slash, and do not sync before they have an answer.
    @endpoint("GET", RULES + "/", RULES, auth=Auth.USER)
    async def all(self, request: Request) -> dict[str, Any]:
        """Every rule."""
        return {"global": await self._rules.rules(request.requester.user_id)}

    @endpoint("GET", RULES + "/global/", RULES + "/global", auth=Auth.USER)
    async def global_(self, request: Request) -> dict[str, Any]:
        """Every rule of the only scope there is."""
        return dict(await self._rules.rules(request.requester.user_id))

    @endpoint("GET", RULE, auth=Auth.USER)
    async def rule(self, request: Request) -> dict[str, Any]:
        """One rule."""
        return await self._rule(request)

    async def _rule(self, request: Request) -> dict[str, Any]:
        try:
            return await self._rules.rule(
                request.requester.user_id, request.params["kind"], request.params["rule_id"]
            )
        except UnknownRule:
            raise not_found("No such push rule") from None

    @endpoint("PUT", RULE, auth=Auth.USER)
    async def put(self, request: Request) -> dict[str, Any]:
        """Add or replace a rule."""
        body = await request.json()
        try:
            await self._rules.put(
                request.requester.user_id,
                request.params["kind"],
                request.params["rule_id"],
                body,
                request.query.get("before"),
                request.query.get("after"),
            )
        except UnknownRule:
            raise not_found("No such push rule") from None
        except BadRule as error:
            raise bad_json(str(error)) from None
        return {}

    @endpoint("DELETE", RULE, auth=Auth.USER)
    async def delete(self, request: Request) -> dict[str, Any]:
        """Delete a rule of one's own."""
        try:
            await self._rules.delete(
                request.requester.user_id, request.params["kind"], request.params["rule_id"]
            )
        except UnknownRule:
            raise not_found("No such push rule") from None
        except BadRule as error:
            raise bad_json(str(error)) from None
        return {}

    @endpoint("GET", RULE + "/{field}", auth=Auth.USER)
    async def field(self, request: Request) -> dict[str, Any]:
        """Whether a rule is enabled, or its actions."""
        field = _field(request)
        return {field: (await self._rule(request))[field]}

    @endpoint("PUT", RULE + "/{field}", auth=Auth.USER)
    async def put_field(self, request: Request) -> dict[str, Any]:
        """Enable or disable a rule, or change its actions."""
        field = _field(request)
        body = await request.json()
        if field not in body:
            raise missing_param(f"{field} is missing")
        try:
            await self._rules.change(
                request.requester.user_id,
                request.params["kind"],
                request.params["rule_id"],
                field,
                body[field],
            )
        except UnknownRule:
            raise not_found("No such push rule") from None
        except BadRule as error:
            raise bad_json(str(error)) from None
        return {}


def _field(request: Request) -> str:
    field = request.params["field"]
    if field not in ("enabled", "actions"):
        raise not_found("No such field of a push rule")
    return field
