"""From the records of all runs to recall, causes, false alarms and delay."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.detection.faults import FAULTS
from benchmarks.detection.runs import MEASURES
from cockpit_lite.diagnosis import RULES

Record = Mapping[str, Any]

#: How much worse than healthy trainings of the same task a run must end for its fault to have done harm.
WORSE = 1.25


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, hits / count
    middle = share + z * z / (2 * count)
    width = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((middle - width) / scale, 0.0), min((middle + width) / scale, 1.0)


def is_healthy(record: Record) -> bool:
    """Return whether nothing was broken in the run."""
    return record["case"]["fault"] < 0


def result(record: Record, steps: int | None = None) -> float:
    """Return the mean loss of the last ten steps of a run, or of the ten before a step."""
    losses = record["losses"][: max(steps or len(record["losses"]), 10)][-10:]
    return statistics.mean(losses)


def harmful(records: Iterable[Record]) -> list[Record]:
    """Return the records of faults that really hurt.

    These are the exact ones, and those whose loss ends clearly above that of healthy trainings of the same task at the same step:
    WORSE times their median, and above every single one. Two do harm that the training loss does not show.
    """
    records = list(records)
    healthy: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["case"]["control"] in MEASURES:
            healthy[record["case"]["task"]].append(record)
    return [record for record in records if record["case"]["fault"] >= 0 and _does_harm(record, healthy[record["case"]["task"]])]


def _does_harm(record: Record, healthy: Sequence[Record]) -> bool:
    fault = FAULTS[record["case"]["fault"]]
    if fault.exact or fault.name in ("overfitting", "class-imbalance"):
        return True
    steps = len(record["losses"])
    longest = max((len(other["losses"]) for other in healthy), default=0)
    levels = [result(other, steps) for other in healthy if len(other["losses"]) >= min(steps, longest)]
    return not levels or not result(record) < max(WORSE * statistics.median(levels), *levels)


def causes(record: Record) -> set[str]:
    """Return the names that are right for the record."""
    fault = FAULTS[record["case"]["fault"]]
    return {fault.name, *fault.also}


def found_at(record: Record) -> int | None:
    """Return the step at which the right cause was named, not before the fault began; None if it was not."""
    right = causes(record)
    steps = [step for name, step, _, _ in record["findings"] if name in right and step >= record["begin"] - 1]
    return min(steps, default=None)


def place_of_cause(record: Record) -> int | None:
    """Return the place of the right cause in the ranked findings, from 0."""
    right = causes(record)
    return next((place for place, finding in enumerate(record["findings"]) if finding[0] in right), None)


def place_is_right(record: Record) -> bool | None:
    """Return whether the first place named is one that was broken; None where the fault has no place or was not found."""
    if not record["places"]:
        return None
    named = next((finding[3] for finding in record["findings"] if finding[0] in causes(record)), None)
    if named is None:
        return None
    return any(_same(place, name) for place in record["places"] for name in named[:1])


def _same(place: str, name: str) -> bool:
    """Return whether two names mean the same module, one of them perhaps by one of its parameters."""
    return place == name or place.startswith(f"{name}.") or name.startswith(f"{place}.")


def share(hits: int, count: int) -> str:
    """Return a share with its interval, for a table."""
    if not count:
        return "none"
    low, high = wilson(hits, count)
    return f"{hits / count:.1%} ({low:.0%} to {high:.0%}, n = {count})"


def loud(record: Record) -> list[str]:
    """Return the names of findings above a note."""
    return [name for name, _, severity, _ in record["findings"] if severity != "note"]


def summary(records: Sequence[Record]) -> dict[str, str]:
    """Return the figures of one part of the benchmark by name."""
    broken, healthy = harmful(records), list(filter(is_healthy, records))
    detected = [record for record in broken if found_at(record) is not None]
    by_fault: dict[str, list[bool]] = defaultdict(list)
    for record in broken:
        by_fault[FAULTS[record["case"]["fault"]].name].append(found_at(record) is not None)
    delays = [max(step - record["begin"], 0) for record in detected if (step := found_at(record)) is not None]
    exact = [delay for record, delay in zip(detected, delays, strict=True) if FAULTS[record["case"]["fault"]].exact]
    flagged = [record for record in healthy if loud(record)]
    steps = sum(record["steps"] for record in healthy)
    placed = [right for record in broken if (right := place_is_right(record)) is not None]
    macro = statistics.mean(sum(hits) / len(hits) for hits in by_fault.values()) if by_fault else math.nan
    places = [place_of_cause(record) for record in broken]
    return {
        "recall": share(len(detected), len(broken)),
        "recall, mean over the faults": f"{macro:.1%}",
        "strict top-1 cause": share(sum(place == 0 for place in places), len(broken)),
        "top-3 cause": share(sum(place is not None and place < 3 for place in places), len(broken)),
        "right module": share(sum(placed), len(placed)),
        "healthy runs with a warning or error": share(len(flagged), len(healthy)),
        "episodes per 1,000 healthy steps": f"{1000 * sum(map(len, map(loud, healthy))) / max(steps, 1):.3f}",
        "steps to detection, exact faults: median, 90 %": _quantiles(exact),
        "steps to detection, all: median, 90 %": _quantiles(delays),
    }


def _quantiles(delays: Sequence[int]) -> str:
    if not delays:
        return "none"
    ordered = sorted(delays)
    return f"{statistics.median(ordered):.0f}, {ordered[min(int(0.9 * len(ordered)), len(ordered) - 1)]}"


def baseline_summary(records: Sequence[Record], name: str) -> tuple[str, str, str]:
    """Return detected, right cause and flagged healthy runs of another detector."""
    broken, healthy = harmful(records), list(filter(is_healthy, records))
    alarms = [(record, record["baselines"][name]) for record in broken]
    detected = sum(alarm is not None and alarm[1] >= record["begin"] for record, alarm in alarms)
    right = sum(alarm is not None and alarm[0] in causes(record) for record, alarm in alarms)
    flagged = sum(record["baselines"][name] is not None for record in healthy)
    return share(detected, len(broken)), share(right, len(broken)), share(flagged, len(healthy))


def confusion(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a matrix: faults against what was named first; columns are faults by their code."""
    broken = harmful(records)
    names = list(dict.fromkeys(fault.name for fault in FAULTS))
    first = Counter((_name(record), record["findings"][0][0] if record["findings"] else "nothing") for record in broken)
    columns = [name for name in (*names, *sorted({what for _, what in first} - {*names, "nothing"}), "nothing")]
    columns = [name for name in columns if any(what == name for _, what in first)]
    codes = {rule.name: rule.code for rule in RULES}
    head = ["fault", "runs", "found", *(codes.get(name, name) for name in columns)]
    rows = []
    for name in names:
        of_fault = [record for record in broken if _name(record) == name]
        if of_fault:
            hits = sum(found_at(record) is not None for record in of_fault)
            row = [str(first[name, column] or "") for column in columns]
            row = [f"**{cell}**" if column == name and cell else cell for column, cell in zip(columns, row, strict=True)]
            rows.append([f"{codes[name]} {name}", str(len(of_fault)), str(hits), *row])
    return head, rows


def _name(record: Record) -> str:
    return FAULTS[record["case"]["fault"]].name


def misses(records: Sequence[Record]) -> list[list[str]]:
    """Return a row for each fault that did harm and was not named first."""
    rows = []
    for record in harmful(records):
        if place_of_cause(record) != 0 or found_at(record) is None:
            found = ", ".join(f"{name} ({step})" for name, step, _, _ in record["findings"][:3]) or "nothing"
            rows.append([record["key"], f"{record['losses'][0]:.3g} to {result(record):.3g}", found])
    return rows


def false_alarms(records: Sequence[Record]) -> list[list[str]]:
    """Return a row for each healthy run with a finding above a note."""
    return [[record["key"], ", ".join(loud(record))] for record in records if is_healthy(record) and loud(record)]


def misplaced(records: Sequence[Record]) -> list[list[str]]:
    """Return a row for each fault that was found in another place than where it is."""
    rows = []
    for record in harmful(records):
        if place_is_right(record) is False:
            named = next(finding[3] for finding in record["findings"] if finding[0] in causes(record))
            rows.append([record["key"], ", ".join(record["places"][:4]), ", ".join(named[:2]) or "nothing"])
    return rows
