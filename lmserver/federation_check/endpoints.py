"""What the server answers once it is reached: keys, clock, version, a signed request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from lmserver.federation_check.report import Report, Status
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import PinnedHttp, Target, read_body
from lmserver.federation_client.errors import BadResponse, FederationError
from lmserver.federation_client.keys_fetch import MAX_DOCUMENT, PATH, KeyDocument, read_document
from lmserver.protocol import canonical_json
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.signatures import SigningKey

VERSION_PATH = "/_matrix/federation/v1/version"
PROFILE_PATH = "/_matrix/federation/v1/query/profile"
TIMEOUT = 10.0
SKEW_SECONDS = 30.0
MAX_SKEW_SECONDS = 3600.0
SHORT_VALIDITY_MS = 3600 * 1000


class Endpoints:
    """Asks one target, which has been connected to before; `wall` is seconds since the epoch."""

    def __init__(self, report: Report, http: PinnedHttp, target: Target, wall: Callable[[], float]) -> None:
        self._report = report
        self._http = http
        self._target = target
        self._wall = wall

    async def keys(self, server: str) -> bool:
        """The published keys and the Date header they came with; False when there are none to trust."""
        try:
            status, document, date, asked = await self._get(PATH)
        except (FederationError, ProtocolError) as error:
            self._fail("keys", f"{PATH}: {error}", "The server has to serve its keys as JSON.")
            return False
        if status != 200:
            self._fail(
                "keys", f"{PATH}: status {status}",
                "A proxy may not pass /_matrix/key on, or another server answers for this name.",
            )  # fmt: skip
            return False
        try:
            read = read_document(document, server, int(self._wall() * 1000))
        except (FederationError, ProtocolError) as error:
            self._fail("keys", str(error), _advice(document, server))
            return False
        self._keys_found(read)
        self._clock(date, asked)
        return True

    def _keys_found(self, read: KeyDocument) -> None:
        left = read.valid_until_ts - int(self._wall() * 1000)
        old = f", {len(read.old_keys)} old" if read.old_keys else ""
        detail = f"{', '.join(read.keys)}{old}; signed, valid for {left / 3_600_000:.1f} h"
        if left <= 0:
            self._fail(
                "keys", detail, "The keys have expired: the server's clock, or a stale cache in front."
            )
        else:
            short = left < SHORT_VALIDITY_MS
            self._report.add(
                "keys",
                Status.NOTE if short else Status.OK,
                detail,
                "Others will fetch them again and again: the draft suggests 12 h." if short else "",
            )
        self._report.add(
            "m.linearized",
            Status.OK if read.linearized else Status.NOTE,
            "a Linearized Matrix server" if read.linearized else "does not say that it is linearized",
            ""
            if read.linearized
            else "It may speak Matrix's DAG dialect only; lmserver has no rooms for it.",
        )

    def _clock(self, date: str | None, asked: float) -> None:
        try:
            theirs = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            self._report.add("clock", Status.SKIPPED, "the server sends no Date")
            return
        skew = theirs + 0.5 - asked  # a Date has whole seconds
        detail = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours"
        if abs(skew) < 2.0:
            self._report.add("clock", Status.OK, "as ours")
        elif abs(skew) < SKEW_SECONDS:
            self._report.add("clock", Status.OK, detail)
        elif abs(skew) < MAX_SKEW_SECONDS:
            self._report.add("clock", Status.NOTE, detail, "Let both machines follow a time server.")
        else:
            self._fail("clock", detail, "Keys expire by the clock: let both machines follow a time server.")

    async def version(self) -> None:
        try:
            status, document, _, _ = await self._get(VERSION_PATH)
        except (FederationError, ProtocolError) as error:
            self._report.add("version", Status.NOTE, f"{VERSION_PATH}: {error}")
            return
        found = document.get("server") if isinstance(document, dict) else None
        if status != 200 or not isinstance(found, dict):
            self._report.add("version", Status.NOTE, f"{VERSION_PATH}: status {status}")
            return
        self._report.add("version", Status.OK, f"{found.get('name')} {found.get('version')}"[:100])

    async def signed(self, server: str, client: FederationClient, key: SigningKey) -> None:
        """A question that changes nothing, signed: 401 says that the server does not believe us."""
        name = "signed request"
        query = {"user_id": f"@federation-check:{server}", "field": "displayname"}
        try:
            answer = await client.request("GET", server, PROFILE_PATH, query=query, timeout=3 * TIMEOUT)
        except FederationError as error:
            self._fail(name, error.detail or str(error), "It answered unsigned requests: look at its log.")
            return
        errcode = answer.json.get("errcode") if isinstance(answer.json, dict) else None
        if answer.status == 401:
            self._fail(
                name,
                f"status 401 {errcode}",
                f"It has to fetch our keys: run `lmserver federation-check {key.server_name}` from another"
                f" machine, and see that it serves {key.key_id}.",
            )
        elif answer.status in (200, 403) or (answer.status == 404 and errcode != "M_UNRECOGNIZED"):
            self._report.add(name, Status.OK, f"as {key.server_name}: believed")
        else:
            self._report.add(
                name, Status.NOTE, f"status {answer.status} {errcode}: says nothing about our key"
            )

    async def _get(self, path: str) -> tuple[int, Any, str | None, float]:
        """Status, JSON (None with another status than 200), Date, and our clock in the middle.

        Raises BadResponse or a ProtocolError.
        """
        before = self._wall()
        headers = {"Accept": "application/json"}
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._http.request("GET", self._target, path, headers=headers, body=None) as response,
            ):
                asked = (before + self._wall()) / 2
                date = response.headers.get("Date")
                if response.status != 200:
                    return response.status, None, date, asked
                document = canonical_json.parse(await read_body(response, MAX_DOCUMENT))
                return response.status, document, date, asked
        except TimeoutError as error:
            raise BadResponse("no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BadResponse(f"no answer: {error}"[:200]) from error

    def _fail(self, name: str, detail: str, advice: str) -> None:
        self._report.add(name, Status.FAILED, detail, advice)


def _advice(document: object, server: str) -> str:
    told = document.get("server_name") if isinstance(document, dict) else None
    if isinstance(told, str) and told != server:
        return f"It says that it is {told!r}: check that name, or server_name in its configuration."
    return "The document has to be signed by a key that it lists, by the draft's rules."
