"""What a step costs on which nothing is measured: paired with the plain loop.

The promise is that an untracked step takes at most 1.02 times a plain one. Steps of the plain loop and steps inside a
``with Cockpit`` whose schedule never measures alternate in short blocks, of the same model and optimizer, plain first and watched
first in turn, so that what else the machine does, and what the caches hold, is the same for both. Processor time is counted, not
time on the wall.

A block takes about a second, and the line of the log that a cockpit writes about once a second is part of every watched one.
Opening and closing the cockpit is not part of a block, the first steps after it neither. The plain loop is timed a second time
as a control: how far its ratio is from 1 is what the machine adds.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim import SGD

from benchmarks.nets import Net, nets
from benchmarks.page import arguments, publish, table
from cockpit_lite import Cockpit
from tests.identity import cockpit, process_state

TARGET = 1.02
BLOCK_SECONDS = 1.0
#: Steps before the clock starts: a cockpit looks at its first backward passes more closely, and the caches settle.
WARM_UP = 5


@dataclass(frozen=True)
class Timing:
    """Seconds a step, of each block; the lists are paired."""

    net: str
    steps: int
    plain: list[float]
    watched: list[float]
    control: list[float]

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbouring blocks, watched over plain."""
        return statistics.median(self._ratios(self.watched))

    @property
    def control_ratio(self) -> float:
        """The same of plain over plain: 1 on a machine that is perfectly even."""
        return statistics.median(self._ratios(self.control))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the ratios of neighbouring blocks."""
        low, _, high = statistics.quantiles(self._ratios(self.watched), n=4)
        return low, high

    def _ratios(self, blocks: list[float]) -> list[float]:
        return [block / plain for plain, block in zip(self.plain, blocks, strict=True)]


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
        for _ in range(WARM_UP):
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
            assert watching.step == WARM_UP + count
        return (end - start) / count

    plain(3)
    count = max(round(block_seconds / plain(5)), 2)
    timing = Timing(net.name, count, [], [], [])
    blocks: list[tuple[Callable[[int], float], list[float]]] = [
        (plain, timing.plain),
        (watched, timing.watched),
        (plain, timing.control),
    ]
    until = time.monotonic() + seconds
    while len(timing.plain) < 4 or time.monotonic() < until:
        for block, times in blocks:
            times.append(block(count))
        blocks.append(blocks.pop(0))  # every kind of block comes first, second and last in turn
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
    extra = statistics.median(watched - plain for plain, watched in zip(shortest.plain, shortest.watched, strict=True))
    if extra <= 0 or shortest.ratio <= TARGET:
        return "The reason for a miss: the spread of the timing is wider than what is measured; see the middle half of the pairs."
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
        low, high = timing.quartiles
        rows.append(
            [
                timing.net,
                f"{1e3 * statistics.median(timing.plain):.3f} ms",
                f"{1e3 * statistics.median(timing.watched):.3f} ms",
                f"**{timing.ratio:.3f}**",
                f"{low:.3f} to {high:.3f}",
                f"{timing.control_ratio:.3f}",
                f"{len(timing.plain)} of {timing.steps} steps",
                "met" if timing.ratio <= TARGET else "**missed**",
            ]
        )
    target = f"at most {TARGET}"
    header = ["net", "plain step", "untracked step", "median ratio", "middle half", "plain over plain", "blocks", target]
    body = f"""
Plain, watched and again plain blocks of the same model and optimizer (SGD) take turns; `Cockpit(model, optimizer,
schedule=lambda step: False, budget=None)`. Processor time; ratios of neighbouring blocks, their median and middle half. Loss,
learning rate and step time are recorded at every step all the same.

{table(header, rows)}

{reason(timings)}
"""
    publish("untracked", "An untracked step", body, options.print_only)


if __name__ == "__main__":
    main()
