"""Going on with a run that was broken off: steps, alerts and the past go on from where they were."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from cockpit_lite import Alert, RunExistsError, SetupError, load_run
from cockpit_lite.run_log import RunWriter
from tests.identity import cockpit


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def batches(first: int, last: int) -> Iterator[Tensor]:
    for step in range(first, last):
        yield torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, optimizer: Any, first: int, last: int, explode: int = -1) -> None:
    for step, x in enumerate(batches(first, last), first):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        (loss * (torch.inf if step == explode else 1.0)).backward()
        optimizer.step()


def checkpointed_run(folder: Path, checkpoint: int = 5, last: int = 9, **options: Any) -> dict[str, Any]:
    """Train to ``last``, with a checkpoint on the way; return the checkpoint."""
    model = net()
    optimizer = Adam(model.parameters(), lr=0.01)
    with cockpit(model, optimizer, run=folder, budget=None, instruments="light", **options) as watching:
        train(model, optimizer, 0, checkpoint)
        saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": watching.step})
        train(model, optimizer, checkpoint, last)
    return saved


def go_on(folder: Path, saved: dict[str, Any], resume: bool | int, last: int, explode: int = -1, **options: Any) -> list[Alert]:
    model = net()
    optimizer = Adam(model.parameters(), lr=0.01)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    with cockpit(model, optimizer, run=folder, resume=resume, budget=None, instruments="light", **options) as watching:
        assert watching.step == (resume if resume is not True else watching.step)
        train(model, optimizer, saved["step"], last, explode)
    return watching.alerts


def test_a_resumed_run_reads_as_one_that_was_never_broken_off(tmp_path: Path) -> None:
    saved = checkpointed_run(tmp_path / "whole", 5, 12)
    checkpointed_run(tmp_path / "run", 5, 9)
    shutil.move(tmp_path / "run", tmp_path / "another machine")
    assert saved["step"] == 5
    go_on(tmp_path / "another machine", saved, 5, 12)
    run, whole = load_run(tmp_path / "another machine"), load_run(tmp_path / "whole")
    assert run.last_step == 11 and run.bad_lines == 0
    for name in ("loss", "grad_norm", "learning_rate", "update_size"):
        np.testing.assert_array_equal(run.series(name)[0], whole.series(name)[0])
        np.testing.assert_array_equal(run.series(name)[1], whole.series(name)[1])
    assert run.info["status"] == "completed" and run.info["steps"] == 12
    assert [resumed["step"] for resumed in run.info["resumed"]] == [5]
    assert run.info["created"] <= run.info["resumed"][0]["at"]
    assert run.series("distance")[0].tolist() == [0, 1, 2, 3, 4]
    assert "resumed" in run.not_measured["distance"]
    assert run.report().steps == 12


def test_time_goes_on(tmp_path: Path) -> None:
    saved = checkpointed_run(tmp_path / "run")
    before = load_run(tmp_path / "run").seconds
    go_on(tmp_path / "run", saved, 5, 6)
    assert load_run(tmp_path / "run").seconds > before > 0


def test_without_a_number_it_goes_on_behind_the_last_recorded_step(tmp_path: Path) -> None:
    saved = checkpointed_run(tmp_path / "run", 5, 9)
    go_on(tmp_path / "run", saved, True, 7)
    assert load_run(tmp_path / "run").series("loss")[0].tolist() == list(range(11))


def test_where_there_is_no_run_yet_it_begins(tmp_path: Path) -> None:
    model = net()
    optimizer = Adam(model.parameters())
    with cockpit(model, optimizer, run=tmp_path / "run", resume=True) as watching:
        train(model, optimizer, 0, 2)
    assert watching.step == 2 and "resumed" not in load_run(tmp_path / "run").info


def test_alerts_are_raised_once_and_those_of_steps_that_are_void_again(tmp_path: Path) -> None:
    saved = checkpointed_run(tmp_path / "run", 3, 4)
    heard: list[Alert] = []
    alerts = go_on(tmp_path / "run", saved, 3, 6, explode=4, on_alert=heard.append)
    found = {alert.code for alert in alerts if alert.step == 4}
    assert found and {alert.code for alert in heard} >= found
    # gone on with behind them: they are known
    heard.clear()
    alerts = go_on(tmp_path / "run", saved, 6, 8, on_alert=heard.append)
    assert found <= {alert.code for alert in alerts} and not found & {alert.code for alert in heard}
    # gone on with before them: they have not happened
    heard.clear()
    alerts = go_on(tmp_path / "run", saved, 3, 6, on_alert=heard.append)
    assert not found & {alert.code for alert in load_run(tmp_path / "run").alerts}


def test_a_reader_that_follows_leaves_out_what_is_void(tmp_path: Path) -> None:
    saved = checkpointed_run(tmp_path / "run", 5, 9)
    run = load_run(tmp_path / "run")
    steps, losses = run.series("loss")
    kept = losses.copy()
    go_on(tmp_path / "run", saved, 5, 7)
    assert run.refresh()
    assert run.series("loss")[0].tolist() == list(range(7)) and run.last_step == 6
    np.testing.assert_array_equal(losses, kept)  # what was handed out stays as it was
    assert len(steps) == 9


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    saved = checkpointed_run(tmp_path / "run", 5, 9)
    with open(tmp_path / "run" / "readings.jsonl", "ab") as file:
        file.write(b'{"step": 9, "val')
    go_on(tmp_path / "run", saved, 5, 7)
    run = load_run(tmp_path / "run")
    assert run.bad_lines == 0 and run.series("loss")[0].tolist() == list(range(7))


@pytest.mark.parametrize("resume", [-1, "yes", None, 1.5])
def test_what_is_no_step(resume: Any, tmp_path: Path) -> None:
    model = net()
    with pytest.raises(SetupError, match="resume= takes True or the number of the next step"):
        cockpit(model, Adam(model.parameters()), run=tmp_path / "run", resume=resume)


def test_resume_needs_a_folder(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(SetupError, match="say where it is with run="):
        cockpit(model, Adam(model.parameters()), resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_run_that_is_still_written_cannot_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunWriter, "patience", 0.0)
    writer = RunWriter(tmp_path / "run", {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunExistsError, match="still being written by another process"):
        RunWriter(tmp_path / "run", {}, resumed=0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    writer.close()
    RunWriter(tmp_path / "run", {}, resumed=0).close()


def test_a_run_that_was_never_begun_is_refused(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", {}).close()
    model = net()
    with (
        pytest.raises(SetupError, match="has recorded no step yet"),
        cockpit(model, Adam(model.parameters()), run=tmp_path / "run", resume=7),
    ):
        pytest.fail("the block must not be entered")
    assert os.listdir(tmp_path / "run")
