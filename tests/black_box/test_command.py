"""The command: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit_lite.cli import main
from tests.black_box import nets
from tests.black_box.test_replay import train

MODEL = "tests.black_box.nets:root"


def test_it_names_the_operation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cockpit = train(nets.root(), tmp_path / "run")
    assert any("cockpit-lite replay RUN" in alert.advice for alert in cockpit.alerts)
    assert main(["replay", str(tmp_path / "run"), "--model", MODEL]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "made in the backward pass" in printed and "SqrtBackward0" in printed and "(x + 1e-8).sqrt()" in printed


def test_as_json_with_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(nets.root(), tmp_path / "run")
    file = tmp_path / "run" / "black_box" / "step-000000.pt"
    options = ["--loss", "tests.black_box.nets:loss_of_log", "--json"]
    assert main(["replay", str(file), "--model", MODEL, *options]) == 2  # the targets of a finite loss are not held
    assert "leave it out" in capsys.readouterr().err
    assert main(["replay", str(file), "--model", MODEL, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["operation"] == "SqrtBackward0"


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("tests.black_box.nets", "takes module:function"),
        ("tests.black_box.nowhere:root", "cannot be imported"),
        ("tests.black_box.nets:nobody", "cannot be imported"),
        ("tests.black_box.nets:__doc__", "it is no function"),
        ("builtins:dict", "returned no torch.nn.Module"),
        ("tests.black_box.nets:loss_of_log", "failed to make the model"),
    ],
)
def test_what_makes_no_model_is_refused(model: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(nets.root(), tmp_path / "run")
    assert main(["replay", str(tmp_path / "run"), "--model", model]) == 2
    assert complaint in capsys.readouterr().err


def test_a_run_without_a_kept_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(nets.healthy(), tmp_path / "run")
    assert main(["replay", str(tmp_path / "run"), "--model", MODEL]) == 2
    assert "has kept no step" in capsys.readouterr().err
