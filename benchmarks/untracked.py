"""What a step costs on which nothing is measured: paired with the plain loop.

The promise is that an untracked step takes at most 1.01 times a plain one. Blocks of plain steps and blocks of steps inside a
``with Cockpit`` whose schedule never measures alternate, of the same model and optimizer, so that what else the machine does is
the same for both. Each watched block is compared with the mean of the plain ones before and after it: a machine that gets slower
evenly adds nothing. Processor time is counted, not time on the wall.

A block takes about a second, and the line of the log that a cockpit writes about once a second is part of every watched one.
Opening and closing the cockpit is not part of a block, the first steps after it neither. Plain blocks over the plain ones beside
them are the control: how far that is from 1 is what the machine adds. The interval holds the median of nineteen in twenty samples
drawn from the pairs with replacement (bootstrap).
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim import SGD

from benchmarks.nets import Net, nets
from benchmarks.page import arguments, publish, table
from cockpit_lite import Cockpit
from tests.identity import cockpit, process_state

TARGET = 1.01
BLOCK_SECONDS = 1.0
#: Samples drawn for an interval.
DRAWS = 2000
#: Seconds, and steps at least, before the clock starts: a cockpit looks at its first steps more closely, and the caches settle.
WARM_UP_SECONDS, WARM_UP_STEPS = 0.1, 3


@dataclass(frozen=True)
class Timing:
    """Seconds a step, of each block; before and after every watched block comes a plain one."""

    net: str
    steps: int
    plain: list[float]
    watched: list[float]

    @property
    def ratios(self) -> list[float]:
        """Watched blocks over the mean of the plain ones beside them."""
        return [
            2 * block / (before + after) for block, before, after in zip(self.watched, self.plain, self.plain[1:], strict=False)
        ]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)

    @property
    def control(self) -> float:
        """The same of plain blocks and the plain ones beside them: 1 on a machine that is perfectly even."""
        neighbours = zip(self.plain, self.plain[1:], self.plain[2:], strict=False)
        return statistics.median(2 * block / (before + after) for before, block, after in neighbours)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the median is, of nineteen in twenty samples."""
        ratios, draw = self.ratios, random.Random(0)
        medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
        return medians[DRAWS // 40], medians[-DRAWS // 40 - 1]


def measure(net: Net, seconds: float, folder: Path, block_seconds: float = BLOCK_SECONDS) -> Timing:
    """Time blocks in turn for about ``seconds``."""
    torch.manual_seed(0)
    model = net.factory()
    model(net.inputs)  # gives lazy layers their shape
    # The optimizer with the least work of its own, so that ours shows most.
    optimizer = SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        output = model(net.inputs)
        loss = F.cross_entropy(output.flatten(0, -2), net.targets.flatten())
        loss.backward()
        optimizer.step()

    gc.freeze()  # else collecting before every block, so that none pays for another's garbage, takes longer than the blocks

    def warm_up() -> None:
        gc.collect()
        for _ in range(first):
            step()

    untouched = process_state()

    def plain(count: int) -> float:
        assert process_state() == untouched, "a cockpit was closed and something of it is still there"
        warm_up()
        start = time.process_time()
        for _ in range(count):
            step()
        return (time.process_time() - start) / count

    def watched(count: int) -> float:
        run = folder / f"{len(list(folder.iterdir()))}"
        with cockpit(model, optimizer, run=run, schedule=lambda step: False, budget=None) as watching:
            warm_up()
            start = time.process_time()
            for _ in range(count):
                step()
            _write_log_line(watching)
            end = time.process_time()
            assert watching.step == first + count
        return (end - start) / count

    first = WARM_UP_STEPS
    plain(3)
    seconds_of_a_step = plain(5)
    first = max(first, round(WARM_UP_SECONDS / seconds_of_a_step))
    count = max(round(block_seconds / seconds_of_a_step), 1)
    timing = Timing(net.name, count, [plain(count)], [])
    until = time.monotonic() + seconds
    while len(timing.watched) < 4 or time.monotonic() < until:
        timing.watched.append(watched(count))
        timing.plain.append(plain(count))
    gc.unfreeze()
    return timing


def _write_log_line(watching: Cockpit) -> None:
    assert watching._observer is not None
    watching._observer._flush_pulse()


def reason(timings: list[Timing]) -> str:
    """Return why the target is missed, where it is."""
    if all(timing.ratio <= TARGET for timing in timings):
        return ""
    shortest = min(timings, key=lambda timing: statistics.median(timing.plain))
    extra = statistics.median(shortest.plain) * (shortest.ratio - 1)
    if extra <= 0 or shortest.ratio <= TARGET:
        return "The reason for a miss: the spread of the timing is wider than what is measured; see the interval."
    return (
        "The reason for a miss: what is recorded at every step takes Python the same time whatever the net, "
        f"{1e6 * extra:.0f} microseconds by the pairs of the shortest step, which is {TARGET - 1:.0%} of a step of "
        f"{1e3 * extra / (TARGET - 1):.1f} ms. "
        "A longer step that misses it does so by the spread of the timing."
    )


def main() -> None:
    """Measure all nets and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each net (default 60)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        timings: list[Timing] = []
        for net in nets():
            place = Path(folder, str(len(timings)))
            place.mkdir()
            timings.append(measure(net, options.seconds, place))
    rows = []
    for timing in timings:
        low, high = timing.interval
        rows.append(
            [
                timing.net,
                f"{1e3 * statistics.median(timing.plain):.3f} ms",
                f"{1e3 * statistics.median(timing.watched):.3f} ms",
                f"**{timing.ratio:.3f}**",
                f"{low:.3f} to {high:.3f}",
                f"{timing.control:.3f}",
                f"{len(timing.watched)} of {timing.steps} steps",
                "met" if timing.ratio <= TARGET else "**missed**",
            ]
        )
    target = f"at most {TARGET}"
    header = ["net", "plain step", "untracked step", "median ratio", "interval", "plain over plain", "blocks", target]
    body = f"""
Plain and watched blocks of the same model and optimizer (SGD) take turns; `Cockpit(model, optimizer, schedule=lambda step: False,
budget=None)`. Processor time; ratios of watched blocks to the mean of the plain ones before and after, their median, and where it
is of nineteen in twenty samples drawn from the pairs. Loss, learning rate and step time are recorded at every step all the same.

{table(header, rows)}

{reason(timings)}
"""
    publish("untracked", "An untracked step", body, options.print_only)


if __name__ == "__main__":
    main()
