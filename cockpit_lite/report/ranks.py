"""The ranks of a run that several processes have trained: what each of them saw, and in what they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from statistics import median
from typing import Any

import numpy as np

from cockpit_lite.alert import Alert
from cockpit_lite.report.text import count, format_seconds, format_share, format_value, listed
from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import alerts_file

#: The logs of so many ranks are read: of more, those that have findings first.
MOST_RANKS = 16
#: What is compared, at the last of so many steps that all have.
COMPARED, MOST_STEPS = ("loss", "grad_norm"), 10_000
#: A rank whose steps take so much longer than those of the others in the median holds them up.
SLOWER = 1.1
#: Values of ranks that differ by less than this share are the same.
ALIKE = 1e-3
#: A log that ends so many seconds before the longest one was broken off; all are written about once a second.
BEHIND = 5.0


#: Of the table with a row a rank.
HEADINGS = ("rank", "steps", "loss", "gradient norm", "step time", "found")
ALL_ALIKE = "Nothing: all have the same loss and gradient, and take equally long."


@dataclass(frozen=True)
class RankRow:
    """One rank.

    Attributes:
        rank: Its number.
        steps: How many steps it has recorded.
        loss: Its loss at the last step that all have, or None.
        gradient_norm: The norm of its gradient at the last such step, or None.
        step_seconds: How long its steps took, in the median, or None.
        seconds: How long its log is.
        findings: Codes of what was found there.
    """

    rank: int
    steps: int
    loss: float | None
    gradient_norm: float | None
    step_seconds: float | None
    seconds: float
    findings: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table says, below :data:`HEADINGS`."""
        step_time = "-" if self.step_seconds is None else format_seconds(self.step_seconds)
        numbers = (format_value(value) for value in (self.rank, self.steps, self.loss, self.gradient_norm))
        return (*numbers, step_time, ", ".join(self.findings) or "nothing")


@dataclass(frozen=True)
class Ranks:
    """All ranks of a run that were read.

    Attributes:
        rows: By rank.
        compared: Reading -> the last step that all of them have, at which it is compared.
        trained: How many processes trained together, as the run says, or as many as have written.
        slowest: The rank that the others wait for, or None.
        text: What differs, in sentences; each stands alone.
        found_by: Code of a finding -> the ranks that have it.
        alerts: Of all ranks, each finding once: where several have it, that of the first.
        runs: What was read, by rank.
    """

    rows: tuple[RankRow, ...]
    compared: Mapping[str, int]
    trained: int
    slowest: int | None
    text: tuple[str, ...]
    found_by: Mapping[str, tuple[int, ...]]
    alerts: tuple[Alert, ...] = field(repr=False)
    runs: Mapping[int, Run] = field(repr=False)

    def run_of(self, alert: Alert) -> Run:
        """Return the run of the first rank that has a finding."""
        return self.runs[self.found_by[alert.code][0]]

    def where(self, alert: Alert) -> str:
        """Return on which ranks there is a finding; empty: on all.

        >>> alert = Alert("CL101", "exploding-gradients", "error", 3, cause="", advice="")
        >>> rows = tuple(RankRow(rank, 9, None, None, None, 1.0, ()) for rank in range(3))
        >>> Ranks(rows, {"loss": 8}, 3, None, (), {"CL101": (1, 2)}, (alert,), {}).where(alert)
        'on ranks 1 and 2'
        """
        found = self.found_by.get(alert.code, ())
        if not found or len(found) == len(self.rows):
            return ""
        return f"on {'rank' if len(found) == 1 else 'ranks'} {listed([str(rank) for rank in found])}"

    def to_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` says of them."""
        rows = [{**asdict(row), "findings": list(row.findings)} for row in self.rows]
        return {
            "rows": rows,
            "compared": dict(self.compared),
            "processes": self.trained,
            "slowest": self.slowest,
            "text": self.text,
        }


def read_ranks(run: Run) -> Ranks | None:
    """Return the ranks of a run, or None where one process has written it, or it was opened as that of another rank."""
    numbers = run.ranks
    if run.rank or len(numbers) < 2:
        return None
    chosen = sorted(sorted(numbers, key=lambda rank: (rank != 0, not _has_alerts(run, rank), rank))[:MOST_RANKS])
    runs = {rank: found for rank in chosen if (found := run if rank == 0 else _opened(run, rank)) is not None}
    compared = {name: step for name in COMPARED if (step := _last_common_step(list(runs.values()), name)) is not None}
    rows = tuple(_row(rank, found, compared) for rank, found in runs.items())
    found_by: dict[str, list[int]] = {}
    alerts: dict[str, list[Alert]] = {}
    for rank, found in runs.items():
        news = {alert.code for alert in found.alerts} - alerts.keys()
        for alert in found.alerts:
            ranks = found_by.setdefault(alert.code, [])
            ranks += [rank] if rank not in ranks else []
            if alert.code in news:
                alerts.setdefault(alert.code, []).append(alert)
    told = run.info.get("processes")
    trained = told if isinstance(told, int) and not isinstance(told, bool) and told >= len(numbers) else len(numbers)
    slowest = _slowest(rows)
    return Ranks(
        rows,
        compared,
        trained,
        slowest,
        tuple(_sentences(rows, numbers, trained, slowest, compared)),
        {code: tuple(ranks) for code, ranks in found_by.items()},
        tuple(alert for found_alerts in alerts.values() for alert in found_alerts),
        runs,
    )


def _has_alerts(run: Run, rank: int) -> bool:
    try:
        return (run.folder / alerts_file(rank)).stat().st_size > 0
    except OSError:
        return False


def _opened(run: Run, rank: int) -> Run | None:
    try:
        return load_run(run.folder, rank)
    except Exception:  # somebody else's file: what can be read is shown
        return None


def _last_common_step(runs: Sequence[Run], name: str) -> int | None:
    """Return the last step at which all ranks have a reading that have it at all."""
    steps = [found[0] for run in runs if (found := _numbers(run, name)) is not None]
    if len(steps) < 2:
        return None
    common = reduce(np.intersect1d, [found[found <= min(other[-1] for other in steps)][-MOST_STEPS:] for found in steps])
    return int(common[-1]) if len(common) else None


def _row(rank: int, run: Run, compared: Mapping[str, int]) -> RankRow:
    loss, gradient_norm = (_at(run, name, compared.get(name)) for name in COMPARED)
    codes = sorted({alert.code for alert in run.alerts})
    steps = 0 if run.last_step is None else run.last_step + 1
    return RankRow(rank, steps, loss, gradient_norm, _median(run, "step_time"), run.seconds, tuple(codes))


def _numbers(run: Run, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        steps, values = run.series(name)
    except (KeyError, ValueError):
        return None
    return (steps, values) if values.ndim == 1 and len(values) else None


def _at(run: Run, name: str, step: int | None) -> float | None:
    found = _numbers(run, name)
    if found is None or step is None:
        return None
    return float(found[1][int(np.searchsorted(found[0], step))]) if step in found[0] else None


def _median(run: Run, name: str) -> float | None:
    found = _numbers(run, name)
    value = math.nan if found is None else float(np.median(found[1]))
    return value if math.isfinite(value) else None


def _slowest(rows: Sequence[RankRow]) -> int | None:
    times = {row.rank: row.step_seconds for row in rows if row.step_seconds is not None}
    if len(times) < 2:
        return None
    slowest = max(times, key=lambda rank: times[rank])
    others = median(seconds for rank, seconds in times.items() if rank != slowest)
    return slowest if times[slowest] > SLOWER * others > 0 else None


def _sentences(
    rows: Sequence[RankRow], numbers: Sequence[int], trained: int, slowest: int | None, compared: Mapping[str, int]
) -> Iterator[str]:
    if len(rows) < len(numbers):
        yield f"{len(rows)} of {count(len(numbers), 'log')} were read, those with findings first."
    if len(numbers) < trained:
        yield f"{trained - len(numbers)} of {trained} processes left no log."
    longest = max(row.seconds for row in rows)
    for row in rows:
        if longest - row.seconds > BEHIND:
            early = format_seconds(longest - row.seconds)
            yield f"The log of rank {row.rank} ends after {count(row.steps, 'step')}, {early} early."
    if slowest is not None:
        times = {row.rank: row.step_seconds for row in rows if row.step_seconds is not None}
        others = median(seconds for rank, seconds in times.items() if rank != slowest)
        yield (
            f"Rank {slowest} is the slowest: {format_seconds(times[slowest])} a step, "
            f"the others {format_seconds(others)}; who averages gradients with it waits."
        )
    for name, title, values in (
        ("loss", "loss", {row.rank: row.loss for row in rows}),
        ("grad_norm", "gradient norm", {row.rank: row.gradient_norm for row in rows}),
    ):
        if name in compared:
            known = {rank: value for rank, value in values.items() if value is not None}
            yield from (f"At step {compared[name]:,} the {title} {rest}" for rest in _difference(known))


def _difference(values: Mapping[int, float]) -> Iterator[str]:
    broken = [rank for rank, value in values.items() if not math.isfinite(value)]
    if broken and len(broken) < len(values):
        where = listed([str(rank) for rank in broken])
        yield f"is not finite on {'rank' if len(broken) == 1 else 'ranks'} {where} only."
    finite = {rank: value for rank, value in values.items() if math.isfinite(value)}
    if len(finite) < 2:
        return
    lowest, highest = min(finite, key=lambda rank: finite[rank]), max(finite, key=lambda rank: finite[rank])
    size = max(abs(finite[lowest]), abs(finite[highest]))
    if finite[highest] - finite[lowest] > ALIKE * size:
        yield (
            f"differs by {format_share((finite[highest] - finite[lowest]) / size)}: {format_value(finite[lowest])} on rank "
            f"{lowest}, {format_value(finite[highest])} on rank {highest}."
        )
