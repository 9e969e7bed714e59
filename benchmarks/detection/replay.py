"""Asking the rules again about a training that is on disk: a changed threshold needs no new training."""

from __future__ import annotations

from pathlib import Path

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.run_log import ReadingsReader, decode, read_info


def diagnose(folder: Path) -> list[Alert]:
    """Return the findings of a run as today's rules see it, ranked."""
    history = History.of_run(read_info(folder))
    rules = [rule for rule in RULES if not rule.does_not_apply(history)]
    found: list[Alert] = []
    for line in ReadingsReader(folder / "readings.jsonl").new_lines():
        if "values" not in line:
            continue
        if "steps" in line:
            history.add_block(
                line["steps"], {name: [decode(value) for value in column] for name, column in line["values"].items()}
            )
            continue
        history.add(line["step"], {name: decode(value) for name, value in line["values"].items()})
        for rule in tuple(rules):
            alert = rule.check(history)
            if alert is not None:
                rules.remove(rule)
                found.append(alert)
    return rank(found, RULES)
