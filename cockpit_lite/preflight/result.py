"""What a preflight found: a table of passes and failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Outcome = Literal["passed", "failed", "not checked"]

_STYLES: dict[str, str] = {"passed": "green", "failed": "bold red", "not checked": "dim"}


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was looked at.
        outcome: How it went.
        text: What was found, in numbers; for a failure also what to do.
    """

    name: str
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Preflight:
    """All checks of one batch.

    Attributes:
        checks: In the order they were made.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.outcome == "failed" for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        return "\n".join(f"{check.outcome:12} {check.name:{width}}  {check.text}" for check in self.checks)

    def print(self, console: Console | None = None) -> None:
        """Print the table; default: to standard output."""
        table = Table("", "check", "what was found", box=None, pad_edge=False, header_style="bold")
        for check in self.checks:
            table.add_row(Text(check.outcome, _STYLES[check.outcome]), Text(check.name), Text(check.text))
        (console or Console()).print(table)
