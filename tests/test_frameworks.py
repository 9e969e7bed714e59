"""Loops of one's own and scripts as they are, with every feature: the same training, to the bit, and its readings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cockpit_lite import Cockpit, load_run
from cockpit_lite.run import Run
from cockpit_lite.script import Watch, run_script
from tests import features
from tests.framework_table import ROOT, TABLE, Because, missing_tests, page
from tests.integrations.same import Outcome


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cockpit, "_write_results", lambda self: None)  # they take longer than the training


def assert_is_sound(run: Run, feature: str) -> None:
    assert run.info["status"] == "completed"
    assert len(run.series("loss")[0]) == features.FEATURES[feature]
    assert len(run.series("grad_norm")[0]) >= features.FEATURES[feature] - 1  # clipping shows for the first time at a step
    assert not [alert for alert in run.alerts if alert.severity == "error"], [str(alert) for alert in run.alerts]
    if feature.startswith("compile"):
        assert "compiled" in run.not_measured["norm_test"]
    else:
        assert "norm_test" in run.names, run.not_measured.get("norm_test")
    if feature == "accumulation":
        assert set(run.series("batch_size")[1]) == {2.0 * features.BATCH}
    if feature == "fp16":
        assert run.series("loss_scale")[1][-1] < 2.0**21


@pytest.mark.filterwarnings("ignore:.*Online softmax is disabled", "ignore:.*lr_scheduler.step", "ignore:Guards may run slower")
@pytest.mark.parametrize("feature", features.FEATURES)
def test_a_plain_loop(feature: str, tmp_path: Path) -> None:
    def watch(model: nn.Module, optimizer: Any, **settings: Any) -> Cockpit:
        return Cockpit(model, optimizer, run=tmp_path / "run", budget=None, **settings)

    plain = Outcome(features.train(feature))
    plain.assert_same(Outcome(features.train(feature, watch)))
    run = load_run(tmp_path / "run")
    assert_is_sound(run, feature)
    if feature == "validation":
        assert run.series("validation_loss")[0].tolist() == [2, 5]


@pytest.mark.filterwarnings("ignore:.*Online softmax is disabled", "ignore:.*lr_scheduler.step", "ignore:Guards may run slower")
@pytest.mark.parametrize("feature", features.FEATURES)
def test_a_script(feature: str, tmp_path: Path) -> None:
    plain = features.train(feature)
    watch = Watch(tmp_path / "run", budget=None)
    assert run_script(features.__file__, [feature, str(tmp_path / "weights.pt")], watch) == 0
    watched = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(value, watched[name]) for name, value in plain.state_dict().items())
    runs = [load_run(folder) for folder in watch.folders]
    if feature == "resume":  # of two trainings nobody has said that they are one
        assert [len(run.series("loss")[0]) for run in runs] == [4, 4]
    else:
        assert_is_sound(runs[0], feature)


def test_the_page_of_the_documentation_is_the_table() -> None:
    """To write it anew: python -m tests.framework_table."""
    assert (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8") == page()


def test_every_cell_of_the_table_names_a_test_or_a_reason() -> None:
    assert missing_tests() == []
    columns = {tuple(row) for row in TABLE.values()}
    assert len(columns) == 1
    assert {*features.FEATURES, "DDP", "FSDP2"} == set(columns.pop())
    reasons = [cell for row in TABLE.values() for cell in row.values() if isinstance(cell, Because)]
    assert all(reason and not reason.endswith(".") for reason in reasons)
