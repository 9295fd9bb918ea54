"""What was found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

WIDTH = 14
MAX_TEXT = 300


class Status(StrEnum):
    """`NOTE`: works, but worth knowing. `SKIPPED`: an earlier step or the call did not allow it."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"
    SKIPPED = "skipped"


_TICKS = {Status.OK: "✓", Status.NOTE: "!", Status.FAILED: "✗", Status.SKIPPED: "-"}


@dataclass(frozen=True, slots=True)
class Step:
    """`advice` says what to do about it."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(slots=True)
class Report:
    """Steps in the order in which they were taken."""

    server: str
    steps: list[Step] = field(default_factory=list)

    def add(self, name: str, status: Status, detail: str, advice: str = "") -> None:
        self.steps.append(Step(name, status, _harmless(detail), advice))

    @property
    def ok(self) -> bool:
        """Whether the server can be federated with."""
        return not any(step.status is Status.FAILED for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        return {"server": self.server, "ok": self.ok, "steps": [asdict(step) for step in self.steps]}

    def as_text(self, *, unicode: bool = True) -> str:
        """Lines with ticks, or with words where the terminal has no ticks."""
        lines = [_harmless(self.server)]
        for step in self.steps:
            mark = _TICKS[step.status] if unicode else step.status.upper().ljust(7)
            lines.append(f"  {mark} {step.name:<{WIDTH}} {step.detail}")
            if step.advice:
                lines.append(f"    {'':<{WIDTH}} {'→' if unicode else '->'} {step.advice}")
        verdict = "can be federated with" if self.ok else "cannot be federated with as it is"
        text = "\n".join([*lines, f"{_harmless(self.server)} {verdict}."])
        return text if unicode else text.encode("ascii", "backslashreplace").decode()


def _harmless(text: str) -> str:
    """What a stranger chose cannot steer a terminal."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= MAX_TEXT else shown[:MAX_TEXT] + "..."
