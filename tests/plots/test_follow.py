from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit_lite.errors import NotARunError
from cockpit_lite.plots.follow import Follower, is_alive
from cockpit_lite.run_log import RunWriter


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    return RunWriter(tmp_path / "run", {"status": "running"})


def ended_process() -> int:
    """Return the id of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_new_steps_are_read_as_they_come(writer: RunWriter) -> None:
    follower = Follower(writer.folder)
    assert not follower.refresh()
    writer.step(0, {"loss": 1.0})
    assert not follower.refresh()
    writer.flush()
    assert follower.refresh()
    assert follower.run.names == ["loss"]
    assert (follower.state, follower.ended) == ("running", False)
    writer.close(status="completed")
    assert follower.refresh()
    assert (follower.state, follower.ended) == ("completed", True)


def test_a_training_that_died_is_noticed_and_its_last_words_are_read(writer: RunWriter) -> None:
    follower = Follower(writer.folder, pid=ended_process())
    writer.step(0, {"loss": 1.0})
    writer.close()
    assert follower.refresh()
    assert follower.run.names == ["loss"]
    assert (follower.state, follower.ended) == ("stopped without an end", True)


def test_a_run_that_another_process_resumed_is_followed_again(writer: RunWriter) -> None:
    writer.step(0, {"loss": 1.0})
    writer.flush()
    follower = Follower(writer.folder, pid=ended_process())
    follower.refresh()
    assert follower.ended
    writer.step(1, {"loss": 0.9})
    writer.flush()
    assert follower.refresh()
    assert (follower.state, follower.ended) == ("running", False)
    writer.close(status="completed")
    follower.refresh()
    assert follower.ended


def test_a_training_that_lives_is_waited_for(writer: RunWriter) -> None:
    follower = Follower(writer.folder, pid=os.getpid())
    follower.refresh()
    assert not follower.ended
    writer.close()


def test_silence_is_said_after_a_while_and_forgotten_with_the_next_step(writer: RunWriter) -> None:
    now = [0.0]
    follower = Follower(writer.folder, clock=lambda: now[0])
    now[0] = 100.0
    assert follower.state == "running"
    now[0] = 300.0
    assert follower.state == "running, silent for 5 min"
    writer.step(0, {"loss": 1.0})
    writer.close()
    follower.refresh()
    assert follower.state == "running"


def test_a_deleted_folder_ends_the_run(writer: RunWriter) -> None:
    follower = Follower(writer.folder)
    writer.close()
    shutil.rmtree(writer.folder)
    assert not follower.refresh()
    assert follower.ended


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARunError):
        Follower(tmp_path)


def test_processes_are_told_apart() -> None:
    assert is_alive(os.getpid())
    assert not is_alive(ended_process())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_ended_process_that_nobody_waited_for_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # returns when it ends
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]:
        pass
    assert not is_alive(process.pid)
    process.wait()
    process.stdout.close()
