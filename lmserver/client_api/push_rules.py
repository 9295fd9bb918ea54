"""Push rules over HTTP (CS API §Push Rules API)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmserver.accounts.push_rules import BadRule, PushRules, UnknownNeighbour, UnknownRule
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, missing_param, not_found

RULES = "/_matrix/client/v3/pushrules"
KIND = RULES + "/global/{kind}"
RULE = KIND + "/{rule_id}"


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a request, as the specification's errors."""
    try:
        yield
    except UnknownRule:
        raise not_found("No such push rule") from None
    except UnknownNeighbour:
        raise ApiError(400, "M_UNKNOWN", "before and after name rules of one's own") from None
    except BadRule as error:
        raise bad_json(str(error)) from None


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

    @endpoint("GET", KIND + "/", KIND, auth=Auth.USER)
    async def kind(self, request: Request) -> list[dict[str, Any]]:
        """The rules of one kind."""
        rules = await self._rules.rules(request.requester.user_id)
        if request.params["kind"] not in rules:
            raise not_found("No such kind of push rules")
        return rules[request.params["kind"]]

    @endpoint("GET", RULE, auth=Auth.USER)
    async def rule(self, request: Request) -> dict[str, Any]:
        """One rule."""
        return await self._rule(request)

    async def _rule(self, request: Request) -> dict[str, Any]:
        with _told():
            return await self._rules.rule(*_named(request))

    @endpoint("PUT", RULE, auth=Auth.USER, max_body=64 * 1024)
    async def put(self, request: Request) -> dict[str, Any]:
        """Add or replace a rule, `before` or `after` another one."""
        body = await request.json()
        with _told():
            await self._rules.put(
                *_named(request), body, request.query.get("before"), request.query.get("after")
            )
        return {}

    @endpoint("DELETE", RULE, auth=Auth.USER)
    async def delete(self, request: Request) -> dict[str, Any]:
        """Delete a rule of one's own."""
        with _told():
            await self._rules.delete(*_named(request))
        return {}

    @endpoint("GET", RULE + "/{field}", auth=Auth.USER)
    async def field(self, request: Request) -> dict[str, Any]:
        """Whether a rule is enabled, or its actions."""
        field = _field(request)
        return {field: (await self._rule(request))[field]}

    @endpoint("PUT", RULE + "/{field}", auth=Auth.USER, max_body=64 * 1024)
    async def put_field(self, request: Request) -> dict[str, Any]:
        """Enable or disable a rule, or change its actions."""
        field = _field(request)
        body = await request.json()
        if field not in body:
            raise missing_param(f"{field} is missing")
        with _told():
            await self._rules.change(*_named(request), field, body[field])
        return {}


def _named(request: Request) -> tuple[str, str, str]:
    """Whose rule, its kind and its ID."""
    return request.requester.user_id, request.params["kind"], request.params["rule_id"]


def _field(request: Request) -> str:
    field = request.params["field"]
    if field not in ("enabled", "actions"):
        raise not_found("No such field of a push rule")
    return field
