"""Bad input gets a clear error before training and loses nothing; whatever fails later never reaches the training."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from cockpit_lite import (
    Cockpit,
    CockpitWarning,
    Every,
    Instrument,
    NotARunError,
    NotMeasured,
    RunExistsError,
    SetupError,
    UnknownInstrumentError,
    load_run,
)
from cockpit_lite.instrument import CURVATURE, GRADIENT, LOSS, PER_SAMPLE_NORMS, UPDATE, Reading
from cockpit_lite.probes import backward
from cockpit_lite.run import Run
from tests.identity import cockpit


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def train(model: nn.Module, optimizer: Any, steps: int = 6) -> list[float]:
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain() -> tuple[list[float], list[Tensor]]:
    """Return losses and weights of the training without a cockpit."""
    model = net()
    return train(model, SGD(model.parameters(), lr=0.1)), list(model.parameters())


def watched(folder: Path, *, expect: str | None = None, steps: int = 6, **options: Any) -> Run:
    """Train with a cockpit; require the same losses and weights as without, and one warning with the words of ``expect``."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cockpit(model, optimizer, run=folder, **{"schedule": Every(1), "budget": None, **options}):
            losses = train(model, optimizer)
    said = [str(one.message) for one in caught if one.category is CockpitWarning]
    assert said == [] if expect is None else len(said) == 1 and expect in said[0], said
    expected_losses, expected_weights = plain()
    assert losses == expected_losses
    assert all(map(torch.equal, model.parameters(), expected_weights))
    return load_run(folder)


# -------------------------------------------------------------------------------------------------------- before training


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(SetupError, match="Sequential has no parameters, so there is nothing to watch"):
        Cockpit(model, SGD(net().parameters(), lr=0.1))


def test_a_model_with_lazy_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(SetupError, match="run one batch through it"):
        Cockpit(model, SGD(model[0].parameters(), lr=0.1))


@pytest.mark.parametrize("model", [None, "net", lambda x: x, nn.Linear, torch.zeros(3)])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(SetupError, match=r"the model must be a torch\.nn\.Module"):
        Cockpit(model, SGD(net().parameters(), lr=0.1))


def test_an_optimizer_of_another_model() -> None:
    model, other = net(), net()
    for optimizer in (SGD(other.parameters(), lr=0.1), [Adam(model.parameters()), SGD(other.parameters(), lr=0.1)]):
        with pytest.raises(SetupError, match=r"SGD holds no parameter of Sequential.*Make it with model\.parameters\(\)"):
            Cockpit(model, optimizer)
    with pytest.raises(SetupError, match="holds no parameter"):
        Cockpit(copy.deepcopy(model), SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("optimizer", [None, "sgd", SGD, 0.1, [None], [SGD]])
def test_what_is_no_optimizer(optimizer: Any) -> None:
    with pytest.raises(SetupError, match=r"the optimizer must be a torch\.optim\.Optimizer"):
        Cockpit(net(), optimizer)


def test_an_empty_list_of_optimizers() -> None:
    with pytest.raises(SetupError, match="the list of optimizers is empty"):
        Cockpit(net(), [])


def test_an_optimizer_in_a_wrapper() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any):
            self.optimizer = optimizer

    model = net()
    Cockpit(model, Wrapper(SGD(model.parameters(), lr=0.1)))  # type: ignore[arg-type]


def test_an_unknown_instrument_lists_the_known_ones() -> None:
    model = net()
    with pytest.raises(UnknownInstrumentError, match=r"named 'grad_nrom'.* standard.*grad_norm.*update_ratio"):
        Cockpit(model, SGD(model.parameters(), lr=0.1), instruments=["standard", "grad_nrom"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": 10}, r"schedule= takes Every\(n\)"),
        ({"budget": 0}, "budget= takes a share such as 0.05, or None"),
        ({"budget": -0.1}, "budget= takes a share"),
        ({"budget": "5%"}, "budget= takes a share"),
        ({"live": "browser"}, "live= takes None, 'window', 'notebook', 'terminal', not 'browser'"),
        ({"on_alert": "print"}, "on_alert= takes a callable"),
        ({"instruments": 3}, "instruments= takes preset names"),
        ({"instruments": None}, "instruments= takes preset names"),
    ],
)
def test_an_option_that_is_not_understood(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = net()
    with pytest.raises(SetupError, match=words):
        Cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    watched(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = net()
    original = torch.autograd.backward
    with pytest.raises(RunExistsError, match="already holds a run"), cockpit(model, SGD(model.parameters(), lr=0.1), run=folder):
        pytest.fail("the block must not be entered")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert torch.autograd.backward is original and backward._listeners == {}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    model = net()
    with (
        pytest.raises(OSError, match=r"The run folder .* cannot be written .*Choose another with run="),
        cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "file" / "run"),
    ):
        pytest.fail("the block must not be entered")


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match="holds no run"):
        load_run(tmp_path)


def test_a_cockpit_is_for_one_run(tmp_path: Path) -> None:
    model = net()
    watching = cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run")
    with watching:
        pass
    with pytest.raises(SetupError, match="make a new one"):
        watching.__enter__()


def test_before_the_block_there_is_nothing_yet(tmp_path: Path) -> None:
    model = net()
    watching = cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run")
    assert watching.step == 0 and watching.alerts == []
    watching.log(validation_loss=1.0)
    with pytest.raises(SetupError, match="There is no run yet"):
        watching.report()
    assert not (tmp_path / "run").exists()


def test_runs_without_a_folder_get_one_each() -> None:
    folders = set()
    for _ in range(3):
        model = net()
        with cockpit(model, SGD(model.parameters(), lr=0.1)) as watching:
            folders.add(watching.folder)
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") and "Sequential" in folder.name for folder in folders)


# ----------------------------------------------------------------------------------------------------------- no step seen


def test_leaving_without_a_step_is_reported_with_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    with cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run", report=True):
        pass
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["steps"] == 0 and "No training step was seen" in report["summary"]
    assert report["passed"] == [] and report["not_checked"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "another optimizer took the steps" in page
    assert "No training step was seen" in capsys.readouterr().out


def test_another_optimizer_took_the_steps(tmp_path: Path) -> None:
    model = net()
    with cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run"):
        train(model, Adam(model.parameters()))
    run = load_run(tmp_path / "run")
    assert run.last_step is None and "No training step was seen" in run.report().summary


# ------------------------------------------------------------------------------------------- instruments of the user's own


class Custom(Instrument):
    """Calls a function in ``measure``."""

    name = "custom"

    def __init__(self, measure: Callable[[Any], Any], needs: tuple[str, ...] = (GRADIENT,)):
        self.function = measure
        self.needs = needs
        self.calls = 0

    def measure(self, step: Any) -> Any:
        self.calls += 1
        return self.function(step)


def fail(_: Any) -> Any:
    raise ZeroDivisionError("mine")


ALL_NEEDS = [(GRADIENT,), (UPDATE,), (CURVATURE,), (LOSS,), (GRADIENT, PER_SAMPLE_NORMS)]


@pytest.mark.parametrize("needs", ALL_NEEDS, ids="+".join)
def test_an_instrument_that_raises_is_switched_off(needs: tuple[str, ...], tmp_path: Path) -> None:
    custom = Custom(fail, needs)
    run = watched(tmp_path / "run", expect="The instrument 'custom' failed at step 0", instruments=["light", custom])
    assert custom.calls == 1
    assert "failed at step 0 and was switched off (ZeroDivisionError: mine)" in run.not_measured["custom"]
    assert len(run.series("grad_norm")[0]) == 6  # the others go on


GARBAGE: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda step: None,
    "a number": lambda step: 3.0,
    "text": lambda step: {"custom": "high"},
    "a list": lambda step: {"custom": [1.0, 2.0]},
    "no value": lambda step: {"custom": None},
    "complex": lambda step: {"custom": torch.tensor(1j)},
    "sparse": lambda step: {"custom": torch.eye(3).to_sparse()},
    "without data": lambda step: {"custom": torch.empty(2, device="meta")},
    "huge": lambda step: {"custom": torch.zeros(1000, 1000)},
    "half right": lambda step: {"custom/a": 1.0, "custom": "high"},
    "an odd reading": lambda step: {"custom": Reading("high")},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", GARBAGE)
def test_an_instrument_that_returns_garbage_is_switched_off(what: str, tmp_path: Path) -> None:
    custom = Custom(GARBAGE[what])
    run = watched(tmp_path / "run", expect="The instrument 'custom' failed at step 0", instruments=["light", custom])
    assert custom.calls == 1 and "switched off" in run.not_measured["custom"]
    assert run.bad_lines == 0 and not any(name.startswith("custom") for name in run.names)
    assert len(run.series("grad_norm")[0]) == len(run.series("loss")[0]) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_an_instrument_that_returns_nan_is_shown(value: Any, tmp_path: Path) -> None:
    """It may be the very thing that the user looks for."""
    custom = Custom(lambda step: {"custom": value})
    values = watched(tmp_path / "run", instruments=[custom]).series("custom")[1]
    assert len(values) == 6 and not any(abs(value) < float("inf") for value in values)


def test_arrays_and_readings_are_kept(tmp_path: Path) -> None:
    custom = Custom(
        lambda step: {"custom": Reading(torch.ones(2, 3), "estimated", note="by hand"), "custom/a": torch.tensor(True)}
    )
    run = watched(tmp_path / "run", instruments=[custom])
    assert run.series("custom")[1].shape == (6, 2, 3)
    assert run.how("custom")[5] == {"kind": "estimated", "note": "by hand"}


def test_what_is_not_measured_has_a_reason_and_comes_back(tmp_path: Path) -> None:
    def every_other(step: Any) -> Any:
        if step.index % 2:
            raise NotMeasured("the step is odd")
        return {"custom": 1.0}

    custom = Custom(every_other)
    run = watched(tmp_path / "run", instruments=[custom])
    assert custom.calls == 6 and run.series("custom")[0].tolist() == [0, 2, 4]
    assert run.not_measured["custom"] == "the step is odd"


def test_reaching_for_what_was_not_asked_for_says_so(tmp_path: Path) -> None:
    custom = Custom(lambda step: {"custom": step.update["0.weight"].norm()}, needs=(GRADIENT,))
    run = watched(tmp_path / "run", instruments=[custom])
    assert run.not_measured["custom"] == "this step offers no update"


@pytest.mark.parametrize("needs", ALL_NEEDS, ids="+".join)
def test_every_need_offers_what_it_says(needs: tuple[str, ...], tmp_path: Path) -> None:
    offers: dict[str, Callable[[Any], Any]] = {
        GRADIENT: lambda step: step.gradient["0.weight"].norm() + step.applied_gradient["2.bias"].norm(),
        UPDATE: lambda step: step.update["0.weight"].norm() / step.weights_before["0.weight"].norm(),
        CURVATURE: lambda step: step.curvature.flat_gradient().norm(),
        LOSS: lambda step: step.loss + step.learning_rate,
        PER_SAMPLE_NORMS: lambda step: step.per_sample.squared_norms["0.weight"].mean(),
    }
    custom = Custom(lambda step: {"custom": offers[needs[-1]](step)}, needs=needs)
    steps, values = watched(tmp_path / "run", instruments=["light", custom]).series("custom")
    assert len(steps) == 6 and (values > 0).all()


# ------------------------------------------------------------------------------------------------------------- user's code


def test_an_on_alert_that_raises(tmp_path: Path) -> None:
    def on_alert(alert: Any) -> None:
        raise KeyError("mine")

    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(CockpitWarning, match="on_alert raised an exception and was switched off"),
        cockpit(model, optimizer, run=tmp_path / "run", on_alert=on_alert) as watching,
    ):
        train(model, optimizer, 2)
        (model(torch.zeros(1, 4)).sum() * torch.nan).backward()
        optimizer.step()
        train(model, optimizer, 2)
    assert watching.alerts and watching.step == 5


def test_a_schedule_that_raises_is_no_reason_to_stop_training(tmp_path: Path) -> None:
    def schedule(step: int) -> bool:
        if step == 3:
            raise ZeroDivisionError("mine")
        return True

    run = watched(tmp_path / "run", expect="ZeroDivisionError: mine", schedule=schedule, instruments="light")
    assert run.series("grad_norm")[0].tolist()[:3] == [0, 1, 2]


def test_a_number_that_is_none_is_not_logged(tmp_path: Path) -> None:
    model = net()
    with (
        pytest.warns(CockpitWarning, match=r"cockpit\.log\(accuracy=\.\.\.\) takes a number and was ignored"),
        cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run") as watching,
    ):
        watching.log(accuracy="high", validation_loss=1.0)
    run = load_run(tmp_path / "run")
    assert run.names == ["validation_loss"]


def test_results_that_cannot_be_written_do_not_replace_the_users_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    watching = cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run")

    def full() -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(watching, "_write_results", full)
    with (
        pytest.warns(CockpitWarning, match="could not be written; its readings are there"),
        pytest.raises(KeyError, match="mine"),
        watching,
    ):
        raise KeyError("mine")
    assert load_run(tmp_path / "run").info["status"] == "failed"


def test_a_schedule_that_raises_at_once_is_told_before_training_begins(tmp_path: Path) -> None:
    def schedule(step: int) -> bool:
        raise ValueError("no such step")

    model = net()
    original = torch.autograd.backward
    watching = cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run", schedule=schedule)
    with pytest.raises(ValueError, match="no such step"), watching:
        pytest.fail("the block must not be entered")
    assert torch.autograd.backward is original and backward._listeners == {}
    run = load_run(tmp_path / "run")
    assert run.info["status"] == "failed" and "no such step" in run.info["exception"]


def test_a_failure_of_ours_while_leaving_does_not_hide_the_exception_of_the_user(tmp_path: Path) -> None:
    model = net()
    watching = cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run")

    def fail() -> None:
        raise RuntimeError("the device is gone")

    with pytest.warns(UserWarning, match="could not be recorded"), pytest.raises(KeyError, match="theirs"), watching:
        assert watching._observer is not None
        watching._observer._flush_pulse = fail  # type: ignore[method-assign]
        raise KeyError("theirs")
    assert backward._listeners == {}
    assert "theirs" in load_run(tmp_path / "run").info["exception"]
