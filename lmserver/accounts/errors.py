"""What can be wrong with an account."""

from __future__ import annotations


class AccountError(Exception):
    """Something about an account that cannot be done: Matrix error code, HTTP status, text."""

    def __init__(self, errcode: str, status: int, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.status = status
        self.reason = reason


class AccountLocked(AccountError):
    """The operator has locked the account; its logins stay (CS API §Account locking)."""

    def __init__(self) -> None:
        super().__init__("M_USER_LOCKED", 401, "This account has been locked")
