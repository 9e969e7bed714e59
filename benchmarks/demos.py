"""Do the broken demos name their fault, and does the healthy one stay silent?

Every variant of ``cockpit-lite demo`` is trained over several seeds as the command does it. A broken one counts as right if the
first finding of its report is the alert it was built for; the healthy one if nothing above a note was found.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import torch

from benchmarks.page import arguments, publish, table
from cockpit_lite import Alert, Cockpit
from cockpit_lite.demo import STEPS, VARIANTS, run_demo


def findings(broken: str | None, seed: int, folder: Path) -> tuple[Alert, ...]:
    """Run one demo without the pictures at its end, and return what its report says."""
    # The report is built here from the run; drawn pages would take longer than the training and say the same.
    with mock.patch.object(Cockpit, "_write_results", lambda self: None), contextlib.redirect_stderr(io.StringIO()):
        return run_demo(broken, run=folder, seed=seed, progress=False).report().findings


def is_right(expected: str | None, found: tuple[Alert, ...]) -> bool:
    """Return whether the report says what it should."""
    if expected is None:
        return all(alert.severity == "note" for alert in found)
    return bool(found) and found[0].name == expected


def main() -> None:
    """Run all demos and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, missed = [], []
    for broken, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            results = [findings(broken, seed, Path(folder, str(seed))) for seed in range(options.seeds)]
        right = [is_right(variant.alert, found) for found in results]
        missed += [(broken or "healthy", seed, results[seed]) for seed, good in enumerate(right) if not good]
        steps = [str(found[0].step) if found else "none" for found in results]
        begin = 0 if variant.alert is None else 1
        others = Counter(f"{alert.name} ({alert.severity})" for found in results for alert in found[begin:])
        rows.append(
            [
                broken or "healthy",
                variant.alert or "nothing above a note",
                f"**{sum(right)} of {len(right)}**",
                ", ".join(steps),
                ", ".join(f"{name}: {count}" for name, count in others.items()) or "none",
            ]
        )
    header = ["demo", "expected first finding", "seeds where it is", "found at step", "other findings: seeds"]
    lines = [
        f"- {name}, seed {seed}: {', '.join(f'{alert.name} at step {alert.step}' for alert in found) or 'nothing found'}"
        for name, seed, found in missed
    ]
    verdict = f"Target (all seeds of all demos): {'**missed**' if missed else 'met'}.\n\n" + "\n".join(lines)
    body = f"""
The five broken variants of `cockpit-lite demo` and the healthy one, {STEPS} steps each, seeds 0 to {options.seeds - 1}, on
scikit-learn's digits.

{table(header, rows)}

{verdict}
"""
    publish("demos", "Broken and healthy demos", body, options.print_only)


if __name__ == "__main__":
    main()
