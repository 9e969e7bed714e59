"""How well faults are found, beside other detectors on the same runs; resumable.

Every fault of the catalogue that can be made on a small task is trained in several severities on seven architectures with
four optimizers, from the start or in mid-run, and so are healthy trainings that come close to a fault. Each run is a line of the
results file, and its log is kept beside it: a run that is there already is not made again, so the benchmark can be stopped and
gone on with, and `--again` asks the rules anew about all the logs.

Thresholds were chosen on the development part (mlp, conv_batch_norm, lstm, language_model); figures are of the test part
(residual, transformer, autoencoder), other seeds included.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.detection.baselines import BASELINES
from benchmarks.detection.replay import diagnose
from benchmarks.detection.runs import Case, attempt, cases, described
from benchmarks.detection.score import baseline_summary, confusion, false_alarms, misses, summary
from benchmarks.page import arguments, publish, table

TARGETS = {
    "recall": "97 %",
    "recall, mean over the faults": "97 %",
    "strict top-1 cause": "90 %",
    "top-3 cause": "97 %",
    "right module": "90 %",
    "healthy runs with a warning or error": "1 % over at least 300",
    "episodes per 1,000 healthy steps": "0.05",
    "steps to detection, exact faults: median, 90 %": "1",
    "steps to detection, all: median, 90 %": "25",
}


def main() -> None:
    """Run what is missing and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/detection"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=1, help="of each fault and control (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no further run is begun after (default 60)")
    parser.add_argument("--again", action="store_true", help="ask the rules again about the runs that are there")
    options = parser.parse_args()
    lines = options.results / "runs.jsonl"
    known = {record["key"]: record for record in _read(lines) if "error" not in record}
    wanted = _by_turns(cases(options.seeds))
    missing = [case for case in wanted if case.key not in known]
    (options.results / "runs").mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        lines.open("a") as file,
        Progress(*columns) as bar,
        multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=400) as pool,
    ):
        task = bar.add_task("runs", total=len(wanted), completed=len(wanted) - len(missing))
        for record in pool.imap_unordered(partial(attempt, options.results / "runs"), missing):
            known[record["key"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            bar.update(task, advance=1)
            if time.monotonic() > until:
                pool.terminate()
                break
    done = [known[case.key] for case in wanted if case.key in known]
    if options.again:
        for record in done:
            folder = options.results / "runs" / record["key"].replace("/", ".")
            if folder.exists():
                record["findings"] = described(diagnose(folder))
    publish(
        "detection", "How well faults are found", _page([r for r in done if "error" not in r], len(wanted)), options.print_only
    )


def _by_turns(found: list[Case]) -> list[Case]:
    """Return the cases in an order of which any beginning is a fair sample."""
    return sorted(found, key=lambda case: _shuffled(case.key))


def _shuffled(key: str) -> int:
    number = 0
    for character in key:
        number = (number * 1_000_003 + ord(character)) % 2**31
    return number


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _page(records: list[dict[str, Any]], wanted: int) -> str:
    test = [record for record in records if record["case"]["seed"] >= 100]
    development = [record for record in records if record["case"]["seed"] < 100]
    one, two = summary(test), summary(development)
    figures = [[name, one[name], two[name], TARGETS[name]] for name in one]
    others = [[name, *baseline_summary(test, name)] for name in BASELINES]
    return f"""
{len(records)} of {wanted} runs: {len(test)} of the test part (other architectures and seeds than thresholds were chosen on),
{len(development)} of the development part. A fault counts where it is exact or the run ended clearly worse than a healthy one.
Wilson intervals, 95 %.

{table(["figure", "test part", "development part", "target"], figures)}

Other detectors, from their published thresholds, on the test part:

{table(["detector", "detects something", "right cause", "healthy runs flagged"], others)}

### What was named first

Faults against first findings, by their codes; the diagonal is right.

Test part:

{table(*confusion(test))}

Development part:

{table(*confusion(development))}

Not found, or not first, on the test part:

{table(["run", "loss", "findings (step)"], misses(test)) if misses(test) else "None."}

The same on the development part:

{table(["run", "loss", "findings (step)"], misses(development)) if misses(development) else "None."}

Healthy runs with a warning or error:

{table(["run", "findings"], false_alarms(records)) if false_alarms(records) else "None."}
"""


if __name__ == "__main__":
    main()
