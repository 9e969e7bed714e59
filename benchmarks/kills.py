"""A training that is killed at a random moment: what was flushed is there, the run can be looked at, and gone on with.

A child process trains with a cockpit, writes a checkpoint every few steps, and says after every flush how long the log is now.
The parent ends it with SIGKILL, which nothing can catch, at a random moment: while the log, ``run.json`` or a checkpoint is
written, or between. Then the run is opened, reported and watched, and another process resumes it from the last checkpoint. In the
end its losses are compared with those of a training that nobody has killed.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from benchmarks.page import arguments, publish, table
from cockpit_lite import Every, load_run
from cockpit_lite.plots.follow import Follower
from cockpit_lite.run_log import RunWriter
from tests.identity import cockpit

#: Steps between two checkpoints, and how far a resumed training goes beyond the last.
CHECKPOINT_EVERY, FURTHER = 7, 12
MOST_STEPS = 5_000
CHECKPOINT = "checkpoint.pt"
_LENGTH = struct.Struct("Q")


@dataclass(frozen=True)
class Killed:
    """What became of one training.

    Attributes:
        flushed: Bytes of the log that had been handed over when it was killed.
        steps: Steps in the log afterwards.
        torn: Bytes behind the last whole line.
        resumed_at: The step from which on it was gone on with.
        lost: What was wrong, empty if nothing was.
    """

    flushed: int
    steps: int
    torn: int
    resumed_at: int
    lost: str


def _batches(first: int) -> Iterator[Tensor]:
    for step in range(first, MOST_STEPS):
        yield torch.randn(8, 6, generator=torch.Generator().manual_seed(step))


def _train(folder: Path | None, first: int, last: int, say: Callable[[int], None] = lambda length: None) -> list[float]:
    """Train from the checkpoint of step ``first`` to ``last``; without a folder nobody watches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = Adam(model.parameters(), lr=0.01)
    losses = []

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    if folder is None:
        for _, x in zip(range(last), _batches(0), strict=False):
            step(x)
        return losses
    if first:
        saved = torch.load(folder / CHECKPOINT)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    # Some steps are measured and some are not; the log is flushed all the time, so that many kills meet it.
    watching = cockpit(model, optimizer, run=folder, resume=first or False, instruments="light", schedule=Every(2), budget=None)
    with watching:
        recorder = watching._recorder
        assert recorder is not None
        for x in _batches(first):
            step(x)
            if watching.step % 3 == 0:
                recorder.flush()
                say((folder / "readings.jsonl").stat().st_size)
            if watching.step % CHECKPOINT_EVERY == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": watching.step}
                torch.save(state, folder / "checkpoint.part")
                os.replace(folder / "checkpoint.part", folder / CHECKPOINT)
            if watching.step >= last:
                break
    return losses


def _in_child(work: Callable[[], object]) -> int:
    """Do ``work`` in a copy of this process, and end it there; return the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where there are threads: the child uses none of them
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        torch.set_num_threads(1)
        RunWriter.flush_interval = 0.002
        work()
        code = 0
    finally:
        os._exit(code)


def kill_once(folder: Path, draw: random.Random, expected: list[float], *, pictures: bool = False) -> Killed:
    """Train, kill, look, resume, compare.

    Args:
        folder: For the run; it must not exist.
        draw: Says when.
        expected: The losses of a training that is not killed.
        pictures: Whether to write the whole report, with its pictures.
    """
    read, write = os.pipe()
    child = _in_child(lambda: _train(folder, 0, MOST_STEPS, lambda length: os.write(write, _LENGTH.pack(length))))
    os.close(write)
    said = b""
    try:
        first = os.read(read, _LENGTH.size)  # from the first flush on any moment will do
        said += first
        time.sleep(draw.uniform(0.0, 0.25))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while more := os.read(read, 2**16):
        said += more
    os.close(read)
    flushed = _LENGTH.unpack(said[-_LENGTH.size :])[0]
    log = (folder / "readings.jsonl").read_bytes()
    torn = len(log) - (log.rfind(b"\n") + 1)
    run = load_run(folder)
    steps, losses = run.series("loss")
    problems = []
    if len(log) < flushed or not log[:flushed].endswith(b"\n"):
        problems.append(f"{flushed} bytes were flushed, {len(log)} are there")
    if run.bad_lines:
        problems.append(f"{run.bad_lines} lines cannot be read")
    if steps.tolist() != list(range(len(steps))) or not np.allclose(losses, expected[: len(losses)], rtol=1e-6):
        problems.append("the readings are not those of the training")
    report = run.report()
    if report.status != "running" or "broken off" not in report.ending:
        problems.append(f"the report calls the run {report.status}")
    report.to_json()
    str(report)
    if pictures:
        report.save()
    follower = Follower(folder, child)
    follower.refresh()
    if not follower.ended or "stopped" not in follower.state:
        problems.append("a viewer waits for more")

    checkpoint = folder / CHECKPOINT
    resumed_at = int(torch.load(checkpoint)["step"]) if checkpoint.exists() else 0
    if resumed_at:
        again = _in_child(lambda: _train(folder, resumed_at, resumed_at + FURTHER))
        if os.waitpid(again, 0)[1]:
            problems.append("it could not be resumed")
        resumed = load_run(folder)
        # The checkpoint may be younger than what was flushed last: between them are the readings of up to a second.
        wanted = [*range(min(len(steps), resumed_at)), *range(resumed_at, resumed_at + FURTHER)]
        steps, losses = resumed.series("loss")
        if steps.tolist() != wanted:
            problems.append(f"after resuming at {resumed_at} the steps are not those before and behind it")
        elif not np.allclose(losses, np.array(expected)[steps], rtol=1e-6):
            problems.append("after resuming the losses are not those of the training")
        if resumed.bad_lines or resumed.info["status"] != "completed":
            problems.append("after resuming the run is not whole")
    return Killed(flushed, len(losses), torn, resumed_at, "; ".join(problems))


def expected_losses() -> list[float]:
    """Return the losses of the training that nobody kills."""
    return _train(None, 0, MOST_STEPS)


def main() -> None:
    """Kill many and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("There is no fork on this system.")
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    expected = expected_losses()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            kill_once(Path(folder, str(number)), draw, expected, pictures=number % 20 == 0) for number in range(options.kills)
        ]
    lost = [result.lost for result in results if result.lost]
    lengths = sorted(result.flushed for result in results)
    rows = [
        ["killed", len(results)],
        [
            "every flushed reading there, log opens, report and viewer work, resumed run equals the whole",
            len(results) - len(lost),
        ],
        ["killed within a line (torn, cut off when resumed)", sum(result.torn > 0 for result in results)],
        ["resumed from a checkpoint", sum(result.resumed_at > 0 for result in results)],
        ["bytes of log when killed: least, median, most", f"{lengths[0]}, {lengths[len(lengths) // 2]}, {lengths[-1]}"],
    ]
    body = f"""
A child trains with a cockpit and is ended with SIGKILL at a random moment; then its run is opened, reported, watched, resumed
from its last checkpoint by another process, and compared with a training that was not killed.

{table(["what", "trainings"], rows)}

Lost: **{len(lost)}** of {len(results)} (target: 0 of 200): {"met" if not lost and len(results) >= 200 else "**missed**"}.
{chr(10).join(f"- {text}" for text in lost)}
"""
    publish("kills", "Killed at random moments", body, options.print_only)


if __name__ == "__main__":
    main()
