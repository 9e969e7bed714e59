"""What a comparison of runs says, before it is drawn anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cockpit_lite.alert import SEVERITIES
from cockpit_lite.compare.findings import FindingRow, finding_rows
from cockpit_lite.compare.readings import SharedReading, shared_readings
from cockpit_lite.compare.settings import Setting, differing_settings
from cockpit_lite.errors import NotARunError
from cockpit_lite.report import Report, build_report
from cockpit_lite.report.model import write_atomically
from cockpit_lite.report.text import count, format_value, listed, one_line
from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import encode

if TYPE_CHECKING:
    from rich.console import Console

#: Of the JSON; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1

_MOST_SETTINGS_NAMED = 3
_LONGEST_VALUES = 40
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class LeftOut:
    """A run that was asked for and could not be read, with the reason."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; the first is the one that the others are compared with.

    Attributes:
        labels: A letter for each run.
        names: What the runs are called: as much of their folders as tells them apart.
        reports: The report of each.
        findings: Faults that at least one of them has.
        settings: Settings that are not the same in all of them.
        same_settings: How many settings are.
        readings: Scalar readings that at least two of them have.
        left_out: Runs that could not be read.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    reports: tuple[Report, ...] = field(repr=False)
    findings: tuple[FindingRow, ...]
    settings: tuple[Setting, ...]
    same_settings: int
    readings: tuple[SharedReading, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs."""
        return tuple(report.run for report in self.reports)

    @property
    def summary(self) -> str:
        """What changed, in two sentences: findings that came or went, then settings that differ."""
        parts = []
        for change, words in (("appeared", "Appeared"), ("went", "Went away"), ("differs", "In some runs only, or not known")):
            names = [row.name for row in self.findings if row.change == change]
            if names:
                parts.append(f"{words}: {listed(names)}.")
        stayed = sum(row.change == "stayed" for row in self.findings)
        if stayed:
            parts.append(f"{count(stayed, 'finding')} stayed.")
        if not self.findings:
            checked = any(report.passed for report in self.reports)
            parts.append("No run has a finding." if checked else "Nothing could be checked in any of the runs.")
        return f"{' '.join(parts)} {self._settings_in_words()} between {len(self.names)} runs."

    @property
    def outcomes(self) -> tuple[str, ...]:
        """How the runs came out, a sentence for each loss and accuracy that they share."""
        return tuple(
            f"{reading.name.replace('_', ' ')} at the end: "
            + ", ".join(
                f"{label} {format_value(value)}" + (f" ({change})" if (change := reading.change(run)) else "")
                for run, (label, value) in enumerate(zip(self.labels, reading.last, strict=True))
                if value is not None
            )
            for reading in self.readings
            if reading.is_outcome and not reading.constant
        )

    def _settings_in_words(self) -> str:
        names = [setting.name for setting in self.settings]
        if not names:
            return "No setting differs"
        if len(names) > _MOST_SETTINGS_NAMED:
            return f"{count(len(names), 'setting')} differ"
        if len(names) == 1 and sum(map(len, self.settings[0].values)) <= _LONGEST_VALUES:
            return f"{names[0]} differs ({', '.join(self.settings[0].values)})"
        return f"{listed(names)} differ{'s' if len(names) == 1 else ''}"

    @property
    def tone(self) -> str:
        """The severity of the worst finding that appeared, "clean" if findings only went, else "unknown"."""
        appeared = [row.severity for row in self.findings if row.change == "appeared"]
        if appeared:
            return min(appeared, key=SEVERITIES.index)
        return "clean" if any(row.change == "went" for row in self.findings) else "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as strict JSON can hold it; not finite numbers are strings, as in the run log."""
        return encode(
            {
                "schema": SCHEMA_VERSION,
                "summary": self.summary,
                "outcomes": list(self.outcomes),
                "runs": [
                    {
                        "label": label,
                        "name": name,
                        "folder": str(report.run.folder),
                        "summary": report.summary,
                        "worst": report.worst,
                        "steps": report.steps,
                        "status": report.status,
                        "seconds": report.run.seconds,
                        "cost_share": report.cost.share,
                    }
                    for label, name, report in zip(self.labels, self.names, self.reports, strict=True)
                ],
                "left_out": [{"folder": one.folder, "reason": one.reason} for one in self.left_out],
                "findings": [
                    {
                        "code": row.code,
                        "name": row.name,
                        "severity": row.severity,
                        "change": row.change,
                        "runs": [{"state": found.state, "text": found.text} for found in row.runs],
                    }
                    for row in self.findings
                ],
                "settings": {row.name: list(row.values) for row in self.settings},
                "same_settings": self.same_settings,
                "readings": {row.name: list(row.last) for row in self.readings},
            }
        )

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """Return the comparison as one HTML page that needs nothing beside it."""
        from cockpit_lite.compare.html import render_html  # draws, so it loads matplotlib and jinja2

        return render_html(self)

    def print(self, console: Console | None = None) -> None:
        """Print the comparison; plain text where the output is no terminal."""
        from cockpit_lite.compare.terminal import print_comparison

        print_comparison(self, console)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page.

        Raises:
            OSError: if it cannot be written there.
        """
        return write_atomically(Path(path), self.to_html())


def compare_runs(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Compare the runs in ``folders`` with the first of them; those that cannot be read are left out, with the reason.

    Raises:
        NotARunError: if fewer than two runs are left.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    for folder in folders:
        if any(Path(folder).resolve() == run.folder.resolve() for run in runs):
            left_out.append(LeftOut(str(folder), f"{folder} was given twice."))
            continue
        try:
            runs.append(load_run(folder))
        except (NotARunError, OSError) as error:
            left_out.append(LeftOut(str(folder), str(error)))
    if len(runs) < 2:
        reasons = " ".join(one_line(one.reason) for one in left_out)
        raise NotARunError(f"There are not two runs to compare. {reasons}".strip())
    reports = tuple(build_report(run) for run in runs)
    settings, same = differing_settings([run.info for run in runs])
    return Comparison(
        labels=tuple(_LETTERS[index] if index < len(_LETTERS) else f"run {index + 1}" for index in range(len(runs))),
        names=_names([run.folder for run in runs]),
        reports=reports,
        findings=tuple(finding_rows(reports)),
        settings=tuple(settings),
        same_settings=same,
        readings=tuple(shared_readings(runs)),
        left_out=tuple(left_out),
    )


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the last parts of the paths, as many as tell them apart.

    >>> _names([Path("/a/before/run"), Path("/a/after/run")])
    ('before/run', 'after/run')
    """
    parts = [folder.resolve().parts for folder in folders]
    length = next(
        length for length in range(1, 1 + max(map(len, parts))) if len({part[-length:] for part in parts}) == len(parts)
    )
    return tuple("/".join(part[-length:]) for part in parts)
