"""What a budget makes of a whole training: the share of its time that measuring took, by its own account and by the clock.

A training of two thousand steps under a budget, for each net, preset and share. **By its own account**: what the cockpit says it
spent. **By the clock**: after every fifth watched step the same net takes a plain one; by how much the watched steps took longer
than these, in the mean. (Blocks of plain steps, some seconds apart, were off by more than what is measured.) That holds the steps
nobody measures, too, and the spread of the timing, which is why a target is a matter of the account.

Processor time, one thread. A training ended is a line of ``benchmarks/results/budgets.jsonl``: begun again, the benchmark goes on
with those that are not there; ``--again`` forgets them first.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch

from benchmarks.overhead import Case, cases, judged
from benchmarks.page import arguments, publish, table
from cockpit_lite import load_run
from cockpit_lite.observer import Observer
from tests.identity import cockpit

PRESETS = ("standard", "full")
SHARES = (0.05, 0.01)
#: Greatest share in all, by budget; others may be exceeded by a tenth.
SHARE_TARGETS = {0.01: 0.012, 0.05: 0.055}
STEPS = 2000
RESULTS = Path("benchmarks/results/budgets.jsonl")
#: So many watched steps are followed by a plain one.
PLAIN_EVERY = 5


class PausedClock:
    """Processor time that stands still while the plain training has its turn, which is no time of the watched one."""

    def __init__(self) -> None:
        self._left_out = 0.0

    def __call__(self) -> float:
        return time.process_time() - self._left_out

    def leave_out(self, seconds: float) -> None:
        """Take back seconds that have gone by."""
        self._left_out += seconds


@dataclass(frozen=True)
class Spent:
    """What a training under a budget cost in all."""

    net: str
    preset: str
    share: float
    steps: int
    account: float
    clock: float
    measured: int


def spent(case: Case, preset: str, share: float, folder: Path, steps: int) -> Spent:
    """Train under a budget, with plain steps in between, and return what that cost."""
    torch.manual_seed(0)
    model = case.net.factory()
    model(case.net.inputs)  # gives lazy layers their shape
    other = copy.deepcopy(model)
    plain = case.step(other, case.optimizer(other))
    for _ in range(3):
        plain()
    optimizer = case.optimizer(model)
    watched = case.step(model, optimizer)
    clock = PausedClock()
    watched_seconds = plain_seconds = 0.0
    plain_steps = 0
    with (
        contextlib.redirect_stderr(io.StringIO()),
        mock.patch("cockpit_lite.cockpit.Observer", functools.partial(Observer, clock=clock)),
        cockpit(model, optimizer, run=folder, instruments=preset, budget=share),
    ):
        for number in range(steps):
            start = time.process_time()
            watched()
            between = time.process_time()
            watched_seconds += between - start
            if number % PLAIN_EVERY == 0:
                plain()
                plain_steps += 1
                seconds = time.process_time() - between
                plain_seconds += seconds
                clock.leave_out(seconds)
    run = load_run(folder)
    longer = (watched_seconds / steps) / (plain_seconds / plain_steps) - 1
    return Spent(case.name, preset, share, steps, float(run.info["cost"]["share"]), longer, len(run.series("grad_norm")[0]))


def row(found: Spent) -> list[str]:
    """Return the line of the table; in a short training the first steps are not paid back: a figure, and no verdict."""
    limit = SHARE_TARGETS.get(found.share, 1.1 * found.share)
    account = judged(100 * found.account, 100 * limit if found.steps >= STEPS else None)
    return [
        found.net,
        found.preset,
        f"{found.share:.0%}",
        account,
        f"{100 * found.clock:.1f}",
        f"{found.measured} of {found.steps}",
    ]


def main() -> None:
    """Train what has not been trained, and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training (default 2,000)")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="budgets (default 0.05 0.01)")
    parser.add_argument("--presets", nargs="*", default=PRESETS, help="(default standard full)")
    parser.add_argument("--only", nargs="*", help="nets whose names begin so")
    parser.add_argument("--again", action="store_true", help="forget the trainings that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.again:
        RESULTS.unlink(missing_ok=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    found = [Spent(**json.loads(line)) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    there = {(one.net, one.preset, one.share, one.steps) for one in found}
    chosen = [case for case in cases() if not options.only or case.name.startswith(tuple(options.only))]
    for preset, share, case in itertools.product(options.presets, options.shares, chosen):
        if (case.name, preset, share, options.steps) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found.append(spent(case, preset, share, Path(folder, "run"), options.steps))
        with RESULTS.open("a") as file:
            file.write(json.dumps(asdict(found[-1])) + "\n")
    order = [case.name for case in cases()]
    made = {(one.net, one.preset, one.share) for one in found if one.steps >= STEPS}
    left = [
        f"`{preset}` at {share:.0%} on {net}"
        for preset, share, net in itertools.product(PRESETS, SHARES, order)
        if (net, preset, share) not in made
    ]
    found.sort(key=lambda one: (order.index(one.net), one.preset != "standard", -one.share))
    body = f"""
Trainings under a budget, SGD unless it says LBFGS (four evaluations a step): share of the training's time in percent that
measuring took by the cockpit's own account, and by how much watched steps took longer than plain ones in between (one after
five; the spread of the timing is in it). Targets hold over {STEPS:,} steps.

{table(["net", "preset", "budget", "share by account (%)", "longer by the clock (%)", "measured steps"], map(row, found))}

{f"Not trained for the time it takes: {'; '.join(left)}." if left else ""}

Step 0 is always measured by all of `standard` and by what rules read, since most faults show there. Of `full` the rest (spectra,
traces, diagonals, the tangent kernel, the batch at other weights) is measured there, too, where a thousand steps could pay for it
(at 5%); otherwise (at 1%) it is first measured when its time has been saved, the cheapest first. On nets whose steps take
milliseconds that is later than two thousand steps.
"""
    publish("budgets", "Budgets", body, options.print_only)


if __name__ == "__main__":
    main()
