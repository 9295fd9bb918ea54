"""User-interactive authentication (CS API §User-Interactive Authentication API): proving in stages that
one may do a thing, in a session that is good for that one thing.

Flows are alternatives; all stages of one of them are needed, in any order. A session is bound to its
user and its operation, body included, and ends with it. Nothing secret is stored: of the session's ID
there is only a hash, of the operation a fingerprint keyed with that ID.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lmserver.storage import interactive_auth
from lmserver.storage.database import Connection, Database
from lmserver.storage.interactive_auth import StoredSession

SESSION_MS = 3600 * 1000
SESSIONS_PER_USER = 20
SESSIONS_PER_ADDRESS = 1000
MAX_SESSION_ID = 128

Flows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Operation:
    """What a session is good for. `user_id` and `device_id` are empty for somebody who is no user yet;
    `body` is without its `auth`, or None where it may change between stages; `counted_as` is whose
    sessions are counted: the user's, or the address's."""

    user_id: str
    device_id: str
    method: str
    path: str
    body: Mapping[str, Any] | None
    counted_as: str

    def fingerprint(self, session_id: str) -> bytes:
        text = json.dumps(
            [self.user_id, self.device_id, self.method, self.path, self.body],
            sort_keys=True,
            separators=(",", ":"),
        )
        return hmac.digest(session_id.encode(), text.encode(), "sha256")


Stage = Callable[[str, Mapping[str, Any]], Awaitable[str]]
"""Checks one stage for a user ID with the client's `auth` and returns what it proved.
Raises StageFailed or TooManyTries."""


class StageFailed(Exception):
    """What the client gave does not prove it: Matrix error code and text."""

    def __init__(self, errcode: str, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.reason = reason


class TooManyTries(Exception):
    """The stage may be tried again in `wait` seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("too many tries")
        self.wait = wait


class UnknownSession(Exception):
    """No session has this ID, or it is over."""


class OtherOperation(Exception):
    """The session was begun for something else, or by somebody else."""


class Unproven(Exception):
    """More stages are needed; `failure` says what was wrong with the one that was tried."""

    def __init__(
        self, session_id: str, flows: Flows, completed: Mapping[str, str], failure: StageFailed | None
    ) -> None:
        super().__init__("more stages are needed")
        self.session_id = session_id
        self.flows = flows
        self.completed = completed
        self.failure = failure


class InteractiveAuth:
    """Sessions, and the stages that can be gone through in them."""

    def __init__(self, db: Database, stages: Mapping[str, Stage], clock: Callable[[], int]) -> None:
        self._db = db
        self._stages = stages
        self._clock = clock

    async def prove(self, operation: Operation, flows: Flows, auth: object) -> Mapping[str, str]:
        """Every stage of one of the flows, with what it proved, once the client has gone through.

        Raises Unproven, UnknownSession, OtherOperation or TooManyTries.
        """
        given: Mapping[str, Any] = auth if isinstance(auth, dict) else {}
        session_id = given.get("session")
        if session_id is None:
            session_id, completed = "", {}
        else:
            completed = dict((await self._session(operation, session_id)).completed)
        failure = None
        if given.get("type") is not None and given["type"] not in list(completed):
            failure = await self._try(operation.user_id, flows, given, completed)
        if any(set(stages) <= completed.keys() for stages in flows):
            if session_id:
                await interactive_auth.end(self._db, session_key(session_id))
            return completed
        if not session_id:
            session_id = await self._begin(operation, completed)
        elif failure is None and given.get("type") is not None:
            await self.complete(session_key(session_id), given["type"], completed[given["type"]])
        raise Unproven(session_id, flows, completed, failure)

    async def owner(self, key: bytes) -> str | None:
        """Who has begun a session, by its `session_key`: for a stage gone through in a browser."""
        stored = await interactive_auth.get(self._db, key, self._clock() - SESSION_MS)
        return None if stored is None else stored.owner

    async def complete(self, key: bytes, stage: str, proof: str) -> None:
        """A stage has been gone through, perhaps in a browser."""
        await self._db.run(lambda db: interactive_auth.complete(db, key, stage, proof))

    async def _stored(self, session_id: object) -> StoredSession | None:
        if not isinstance(session_id, str) or not 0 < len(session_id) <= MAX_SESSION_ID:
            return None
        return await interactive_auth.get(self._db, session_key(session_id), self._clock() - SESSION_MS)

    async def _session(self, operation: Operation, session_id: object) -> StoredSession:
        stored = await self._stored(session_id)
        if stored is None or not isinstance(session_id, str):
            raise UnknownSession
        if not hmac.compare_digest(stored.fingerprint, operation.fingerprint(session_id)):
            raise OtherOperation
        return stored

    async def _try(
        self, user_id: str, flows: Flows, given: Mapping[str, Any], completed: dict[str, str]
    ) -> StageFailed | None:
        type_ = given["type"]
        check = self._stages.get(type_) if isinstance(type_, str) else None
        if check is None or not any(type_ in stages for stages in flows):
            return StageFailed("M_UNRECOGNIZED", "This is no stage of any flow here")
        try:
            completed[type_] = await check(user_id, given)
        except StageFailed as failure:
            return failure
        return None

    async def _begin(self, operation: Operation, completed: Mapping[str, str]) -> str:
        session_id = secrets.token_urlsafe(24)
        session = StoredSession(operation.counted_as, operation.fingerprint(session_id), completed)

        keep = SESSIONS_PER_USER if operation.user_id else SESSIONS_PER_ADDRESS

        async def work(db: Connection) -> None:
            await interactive_auth.begin(db, session_key(session_id), session, self._clock(), keep)

        await self._db.run(work)
        return session_id


def session_key(session_id: str) -> bytes:
    """What a session is kept under; nobody can tell the session's ID from it."""
    return sha256(session_id.encode("utf-8", "surrogatepass")).digest()
