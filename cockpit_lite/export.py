"""Export: a run that was recorded, told to a sink as if it happened now. Also one that crashed, or of another machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from cockpit_lite.errors import SetupError
from cockpit_lite.run import Run
from cockpit_lite.sink import Sink, of_file, resolve_sinks


def export(run: Run, sink: Sink) -> None:
    """Tell ``sink`` every reading that is a number, and the alerts at their steps.

    Raises:
        SetupError: if the sink's library is not installed.
    """
    alerts = sorted(run.alerts, key=lambda alert: alert.step)
    sink.open(run.folder, run.info)
    try:
        for step, values in steps(run):
            sink.take(step, values)
            while alerts and alerts[0].step <= step:
                sink.alert(alerts.pop(0))
        for alert in alerts:
            sink.alert(alert)
    finally:
        sink.close()


def steps(run: Run) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield the steps of a run in order, each with its readings that are numbers."""
    series = {name: run.series(name) for name in run.names if _is_of_numbers(run, name)}
    begins = {name: 0 for name in series}
    waiting: dict[int, list[str]] = defaultdict(list)  # the next step of each reading
    for name, (numbers, _) in series.items():
        if len(numbers):
            waiting[int(numbers[0])].append(name)
    for step in sorted({int(step) for numbers, _ in series.values() for step in numbers}):
        values: dict[str, float] = {}
        for name in waiting.pop(step):
            numbers, column = series[name]
            values[name] = float(column[begins[name]])
            begins[name] += 1
            if begins[name] < len(numbers):
                waiting[int(numbers[begins[name]])].append(name)
        yield step, values


def sink_for(place: str) -> Sink:
    """Return the sink that writes a file, by its ending, or that of this name.

    Raises:
        SetupError: if it is neither.
    """
    path = Path(place)
    if path.suffix:
        return of_file(path)
    try:
        return resolve_sinks(place)[0]
    except SetupError as error:
        raise SetupError(f"{place!r} is no file that ends in .csv or .parquet, and no tracker. {error}") from None


def _is_of_numbers(run: Run, name: str) -> bool:
    try:
        return run.series(name)[1].ndim == 1
    except ValueError:  # arrays of different shapes
        return False
