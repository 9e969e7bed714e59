"""What looking at a run costs: a refresh of the page, opening a long run, its report, and a training that is watched.

- **Refresh**: a run that grows; what was appended is read, and the page of twelve gauges is brought up to date on an Agg
  canvas, as a window does it. All readings are measured at every step, which is the most that there can be to draw. Cockpit's
  ``plotter.plot`` on the readings of as many steps is timed beside it where ``pip install -e ".[benchmark]"`` is there.
- **Opening**: processes of their own that do nothing else; memory is what their resident set grows by.
- **Watched training**: a viewer in another process keeps the picture of the run, at the pace of all viewers; it is stopped and
  let go on between the blocks of the same training.

Processor time throughout, one thread, medians.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim import SGD

from benchmarks.nets import nets
from benchmarks.page import arguments, publish, table
from cockpit_lite import load_run, plots
from cockpit_lite.plots import OVERVIEW, Layout, Page
from cockpit_lite.plots.painter import Painter
from cockpit_lite.run_log import RunWriter
from tests.identity import cockpit

REFRESH_TARGET, OPEN_TARGET, REPORT_TARGET, SLOWED_TARGET = 0.050, 2.0, 5.0, 1.01
#: Refreshes that are timed, and steps that come between two of them, as a share of all.
REFRESHES, GROWTH = 40, 1e-4
_BLOCK = 256

#: The overview and two gauges more.
TWELVE = Layout(
    columns=(
        (OVERVIEW.columns[0][0], (*OVERVIEW.columns[0][1], plots.distance)),
        (OVERVIEW.columns[1][0], (*OVERVIEW.columns[1][1], plots.gsnr)),
        OVERVIEW.columns[2],
    ),
    wide=OVERVIEW.wide,
)


# ------------------------------------------------------------------------------------------------------------- runs of any length


def readings(first: int, count: int, total: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Return what the twelve gauges show, at some steps of a training."""
    progress = (first + np.arange(count)) / total

    def noisy(course: Any, spread: float) -> np.ndarray:
        return np.asarray(course * np.exp(spread * random.standard_normal(count)))

    noise_scale = noisy(40 + 300 * progress, 0.3)
    found = {
        "loss": noisy(2 * np.exp(-3 * progress) + 0.05, 0.1),
        "learning_rate": 0.05 * (0.55 + 0.45 * np.cos(np.pi * np.minimum(progress, 1.0))),
        "update_ratio": noisy(1e-3, 0.2),
        "update_size": noisy(0.03, 0.2),
        "distance": 10 * np.sqrt(progress),
        "alpha": -0.3 + 0.3 * random.standard_normal(count),
        "grad_norm": noisy(1.5 * np.exp(-progress), 0.3),
        "norm_test": noisy(1 + progress, 0.2),
        "inner_product_test": noisy(0.5 + progress, 0.2),
        "orthogonality_test": noisy(0.9 + progress, 0.2),
        "gradient_noise_scale": noise_scale,
        "suggested_batch_size_lower": 0.6 * noise_scale,
        "suggested_batch_size_upper": 1.9 * noise_scale,
        "batch_size": np.full(count, 64.0),
        "gsnr": noisy(0.3, 0.2),
        "taylor_gradient_term": noisy(0.1, 0.2),
        "taylor_curvature_term": noisy(0.02, 0.3),
        "curvature_along_gradient": noisy(4 + progress, 0.2),
        "max_eigenvalue": noisy(12 + 10 * progress, 0.05),
        "hessian_trace": noisy(80 + 10 * progress, 0.1),
        "overhead": noisy(0.03, 0.1),
        "step_time": noisy(0.01, 0.1),
    }
    return {name: values.tolist() for name, values in found.items()}


class GrowingRun:
    """A run that is still being written.

    Args:
        folder: Where.
        steps: With which it begins.
        tracked: Every so many steps all readings are there; on the others only what is recorded at every step.
    """

    def __init__(self, folder: Path, steps: int, tracked: int = 1):
        info = {"model": {"class": "Net"}, "optimizer": [{"class": "SGD", "lr": 0.05}], "status": "running"}
        self.writer = RunWriter(folder, info)
        self.steps, self._total, self._tracked = 0, steps, tracked
        self._random = np.random.default_rng(0)
        self.grow(steps)

    def __enter__(self) -> GrowingRun:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the run as a training that was killed leaves it."""
        self.writer.abandon()

    def grow(self, count: int) -> None:
        """Append steps, and hand them to the operating system."""
        end = self.steps + count
        while self.steps < end:
            block = list(range(self.steps, min(end, self.steps + _BLOCK)))
            values = readings(block[0], len(block), self._total, self._random)
            if self._tracked == 1:
                self.writer.block(block, values)
            else:
                always = {name: values[name] for name in ("loss", "learning_rate", "step_time")}
                self.writer.block(block, always)
                for index, step in enumerate(block):
                    if step % self._tracked == 0:
                        self.writer.step(step, {name: column[index] for name, column in values.items() if name not in always})
            self.steps = block[-1] + 1
        self.writer.flush()


# ---------------------------------------------------------------------------------------------------------------------- refreshes


@dataclass(frozen=True)
class Refreshes:
    """Seconds that refreshes took."""

    steps: int
    first: float
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all but the first, which draws everything."""
        return statistics.median(self.times)


def refreshes(run_folder: Path, growing: GrowingRun, count: int = REFRESHES) -> Refreshes:
    """Time refreshes of the page of a run that grows; all gauges, however long it takes."""
    run, painter = load_run(run_folder), Painter(Page(layout=TWELVE))
    first = _seconds(lambda: painter.refresh(run))
    times = []
    for _ in range(count):
        growing.grow(max(1, round(GROWTH * growing.steps)))
        times.append(_seconds(lambda: (run.refresh(), painter.refresh(run, budget=None))))
    return Refreshes(growing.steps, first, times)


def peer_refreshes(steps: int, count: int = 5) -> Refreshes | None:
    """Time Cockpit's plotter on as many steps; None where it is not installed."""
    try:
        from cockpit import CockpitPlotter

        from benchmarks.cockpit_peer import ECONOMY, peer_step
    except ImportError:
        return None
    net = nets()[0]
    torch.manual_seed(0)
    step, peer = peer_step(net, net.factory(), ECONOMY)
    for _ in range(steps):
        step()
    plotter = CockpitPlotter()

    def draw() -> None:
        plotter.plot(peer, show_plot=False, save_plot=False)
        plotter.fig.canvas.draw()

    return Refreshes(steps, _seconds(draw), [_seconds(draw) for _ in range(count)])


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


# ------------------------------------------------------------------------------------------------------------ opening and reports

_CHILD = """import json, resource, sys, time
from pathlib import Path
from cockpit_lite import plots
from cockpit_lite.report import build_report
from cockpit_lite.run import load_run
def resident():  # of now, not the most there ever was: importing takes more for a moment
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
def most():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, most_before, started = resident(), most(), time.process_time()
run = load_run(sys.argv[1])
opened, memory, peak = time.process_time() - started, resident() - before, max(0, most() - most_before)
started = time.process_time()
{work}
json.dump({{"opened": opened, "memory": memory, "peak": peak, "worked": time.process_time() - started}}, sys.stdout)
"""
LOOK = "page = plots.Page(); page.update(run)"
REPORT = "build_report(run).save()"


def child(folder: Path, work: str) -> dict[str, float]:
    """Open a run in a process of its own and do some work; return seconds and bytes."""
    command = [sys.executable, "-c", _CHILD.format(work=work), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


# --------------------------------------------------------------------------------------------------------------- watched training


@contextmanager
def viewer(folder: Path) -> Iterator[int]:
    """Start a viewer that keeps the picture of a run; yield its process."""
    program = "import sys; from cockpit_lite.live import watch; watch(sys.argv[1], 'picture')"
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Watched:
    """Seconds a step of each block, alone and watched; the lists are paired."""

    alone: list[float]
    watched: list[float]
    viewer: float  # its processor time over that of the wall, while it was let run

    @property
    def ratio(self) -> float:
        """Median of watched over the mean of the blocks alone before and after it."""
        around = [(before + after) / 2 for before, after in zip(self.alone, self.alone[1:], strict=False)]
        return statistics.median(watched / alone for watched, alone in zip(self.watched, around, strict=True))

    @property
    def control(self) -> float:
        """The same of blocks alone: what the machine adds."""
        return statistics.median(after / before for before, after in zip(self.alone, self.alone[1:], strict=False))


def watched_training(folder: Path, pairs: int, seconds: float) -> Watched:
    """Train with a cockpit; a viewer looks at the run, or is stopped, in turn."""
    net = nets()[0]
    torch.manual_seed(0)
    model = net.factory()
    optimizer = SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(net.inputs), net.targets).backward()
        optimizer.step()

    def block() -> float:
        until, steps, started = time.monotonic() + seconds, 0, time.process_time()
        while time.monotonic() < until:
            step()
            steps += 1
        return (time.process_time() - started) / steps

    alone, watched, worked = [], [], 0.0
    # Measured at every fiftieth step: as a budget decides it, blocks would differ by more than a viewer could add.
    with cockpit(model, optimizer, run=folder, instruments="standard", schedule=lambda step: step % 50 == 0, budget=None):
        for _ in range(50):
            step()
        with viewer(folder) as pid:
            until = time.monotonic() + 60
            while not (folder / "cockpit.png").exists() and time.monotonic() < until:
                step()  # it has been started and has drawn once
            for number in range(2 * pairs + 1):
                os.kill(pid, signal.SIGCONT if number % 2 else signal.SIGSTOP)
                before = _processor_time(pid)
                (watched if number % 2 else alone).append(block())
                worked += (_processor_time(pid) - before) if number % 2 else 0.0
    return Watched(alone, watched, worked / (pairs * seconds))


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------------------------------------------------- the
# section


def verdict(value: float, target: float, unit: float, sign: str) -> str:
    """Return a figure with whether it meets its target.

    >>> verdict(0.0312, 0.05, 1e-3, "ms"), verdict(2.4, 2.0, 1, "s")
    ('**31.2 ms** (met)', '**2.4 s** (missed: 2 s)')
    """
    return f"**{value / unit:.3g} {sign}** " + ("(met)" if value <= target else f"(missed: {target / unit:g} {sign})")


def refresh_rows(folder: Path, lengths: list[int]) -> list[list[str]]:
    """Time ours at every length, and theirs where that is possible."""
    rows = []
    for steps in lengths:
        with GrowingRun(folder / f"run{steps}", steps) as growing:
            found = refreshes(folder / f"run{steps}", growing)
        slowest = sorted(found.times)[int(0.95 * len(found.times))]
        ours = verdict(found.median, REFRESH_TARGET, 1e-3, "ms")
        rows.append(["cockpit-lite", f"{steps:,}", ours, f"{1e3 * slowest:.3g} ms", f"{found.first:.2f} s"])
    for steps in (length for length in lengths if length <= 100):  # a thousand of its steps take ten minutes
        peer = peer_refreshes(steps)
        name = "Cockpit 1.0.2, economy, plotter.plot"
        if peer is None:
            rows.append([name, f"{steps:,}", "not installed", "", ""])
        else:
            rows.append(
                [name, f"{steps:,}", f"{1e3 * peer.median:.3g} ms", f"{1e3 * max(peer.times):.3g} ms", f"{peer.first:.2f} s"]
            )
    return rows


def opening_rows(folder: Path, steps: int) -> list[list[str]]:
    """Time opening runs for the first time, and again."""
    rows = []
    every = folder / f"run{steps}"  # left by the refreshes
    with GrowingRun(folder / "budget", steps, tracked=100):
        pass
    cases = (("all readings at every 100th step, the rest at every step", "budget"), ("all readings at every step", every.name))
    for title, name in cases:
        log = folder / name / "readings.jsonl"
        for when in ("first time", "again"):
            if when == "first time":
                for path in (folder / name / ".cache").glob("*"):
                    if path.suffix != ".mirror":  # the writer's own
                        path.unlink()
            found = child(folder / name, LOOK)
            size = sum(path.stat().st_size for path in (folder / name / ".cache").glob("*"))
            opened = verdict(found["opened"], OPEN_TARGET, 1, "s")
            sizes = (log.stat().st_size, size, found["memory"], found["peak"])
            memory = [f"{max(0, bytes_ / 2**20):.0f} MiB" for bytes_ in sizes]
            rows.append([title, when, opened, *memory, f"{found['worked']:.2f} s"])
        for path in (folder / name / ".cache").glob("*"):
            path.unlink()
        found = child(folder / name, LOOK)
        opened = f"{found['opened']:.3g} s"
        memory = [
            f"{log.stat().st_size / 2**20:.0f} MiB",
            "none before",
            *(f"{found[key] / 2**20:.0f} MiB" for key in ("memory", "peak")),
        ]
        rows.append([title, "from the text of the log alone", opened, *memory, f"{found['worked']:.2f} s"])
    return rows


def main() -> None:
    """Run the benchmark and write its section."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--pairs", type=int, default=9, help="blocks of watched training")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of such a block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        refresh = refresh_rows(folder, [100, options.steps])
        opening = opening_rows(folder, options.steps)
        GrowingRun(folder / "report", 10_000).writer.close(status="completed")
        report = child(folder / "report", REPORT)
        page = (folder / "report" / "report.html").stat().st_size
        watched = watched_training(folder / "watched", options.pairs, options.seconds)
    taken = report["opened"] + report["worked"]
    body = f"""Processor time, one thread. All readings of the twelve gauges are measured at every step; between two refreshes
comes a ten-thousandth of the steps, at least one. The first time everything is drawn. A window gives a refresh 50 ms and lets
what is left wait for the next one; here all gauges are brought up to date.

**Refresh** of the whole page, reading included; target 50 ms at any length.

{table(["", "steps", "median", "95 of 100", "first time"], refresh)}

**Opening** a run of {options.steps:,} steps that was killed; target 2 s. The training keeps what its log says as arrays
beside it (from the second MiB on, in `.cache`; used where its checksum is that of the log). Of these and the rest of the log
the first to open the run makes a cache, which is mapped into memory and read where it is looked at. Memory: what the process
takes more, and at most for a while. The page is then drawn from nothing. The last row of each: `.cache` was deleted before.

{table(["what was measured", "", "opened", "log", "beside it", "memory", "at most", "page"], opening)}

**Report** of a run of 10,000 steps, opened, checked, drawn and written: {verdict(taken, REPORT_TARGET, 1, "s")}, {page / 1e6:.2f}
MB of HTML.

**A training that is watched** ({nets()[0].name}, `instruments="standard"` at every 50th step): a step takes
**{watched.ratio:.3f}** times what it takes while the viewer is stopped
({"met" if watched.ratio <= SLOWED_TARGET else "missed"}: {SLOWED_TARGET}); medians over
{options.pairs} blocks of {options.seconds:g} s. Neighbouring blocks without a viewer differ by a factor of
{watched.control:.3f}, which is what the machine adds. The viewer, in a process of its own that yields to others, takes
{watched.viewer:.1%} of a core."""
    publish("views", "Looking at a run", body, options.print_only)


if __name__ == "__main__":
    main()
