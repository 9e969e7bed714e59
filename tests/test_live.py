"""The live views with a run that grows: in a real window on a virtual display, as a picture, in the terminal, in a notebook."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from cockpit_lite import live
from cockpit_lite.errors import CockpitWarning, NotARunError, SetupError
from cockpit_lite.live_dashboard import Dashboard, sparkline
from cockpit_lite.live_notebook import NotebookViewer
from cockpit_lite.live_terminal import TerminalViewer, watch_terminal
from cockpit_lite.plots.follow import Follower
from cockpit_lite.run import load_run
from cockpit_lite.run_log import RunWriter
from tests.displays import virtual_display
from tests.plots.synthetic import ALERTS, readings_run, training_run

PATIENCE = 180  # a machine that is busy with other work starts a process slowly


def wait_for(what: Callable[[], object]) -> None:
    """Wait until something is so; fail after a minute."""
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    made = RunWriter(tmp_path / "run", {"model": {"class": "Net"}, "optimizer": [{"class": "SGD"}], "status": "running"})
    grow(made, 5)
    yield made
    if not made._readings.closed:
        made.close(status="completed")


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("what a missing display looks like is known on Linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with virtual_display(monkeypatch, "Xvfb") as name:
        yield name


def grow(writer: RunWriter, steps: int) -> None:
    start = getattr(writer, "grown", 0)
    for step in range(start, start + steps):
        writer.step(step, {"loss": 2.0 / (1 + step), "grad_norm": 1.0, "update_ratio": 1e-3})
    writer.grown = start + steps  # type: ignore[attr-defined]
    writer.flush()


def is_png(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:4] == b"\x89PNG"


# Without a display ----------------------------------------------------------------------------------------------------


def test_without_a_display_a_picture_is_kept_and_it_is_said_once(writer: RunWriter, no_display: None) -> None:
    picture = writer.folder / "cockpit.png"
    with pytest.warns(CockpitWarning, match=r"there is no display.*cockpit\.png") as said:
        viewer = live.start_viewer(writer.folder, "window")
    assert isinstance(viewer, live.ProcessViewer)
    wait_for(lambda: is_png(picture))
    first = picture.stat().st_mtime_ns
    grow(writer, 20)
    wait_for(lambda: picture.stat().st_mtime_ns != first)
    writer.close(status="completed")
    viewer.close()  # says nothing a second time: warnings are errors here
    assert len(said) == 1
    wait_for(lambda: viewer._process.poll() is not None)
    assert viewer._process.returncode == 0
    assert not list(writer.folder.glob(".cockpit.png*"))


def test_the_viewer_of_a_training_that_died_ends_too(tmp_path: Path, no_display: None) -> None:
    program = (
        "import os, sys, warnings; warnings.simplefilter('ignore')\n"
        "from cockpit_lite.run_log import RunWriter; from cockpit_lite.live import start_viewer\n"
        "writer = RunWriter(sys.argv[1], {'status': 'running'}); writer.step(0, {'loss': 1.0}); writer.flush()\n"
        "sys.stdout.write(str(start_viewer(sys.argv[1], 'window').pid)); sys.stdout.flush(); os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], capture_output=True, text=True, timeout=PATIENCE)
    viewer = int(done.stdout)
    wait_for(lambda: not Path(f"/proc/{viewer}").exists() or "Z" in Path(f"/proc/{viewer}/stat").read_text().rpartition(")")[2])
    assert is_png(tmp_path / "run" / "cockpit.png")


def test_the_command_line_says_why_there_is_no_window(tmp_path: Path, no_display: None) -> None:
    run = training_run(tmp_path / "run", steps=10)
    done = subprocess.run(
        [sys.executable, "-m", "cockpit_lite", "watch", str(run.folder)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0
    assert done.stderr.count("No window, because there is no display.") == 1
    assert is_png(run.folder / "cockpit.png")


def test_a_viewer_that_cannot_be_started_is_only_warned_about(
    writer: RunWriter, no_display: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.warns(CockpitWarning) as said:
        assert live.start_viewer(writer.folder, "window") is None
    assert "cannot be shown live" in str(said[-1].message)


def test_a_viewer_that_fails_says_so_in_the_end(writer: RunWriter, tmp_path: Path, display: str) -> None:
    viewer = live.ProcessViewer(tmp_path / "nothing")
    wait_for(lambda: viewer._process.poll() is not None)
    with pytest.warns(CockpitWarning, match=r"NotARunError.*nothing"):
        viewer.close()


@pytest.mark.parametrize("mode", ["windows", "", "picture"])
def test_an_unknown_mode_is_refused(mode: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="window"):
        live.start_viewer(tmp_path, mode)


def test_watching_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARunError):
        live.watch(tmp_path)
    with pytest.raises(SetupError, match="terminal"):
        live.watch(training_run(tmp_path / "run", steps=1).folder, "television")


# In a window ----------------------------------------------------------------------------------------------------------


def screen(display: str) -> bytes:
    """Return the pixels of the virtual display."""
    shot = subprocess.run(["import", "-display", display, "-window", "root", "rgb:-"], capture_output=True, timeout=PATIENCE)
    return shot.stdout


@pytest.mark.skipif(shutil.which("import") is None, reason="needs ImageMagick to look at the screen")
def test_a_window_follows_the_run_and_outlives_it(writer: RunWriter, display: str) -> None:
    empty = screen(display)
    viewer = live.start_viewer(writer.folder, "window")
    assert isinstance(viewer, live.ProcessViewer)
    try:
        wait_for(lambda: len(set(screen(display))) > 50)  # more than the few colours of an empty screen
        before = screen(display)
        assert before != empty
        grow(writer, 200)
        wait_for(lambda: screen(display) != before)
        writer.close(status="completed")
        viewer.close()
        time.sleep(2.0)
        assert viewer._process.poll() is None  # it is the user who closes it
        assert not (writer.folder / "cockpit.png").exists()
    finally:
        os.kill(viewer.pid, signal.SIGKILL)
        viewer._process.wait()


def test_killing_the_window_goes_unnoticed(writer: RunWriter, display: str) -> None:
    viewer = live.start_viewer(writer.folder, "window")
    assert isinstance(viewer, live.ProcessViewer)
    os.kill(viewer.pid, signal.SIGKILL)
    viewer._process.wait()
    grow(writer, 10)
    writer.close(status="completed")
    viewer.close()


def test_a_window_that_is_closed_ends_its_process(tmp_path: Path, display: str) -> None:
    run = training_run(tmp_path / "run", steps=10)
    program = (
        "import sys, threading\n"
        "import matplotlib.pyplot as plt\n"
        "from cockpit_lite.plots import window\n"
        "from cockpit_lite.plots.follow import Follower\n"
        "opened = window._open_figure\n"
        "def open_and_close(title):\n"
        "    figure = opened(title)\n"
        "    window_ = figure.canvas.manager.window\n"
        "    window_.after(1500, lambda: window_.tk.call(window_.protocol('WM_DELETE_WINDOW')))\n"
        "    return figure\n"
        "window._open_figure = open_and_close\n"
        "window.show_window(Follower(sys.argv[1]))\n"
        "sys.stdout.write('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, run.folder], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.returncode) == ("ended", 0), done.stderr


def test_a_display_that_does_not_answer_is_named(tmp_path: Path, display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":47391")
    run = training_run(tmp_path / "run", steps=10)
    done = subprocess.run(
        [sys.executable, "-m", "cockpit_lite", "watch", str(run.folder)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0
    assert "the display :47391 does not answer" in done.stderr
    assert is_png(run.folder / "cockpit.png")


# In the terminal ------------------------------------------------------------------------------------------------------


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_dashboard_says_what_the_gauges_say(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", alerts=["ill-conditioning", "exploding-gradients"])
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(Dashboard(run, "running"))
    said = shown(console)
    for words in (
        "ConvNet",
        "SGD · step 299 · 90",
        "measuring costs 3",
        "Loss",
        "still falling",
        "noise dominates",
        "CL302 exploding-gradients at step 195",
    ):
        assert words in said
    assert said.index("CL302") < said.index("CL404")


def test_the_dashboard_of_any_run_is_drawn(tmp_path: Path) -> None:
    for number, run in enumerate(
        [
            training_run(tmp_path / "empty", steps=0),
            training_run(tmp_path / "one", steps=1),
            training_run(tmp_path / "nan", nan_from=0),
            readings_run(
                tmp_path / "markup", {"loss": [1.0]}, model="[bold]x[/", alerts=[ALERTS["ill-conditioning"] | {"name": "[/]"}]
            ),
        ]
    ):
        console = Console(file=io.StringIO(), width=80)
        console.print(Dashboard(run, "running"))
        assert len(shown(console).splitlines()) >= 3, number
    assert "[bold]x[/" in shown(console)


@pytest.mark.parametrize(("width", "height"), [(160, 40), (100, 24), (80, 16), (50, 12), (30, 8), (20, 4)])
def test_the_dashboard_fits_the_terminal(width: int, height: int, tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", steps=130, alerts=["ill-conditioning", "exploding-gradients", "learning-rate-too-high"])
    run.info["budget"] = 0.05
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(Dashboard(run, "running"))
    lines = shown(console).splitlines()
    assert len(lines) <= height - 1
    assert max(map(cell_len, lines)) <= width
    said = "\n".join(lines)
    assert "Loss" in said and "CL402"[: width // 2] in said
    assert ("│" in said.split("Loss")[1]) == (width >= 100)  # bars of limits
    assert ("█" in said.split("Loss")[1]) == (width >= 80)  # courses
    assert ("5 % are allowed" in said) == (width >= 80)


def test_bars_end_at_the_limit(tmp_path: Path) -> None:
    run = readings_run(tmp_path, {"loss": [1.0], "update_ratio": [0.005], "inner_product_test": [1.2]})
    console = Console(file=io.StringIO(), width=120)
    console.print(Dashboard(run, "running"))
    said = {line.split("  ")[0]: line for line in shown(console).splitlines()}
    assert "████    │ " in said["Update ratio"]
    assert "████████│▶" in said["Gradient tests"]


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    alert = ALERTS["ill-conditioning"] | {"cause": "a\x1b[2Jb", "name": "c\x07"}
    run = readings_run(tmp_path, {"loss": [1.0]}, model="x\x1b]0;owned\x07", alerts=[alert])
    console = Console(file=io.StringIO(), width=120)
    console.print(Dashboard(run, "running"))
    assert "\x1b" not in shown(console) and "\x07" not in shown(console)


def test_other_ranks_can_be_looked_at(tmp_path: Path) -> None:
    run = readings_run(tmp_path / "run", {"loss": [1.0, 0.5]}, status="running")
    (run.folder / "readings-rank1.jsonl").write_text('{"step": 7, "values": {"loss": 3.25}}\n', encoding="utf-8")
    other = load_run(run.folder, rank=1)
    assert run.ranks == other.ranks == [0, 1]
    assert (run.last_step, other.last_step) == (1, 7)
    console = Console(file=io.StringIO(), width=120)
    console.print(Dashboard(other, "running"))
    assert "rank 1 of 2" in shown(console) and "3.25" in shown(console)
    with pytest.raises(NotARunError, match=r"no readings of rank 2; there are those of \[0, 1\]"):
        live.watch(run.folder, "terminal", rank=2)


def test_a_course_is_drawn_in_one_line() -> None:
    assert sparkline(np.array([])) == ""
    assert sparkline(np.array([3.0])) == "▁"
    assert sparkline(np.array([1.0, 1.0])) == "▁▁"
    assert sparkline(np.arange(8.0), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline(10.0 ** np.arange(8.0), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([np.nan, np.inf])) == "××"
    assert len(sparkline(np.arange(10_000.0), width=28)) == 28


def test_a_pipe_gets_plain_lines_until_the_run_ends(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", steps=10)
    console = Console(file=io.StringIO(), width=200)
    watch_terminal(Follower(run.folder), console)
    (line,) = shown(console).splitlines()
    assert line.startswith("completed, step 9, loss ")
    assert "\x1b" not in line


def test_a_terminal_shows_the_run_below_the_training(writer: RunWriter) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    viewer = TerminalViewer(writer.folder, console)
    grow(writer, 100)
    writer.close(status="completed")
    viewer.close()
    assert not viewer._thread.is_alive()
    assert "step 104" in shown(console)


def test_a_terminal_view_that_breaks_is_said_and_training_goes_on(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("terminal gone")

    monkeypatch.setattr("cockpit_lite.live_terminal.Dashboard", fail)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        viewer = TerminalViewer(writer.folder, Console(file=io.StringIO(), force_terminal=True))
        viewer.close()
    assert ["terminal gone" in str(warning.message) for warning in said] == [True]


# In a notebook --------------------------------------------------------------------------------------------------------


def test_a_notebook_cell_is_updated_while_the_run_grows(writer: RunWriter) -> None:
    pictures: list[bytes] = []
    viewer = NotebookViewer(writer.folder, open_cell=lambda: pictures.append)
    wait_for(lambda: len(pictures) == 1)
    grow(writer, 50)
    wait_for(lambda: len(pictures) == 2)
    last = b"\x89PNG drawn by the training at its end"
    (writer.folder / "cockpit.png").write_bytes(last)
    writer.close(status="completed")
    viewer.close()
    assert pictures[0][:4] == b"\x89PNG"
    assert pictures[0] != pictures[1]
    assert pictures[-1] == last
    wait_for(lambda: viewer._process._process.poll() is not None)


def test_outside_a_notebook_the_other_views_are_named(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.warns(CockpitWarning, match="live='window' or live='terminal'"):
        assert live.start_viewer(writer.folder, "notebook") is None
