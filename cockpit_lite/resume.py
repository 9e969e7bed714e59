"""Going on with a run that was broken off: what its folder already says. Knows no torch.

A line ``{"resumed": n}`` in the log (and among the alerts) says that training has begun again at step n, from a checkpoint: what
was recorded from that step on belongs to weights that are no more. Nothing is deleted; a reader leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.errors import SetupError
from cockpit_lite.run import load_run
from cockpit_lite.run_log import INFO_FILE, READINGS_FILE, ReadingsReader, decode

#: Steps and columns by name, or one step and values by name.
Part = tuple[list[int] | int, dict[str, Any]]


@dataclass(frozen=True)
class Earlier:
    """A run that is gone on with.

    Attributes:
        step: The number of its next step.
        seconds: How long it had taken.
        info: Its ``run.json``.
        alerts: Those of before ``step``.
        parts: The readings of before ``step``.
    """

    step: int
    seconds: float
    info: Mapping[str, Any]
    alerts: list[Alert]
    parts: list[Part] = field(repr=False)


def find_earlier(folder: Path, resume: bool | int) -> Earlier | None:
    """Return what is known of the run in ``folder``, or None if there is none yet, or it is not asked for.

    Args:
        folder: The run folder.
        resume: True: go on after the last recorded step. A number: go on with that step.

    Raises:
        SetupError: if the run has not come as far as that step.
        NotARunError: if what is there cannot be read.
    """
    if resume is False or not (folder / INFO_FILE).exists():
        return None
    run = load_run(folder)
    after = 0 if run.last_step is None else run.last_step + 1
    step = after if resume is True else int(resume)
    # The log may miss the last second before a crash, but not more; a checkpoint from before it is the usual case.
    if run.last_step is None and step > 0:
        raise SetupError(f"resume={step}: the run in {folder} has recorded no step yet. Is it the right folder?")
    alerts = [alert for alert in run.alerts if alert.step < step]
    return Earlier(step, run.seconds, run.info, alerts, list(_parts(folder, step)))


def _parts(folder: Path, before: int) -> Iterator[Part]:
    parts: list[Part] = []
    for line in ReadingsReader(folder / READINGS_FILE).new_lines():
        try:
            if "resumed" in line:
                parts = [kept for part in parts if (kept := _cut(part, int(line["resumed"]))) is not None]
            elif "values" in line and "steps" in line:
                columns = {name: [float(decode(value)) for value in column] for name, column in line["values"].items()}
                parts.append(([int(step) for step in line["steps"]], columns))
            elif "values" in line:
                parts.append((int(line["step"]), {name: decode(value) for name, value in line["values"].items()}))
        except (TypeError, ValueError, AttributeError):  # a damaged line: the reader of the run counts it
            continue
    return iter([kept for part in parts if (kept := _cut(part, before)) is not None])


def _cut(part: Part, before: int) -> Part | None:
    """Return what of a part lies before a step."""
    steps, values = part
    if isinstance(steps, int):
        return part if steps < before else None
    kept = sum(step < before for step in steps)
    if kept == len(steps):
        return part
    return (steps[:kept], {name: column[:kept] for name, column in values.items()}) if kept else None
