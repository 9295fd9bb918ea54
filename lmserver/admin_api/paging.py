"""Lists in pages: which one is asked for, and where the next begins."""

from __future__ import annotations

from lmserver.admin_api import parameters as p
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage.list_page import ListPage
from lmserver.web.endpoint import Request


def page_of(request: Request, order_by: str) -> ListPage:
    return ListPage(order_by, p.descending(request), p.number(request, "from", 0), p.limit(request))


def next_token(start: int, limit: int, total: int, form: type[str] | type[int] = str) -> JsonObject:
    """What an answer says besides when there is more."""
    return {"next_token": form(start + limit)} if start + limit < total else {}
