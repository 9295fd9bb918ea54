"""Which part of a list an operator looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListPage:
    """`limit` entries after the first `start`; `order_by` is one of the orders that the list has."""

    order_by: str
    descending: bool = False
    start: int = 0
    limit: int = 100

    @property
    def arguments(self) -> tuple[str, bool, int, int]:
        """As the queries take them."""
        return self.order_by, self.descending, self.start, self.limit
