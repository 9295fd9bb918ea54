"""The pages of operators: users, rooms with their hub, destinations, evidence, reports."""

from __future__ import annotations

from typing import Any, Final

from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.errors import AccountError
from lmserver.admin_api import parameters as p
from lmserver.admin_api.page.rendering import link, page, see
from lmserver.admin_api.page.sessions import COOKIE, cookie, csrf_token, form
from lmserver.federation_client.sender import Sender
from lmserver.protocol import ids
from lmserver.rooms.administration import RoomAdministration
from lmserver.rooms.evidence import KINDS
from lmserver.storage import destination_list, evidence, holds, reports
from lmserver.storage.account_list import AccountQuery
from lmserver.storage.database import Database
from lmserver.storage.destination_list import DestinationQuery
from lmserver.storage.list_page import ListPage
from lmserver.storage.room_list import RoomQuery
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import bad_param, not_found

PAGE: Final = 50
MAX_FORM: Final = 16 * 1024


class OperatorPages:
    """What an administrator sees and does in a browser; every form is checked to be of these pages."""

    def __init__(
        self,
        our_name: str,
        db: Database,
        administration: AccountAdministration,
        rooms: RoomAdministration,
        sender: Sender,
    ) -> None:
        self._our_name = our_name
        self._db = db
        self._administration = administration
        self._rooms = rooms
        self._sender = sender

    @endpoint("GET", "/admin", auth=Auth.ADMIN_PAGE)
    async def front(self, request: Request) -> Reply:
        """The first page is that of users."""
        return see("/admin/users")

    @endpoint("GET", "/admin/users", auth=Auth.ADMIN_PAGE)
    async def users(self, request: Request) -> Reply:
        """Users of this server, by name."""
        term, start = p.text(request, "q") or "", p.number(request, "from", 0)
        query = AccountQuery(term, deactivated=True)
        part = ListPage("name", start=start, limit=PAGE)
        found, total = await self._administration.page(query, part)
        return self._page(request, "users", "/admin/users", total, term=term, users=found)

    @endpoint("POST", "/admin/users/{user_id}/{action}", auth=Auth.ADMIN_PAGE, max_body=MAX_FORM)
    async def change_user(self, request: Request) -> Reply:
        """Lock, suspend or deactivate a user, or undo one of the first two."""
        await form(request, cookie(request, COOKIE))
        by, user_id = request.requester.user_id, p.user_id(request, self._our_name)
        try:
            match request.params["action"]:
                case "lock":
                    await self._administration.set_locked(by, user_id, True)
                case "unlock":
                    await self._administration.set_locked(by, user_id, False)
                case "suspend":
                    await self._administration.set_suspended(by, user_id, True)
                case "unsuspend":
                    await self._administration.set_suspended(by, user_id, False)
                case "deactivate":
                    await self._administration.deactivate(by, user_id)
                case _:
                    raise not_found()
        except AccountError as error:
            raise p.of_account(error) from None
        return see(link("/admin/users", q=ids.localpart_of(user_id)))

    @endpoint("GET", "/admin/rooms", auth=Auth.ADMIN_PAGE, at_once=2)
    async def rooms(self, request: Request) -> Reply:
        """Rooms with their hub and size, the largest first; those that are held."""
        term, start = p.text(request, "q") or "", p.number(request, "from", 0)
        part = ListPage("joined_members", start=start, limit=PAGE)
        found, total = await self._rooms.page(RoomQuery(term), part)
        held = await holds.held(self._db)
        return self._page(request, "rooms", "/admin/rooms", total, term=term, rooms=found, held=held)

    @endpoint("GET", "/admin/destinations", auth=Auth.ADMIN_PAGE, at_once=2)
    async def destinations(self, request: Request) -> Reply:
        """Servers we send to, what waits for each, and since when one takes nothing."""
        term, start = p.text(request, "q") or "", p.number(request, "from", 0)
        query, part = DestinationQuery(term), ListPage("failing_since", True, start, PAGE)
        found = await destination_list.page(self._db.patient(), query, part)
        total = await destination_list.count(self._db, query)
        return self._page(
            request, "destinations", "/admin/destinations", total, term=term, destinations=found
        )

    @endpoint("POST", "/admin/destinations/{destination}/retry", auth=Auth.ADMIN_PAGE, max_body=MAX_FORM)
    async def retry(self, request: Request) -> Reply:
        """Try a server now."""
        await form(request, cookie(request, COOKIE))
        name = p.server(request, "destination")
        if not await destination_list.exists(self._db, name):
            raise not_found("Nothing was ever sent to this server")
        await self._sender.retry_now(name)
        return see("/admin/destinations")

    @endpoint("GET", "/admin/evidence", auth=Auth.ADMIN_PAGE)
    async def evidence(self, request: Request) -> Reply:
        """What hubs of rooms did that the protocol forbids, the newest first."""
        start = p.number(request, "from", 0)
        found = await evidence.page(self._db, None, start, PAGE + 1)
        total = start + len(found)
        cases = [(case, KINDS.get(case.kind, case.kind)) for case in found[:PAGE]]
        return self._page(request, "evidence", "/admin/evidence", total, term="", cases=cases)

    @endpoint("GET", "/admin/reports", auth=Auth.ADMIN_PAGE)
    async def reports(self, request: Request) -> Reply:
        """What users have reported, the newest first."""
        start = p.number(request, "from", 0)
        found = await reports.page(self._db, None, None, start, PAGE, oldest_first=False)
        total = await reports.count(self._db, None, None)
        return self._page(request, "reports", "/admin/reports", total, term="", reports=found)

    @endpoint("POST", "/admin/reports/{report_id}/dismiss", auth=Auth.ADMIN_PAGE, max_body=MAX_FORM)
    async def dismiss(self, request: Request) -> Reply:
        """A report is dealt with."""
        await form(request, cookie(request, COOKIE))
        number = request.params["report_id"]
        if not number.isascii() or not number.isdigit() or len(number) > 18:
            raise bad_param("report_id is a number")
        await reports.remove(self._db, int(number))
        return see("/admin/reports")

    def _page(self, request: Request, name: str, path: str, total: int, *, term: str, **values: Any) -> Reply:
        start = p.number(request, "from", 0)
        before = None if start == 0 else link(path, q=term, **{"from": max(0, start - PAGE)})
        after = link(path, q=term, **{"from": start + PAGE}) if start + PAGE < total else None
        return page(
            name,
            server=self._our_name,
            operator=request.requester.user_id,
            here=name,
            csrf=csrf_token(cookie(request, COOKIE)),
            total=total,
            term=term,
            before=before,
            after=after,
            **values,
        )
