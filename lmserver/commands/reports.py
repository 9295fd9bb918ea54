"""`lmserver report`: what users have reported, from the shell."""

from __future__ import annotations

import json
from dataclasses import asdict

from lmserver.commands.shell import MAX_SHOWN, failed, tell, when, with_database
from lmserver.config import Config
from lmserver.storage import reports
from lmserver.storage.database import Database


def run(config: Config, action: str, which: str | None) -> int:
    """1 when there is no such report."""
    number = (
        int(which) if which is not None and which.isascii() and which.isdigit() and len(which) < 19 else -1
    )

    async def work(db: Database) -> int:
        if action == "list":
            for filed in await reports.newest(db, None, MAX_SHOWN):
                report = filed.report
                about = " ".join(filter(None, (report.reported, report.room_id, report.event_id)))
                print(
                    f"{filed.id} {when(report.created_ts)} {report.reporter} reports the {report.kind}"
                    f" {about}: {json.dumps(report.reason, ensure_ascii=False)}"
                )
            tell(f"{await reports.count(db, None, None)} reports")
            return 0
        if action == "show":
            found = await reports.one(db, number)
            if found is not None:
                print(json.dumps({"id": found.id, **asdict(found.report)}, indent=2))
                return 0
        elif await reports.remove(db, number):
            return 0
        return failed("there is no such report")

    return with_database(config, work)
