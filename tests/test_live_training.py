"""Real trainings watched as a person would: in a window that is closed or killed in the middle, in tmux. They never notice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cockpit_lite import load_run
from tests.displays import virtual_display

PATIENCE = 180  # a machine that is busy with other work starts a process slowly

#: A training that goes on until it is told to stop, and then says what became of its weights.
TRAINING = """
import sys, time, warnings
from pathlib import Path
import torch
from cockpit_lite import Cockpit
warnings.simplefilter("error")
torch.manual_seed(0)
folder, live, stop = Path(sys.argv[1]), sys.argv[2] or None, Path(sys.argv[3])
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs, targets = torch.randn(16, 4), torch.randint(3, (16,))
steps = 0
with Cockpit(model, optimizer, run=folder, live=live, instruments="light"):
    while steps < 30 or not stop.exists():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        steps += 1
        if steps == 30:
            at_30 = sum(float(p.detach().double().sum()) for p in model.parameters())
        time.sleep(0.02)
sys.stdout.write(f"at 30: {at_30!r}")
"""


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.2)


class Training:
    """A training in a process of its own."""

    def __init__(self, folder: Path, live: str = ""):
        self.run, self._stop = folder / "run", folder / "stop"
        command = [sys.executable, "-c", TRAINING, str(self.run), live, str(self._stop)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: (self.run / "run.json").exists() or self.process.poll() is not None)

    def steps(self) -> int:
        return load_run(self.run).last_step or 0

    def finish(self) -> str:
        """Let it end; return what it said in the end."""
        self._stop.touch()
        said, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, errors
        assert load_run(self.run).info["status"] == "completed"
        return said.rpartition("at 30: ")[2]


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with virtual_display(monkeypatch, "Xvfb", "xdotool", "import") as name:
        yield name


def window() -> str:
    found = subprocess.run(["xdotool", "search", "--name", "cockpit-lite: run"], capture_output=True, text=True)
    return found.stdout.split()[0] if found.stdout else ""


def colours(display: str) -> int:
    """Return how many colours are on the screen: few as long as nothing is drawn."""
    shot = subprocess.run(
        ["import", "-display", display, "-window", "root", "rgb:-"], capture_output=True, timeout=PATIENCE
    ).stdout
    return len({shot[index : index + 3] for index in range(0, len(shot), 3)})


@pytest.mark.parametrize("end", ["closed by the user", "killed"])
def test_a_window_that_goes_in_the_middle_goes_unnoticed(end: str, tmp_path: Path, display: str) -> None:
    """The window shows a training; then it is closed or killed; the training ends as one that nobody watched."""
    training = Training(tmp_path, "window")
    wait_for(lambda: window() and colours(display) > 200)
    before = training.steps()
    if end == "killed":
        pid = training.process.pid
        (viewer,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        os.kill(viewer, signal.SIGKILL)
    else:
        subprocess.run(["xdotool", "windowclose", window()], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: not window())
    wait_for(lambda: training.steps() > before)
    assert training.finish() == repr(weights_of_a_plain_loop())


def weights_of_a_plain_loop() -> float:
    """Return what the training says, of the same 30 steps without a cockpit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        inputs, targets = torch.randn(16, 4), torch.randint(3, (16,))
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return sum(float(p.detach().double().sum()) for p in model.parameters())


def test_the_terminal_view_in_tmux(tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    training = Training(tmp_path)
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", os.devnull]
    command = f"{sys.executable} -m cockpit_lite watch {training.run} --terminal; echo ended with $?; sleep 60"
    subprocess.run([*tmux, "new-session", "-d", "-x", "100", "-y", "30", command], check=True)

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True).stdout

    try:
        wait_for(lambda: "Update ratio" in screen())
        first = screen()
        assert "Sequential  running" in first and "SGD · step " in first
        assert "│" in first and any(block in first for block in "▁▂▃▄▅▆▇█")
        wait_for(lambda: screen() != first)  # it moves
        assert screen().count("Sequential  running") == 1  # in its place, not below
        training.finish()
        wait_for(lambda: "ended with 0" in screen())
        assert "Sequential  completed" in screen()
    finally:
        subprocess.run([*tmux, "kill-server"], stderr=subprocess.DEVNULL)
        if training.process.poll() is None:
            training.finish()
