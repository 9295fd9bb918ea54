"""What users have reported (as Synapse's event reports API has it; ours are of rooms and users too)."""

from __future__ import annotations

from typing import Any

import orjson

from lmserver.admin_api import parameters as p
from lmserver.admin_api.paging import next_token
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import reports, room_log
from lmserver.storage.database import Executor
from lmserver.storage.reports import FiledReport
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, not_found

REPORTS = SYNAPSE + "/v1/event_reports"
MAX_ID = 2**63 - 1


class ReportEndpoints:
    """Reports are read, and deleted once they are dealt with."""

    def __init__(self, db: Executor) -> None:
        self._db = db

    @endpoint("GET", REPORTS, auth=Auth.ADMIN)
    async def listed(self, request: Request) -> JsonObject:
        """Reports in pages, the newest first unless `dir` is f; `room_id` and `user_id` (the reporter) pick
        some."""
        oldest_first = p.choice(request, "dir", "b", frozenset({"f", "b"})) == "f"
        room_id, reporter = p.text(request, "room_id"), p.text(request, "user_id")
        start, limit = p.number(request, "from", 0), p.limit(request)
        found = await reports.page(self._db, room_id, reporter, start, limit, oldest_first=oldest_first)
        total = await reports.count(self._db, room_id, reporter)
        more = next_token(start, limit, total, int)
        return {"event_reports": [_shown(filed) for filed in found], "total": total, **more}

    @endpoint("GET", REPORTS + "/{report_id}", auth=Auth.ADMIN)
    async def report(self, request: Request) -> JsonObject:
        """One report, with the event where that is still here."""
        filed = await reports.one(self._db, _number(request))
        if filed is None:
            raise not_found("There is no such report")
        answer = _shown(filed)
        report = filed.report
        if report.event_id is not None and report.room_id is not None:
            event = await room_log.event(self._db, report.event_id, report.room_id)
            answer["event_json"] = None if event is None else orjson.loads(event.pdu)
        return answer

    @endpoint("DELETE", REPORTS + "/{report_id}", auth=Auth.ADMIN)
    async def delete(self, request: Request) -> JsonObject:
        """The report is dealt with."""
        if not await reports.remove(self._db, _number(request)):
            raise not_found("There is no such report")
        return {}


def _number(request: Request) -> int:
    value = request.params["report_id"]
    if not value.isascii() or not value.isdigit() or len(value) > 19 or int(value) > MAX_ID:
        raise bad_param("report_id is a number")
    return int(value)


def _shown(filed: FiledReport) -> dict[str, Any]:
    report = filed.report
    return {
        "id": filed.id,
        "received_ts": report.created_ts,
        "room_id": report.room_id,
        "event_id": report.event_id,
        "user_id": report.reporter,
        "reason": report.reason,
        "score": report.score,
        "sender": report.reported,
        "kind": report.kind,
        "name": None,
        "canonical_alias": None,
    }
