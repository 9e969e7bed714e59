"""Histograms of per-sample gradient elements: exact ones against numpy's, sampled ones in the mean against the exact ones."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instrument import Instrument, Reading
from cockpit_lite.instruments.grad_hist_1d import BINS, GradHist1d
from cockpit_lite.instruments.grad_hist_2d import GRADIENT_BINS, PARAMETER_BINS, GradHist2d
from cockpit_lite.probes.per_sample import LayerGradients, PerSampleStatistics, drawing
from cockpit_lite.probes.per_sample.drawing import SAMPLES, Drawing, in_turn
from cockpit_lite.probes.per_sample.forms import Dense
from cockpit_lite.run import Run
from cockpit_lite.step import Step
from tests import reference
from tests.identity import EVERYTHING, assert_identical, cockpit
from tests.zoo import ZOO, Architecture

N = 6
INDEPENDENT = [a for a in ZOO.values() if not a.interacts]


class MadeUp(dict[str, LayerGradients]):
    """Stands for ``step.per_sample_gradients``: contributions (N, *shape) by name."""

    def __init__(self, contributions: dict[str, Tensor]) -> None:
        super().__init__({name: LayerGradients([Dense(c)], c.shape[1:]) for name, c in contributions.items()})
        self.batch_size = len(next(iter(contributions.values())))
        self.shapes = {name: layer.shape for name, layer in self.items()}

    def __iter__(self) -> Any:
        return iter(self.items())


def made_up_step(contributions: dict[str, Tensor], index: int = 0, elements: int = 256) -> Step:
    generator = torch.Generator().manual_seed(1)
    parameters = {name: nn.Parameter(torch.randn(c.shape[1:], generator=generator)) for name, c in contributions.items()}
    step = Step(index, parameters)
    shapes = {name: c.shape[1:] for name, c in contributions.items()}
    statistics = PerSampleStatistics(len(next(iter(contributions.values()))), drawing=Drawing(index, shapes, elements))
    assert statistics.drawing is not None
    for name, c in contributions.items():
        statistics.squared_norms[name] = torch.stack([each.square().sum() for each in c]) if len(c) else torch.zeros(0)
        drawn = statistics.drawing.take(name, [Dense(c)], c.shape[1:])
        if drawn is not None:
            statistics.elements[name] = drawn
    step.observed.update(per_sample=statistics, per_sample_gradients=MadeUp(contributions))
    return step


def value(reading: Any) -> Tensor:
    return (reading.value if isinstance(reading, Reading) else reading).double()


def watched(architecture: Architecture, instrument: Instrument, folder: Path) -> tuple[Run, nn.Module]:
    """Measure one step; return the run and the model as it was before."""
    model, before = (architecture.build().eval() for _ in range(2))
    batch = architecture.batch(N, torch.Generator().manual_seed(5))
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": [instrument]}):
        architecture.loss(model, batch).backward()
        optimizer.step()
    return load_run(folder), before


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [(a, GradHist1d) for a in INDEPENDENT]
    + [(ZOO[name], GradHist2d) for name in ("mlp", "conv", "gpt_tied", "lstm_bidirectional", "lora")],
    ids=lambda entry: entry.name,
)
def test_exact_over_the_zoo(architecture: Architecture, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bins whose elements are all above the rounding errors of float32 hold what numpy counts in float64."""
    monkeypatch.setattr(drawing, "TURNS", 1000)
    run, model = watched(architecture, kind(exact=True, layers=True), tmp_path / "run")
    contributions = reference.contributions(architecture, model, architecture.batch(N, torch.Generator().manual_seed(5)))
    names = run.layers(kind.name)
    assert len(names) >= len(contributions) - 3
    gradients = N * np.concatenate([contributions[name].reshape(N, -1).numpy() for name in names], 1)
    parameters = torch.cat([model.get_parameter(name).detach().double().reshape(-1) for name in names]).numpy()
    steps, (found,) = run.series(kind.name)
    assert steps.tolist() == [0]
    assert found.sum() == pytest.approx(1e6, abs=200), "every bin is rounded"
    assert run.how(kind.name).get(0, {}).get("kind", "exact") == "exact"
    bins = BINS if kind is GradHist1d else GRADIENT_BINS
    columns = np.digitize(gradients, bins.edges().numpy())
    if kind is GradHist1d:
        counts = np.bincount(columns.ravel(), minlength=bins.count)
    else:
        rows = np.digitize(np.broadcast_to(parameters, gradients.shape), PARAMETER_BINS.edges().numpy())
        counts = np.zeros((PARAMETER_BINS.count, GRADIENT_BINS.count))
        np.add.at(counts, (rows, columns), 1)
    edges = np.abs(bins.edges().numpy())
    reliable = np.minimum(np.append(edges, np.inf), np.insert(edges, 0, np.inf)) > 1e-4 * np.abs(gradients).max()
    expected = 1e6 * counts[..., reliable] / gradients.size
    assert expected.sum() > 1e5
    at_edges = 2 * 3 * 1e6 / gradients.size  # rounding may move an element or two to the next bin
    assert np.abs(found[..., reliable] - expected).sum() <= at_edges + 0.5 * expected.size


SIZES = {"a": (3, 4), "b": (30, 40), "c": (7,), "d": ()}


def contributions(samples: int) -> dict[str, Tensor]:
    """Return contributions of parameters that have different scales, of which samples and elements have, too."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 1, samples)
    found = {}
    for number, (name, shape) in enumerate(SIZES.items()):
        noise = torch.randn(samples, *shape, generator=generator) * 10.0 ** (-number)
        found[name] = noise * scales.reshape(-1, *[1] * len(shape))
    return found


@pytest.mark.parametrize("samples", [5, 67, 3 * SAMPLES])
@pytest.mark.parametrize("kind", [GradHist1d, GradHist2d])
def test_a_sample_is_unbiased(kind: Any, samples: int) -> None:
    """The mean over many draws comes as close to the exact histograms as its own standard error allows."""
    made = contributions(samples)
    whole = [kind(exact=True, layers=True).measure(made_up_step(made, index)) for index in range(8)]
    exact = {name: reading for readings in whole for name, reading in readings.items()}
    draws: dict[str, list[Tensor]] = {}
    for index in range(400):
        instrument = kind(elements=40, layers=True)
        for name, reading in instrument.measure(made_up_step(made, index, instrument.drawn_elements)).items():
            draws.setdefault(name, []).append(value(reading))
    name = kind.name
    assert value(exact[name]).sum().item() == pytest.approx(1e6, abs=200)
    for reading in (name, f"{name}/a", f"{name}/b", f"{name}/c"):
        drawn, expected = torch.stack(draws[reading]), value(exact[reading])
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert drawn.std(0).max() > 100 or (samples == 5 and reading != name), "nothing was drawn"
        rare = 20  # of a million: in 400 draws too few are met for an error of their own
        assert ((drawn.mean(0) - expected).abs() <= 4.5 * error + rare).all(), reading


def test_small_models_are_looked_at_whole() -> None:
    made = {"a": torch.randn(5, 3, 4), "b": torch.randn(5)}
    sampled, exact = GradHist1d().measure(made_up_step(made)), GradHist1d(exact=True).measure(made_up_step(made))
    assert not any(isinstance(reading, Reading) and reading.kind != "exact" for reading in sampled.values())
    for name in ("grad_hist_1d", "grad_hist_1d/a", "grad_hist_1d/b"):
        assert torch.equal(value(sampled[name]), value(exact[name]))


def test_a_sample_says_that_it_is_one() -> None:
    reading = GradHist1d(elements=40).measure(made_up_step(contributions(200), elements=40))["grad_hist_1d"]
    assert isinstance(reading, Reading)
    assert reading.kind == "estimated"
    assert reading.note == "from some 60 of 1220 elements of 34 samples"  # 58: small ones whose turn it is are taken whole


def test_parameters_that_are_not_covered_are_said() -> None:
    step = made_up_step({"a": torch.randn(5, 3)})
    step.per_sample.not_covered["b"] = "because"
    reading = GradHist1d().measure(step)["grad_hist_1d"]
    assert isinstance(reading, Reading)
    assert reading.note == "without 1 parameters that are not covered"


def test_nan_is_in_no_bin_and_infinity_in_the_last() -> None:
    made = {"a": torch.tensor([[1.0, math.nan, math.inf, -math.inf]])}
    one = GradHist1d().measure(made_up_step(made))["grad_hist_1d"]
    assert value(one).sum() == 750_000
    assert (value(one)[0], value(one)[-1]) == (250_000, 250_000)
    step = made_up_step(made)
    step.parameters["a"].data[0] = math.nan
    both = value(GradHist2d().measure(step)["grad_hist_2d"])
    assert both.sum() == 500_000
    assert both.shape == (13, 25)


def test_histograms_share_what_was_drawn() -> None:
    """The joint histogram, summed over the parameters' bins, is the other one in coarser bins."""
    step = made_up_step(contributions(100))
    joint, alone = (value(kind().measure(step)[kind.name]) for kind in (GradHist2d, GradHist1d))
    coarse = [alone[bin_of == column].sum() for bin_of in [coarser()] for column in range(GRADIENT_BINS.count)]
    assert (joint.sum(0) - torch.tensor(coarse)).abs().max() <= 20  # every bin is rounded


def coarser() -> Tensor:
    """Return for every bin of the one histogram the gradient bin of the other that it lies in."""
    edges = torch.cat([torch.tensor([-math.inf]), BINS.edges(), torch.tensor([math.inf])])
    inside = torch.where(edges[:-1] >= 0, edges[:-1] * 1.5, edges[1:] * 1.5)
    inside[BINS.count // 2] = 0.0
    inside[0], inside[-1] = -1e30, 1e30
    return GRADIENT_BINS.index(inside)


@pytest.mark.parametrize("every", [1, 2, 10, 97])
@pytest.mark.parametrize("parameters", [1, 2, 5, 60])
def test_parameters_take_turns(parameters: int, every: int) -> None:
    """Two at a time, and on any schedule each comes about as often as any other."""
    made = {f"p{number}": torch.randn(3, 2) for number in range(parameters)}
    rounds = 12 * parameters
    turns = Counter(name for index in range(0, every * rounds, every) for name in in_turn(list(made), index))
    assert turns.keys() == made.keys()
    assert turns.total() == rounds * min(parameters, 2)
    assert max(turns.values()) <= 1.5 * min(turns.values())


def test_whose_turn_it_is_not_is_not_written() -> None:
    step = made_up_step(contributions(3))
    readings = GradHist1d().measure(step)
    assert [name for name in readings if "/" in name] == [f"grad_hist_1d/{name}" for name in in_turn(list(SIZES), step.index)]
    assert not any("/" in name for name in GradHist1d(layers=False).measure(step))


def test_a_measured_step_takes_about_two_kilobytes(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(20, 20) for _ in range(30)])
    optimizer = SGD(model.parameters(), lr=0.1)
    sizes = []
    for number, instruments in enumerate(([], ["grad_hist_1d", "grad_hist_2d"])):
        folder = tmp_path / str(number)
        with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": instruments}):
            for _ in range(30):
                optimizer.zero_grad()
                model(torch.randn(64, 20)).square().mean().backward()
                optimizer.step()
        sizes.append((folder / "readings.jsonl").stat().st_size)
    assert (sizes[1] - sizes[0]) / 30 < 2500


def test_batch_normalisation_makes_them_conditional(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    options = {**EVERYTHING, "instruments": ["grad_hist_1d", "grad_hist_2d"]}
    with cockpit(model, optimizer, run=tmp_path / "run", **options):
        model(torch.randn(24, 4)).square().mean().backward()
        optimizer.step()
    run = load_run(tmp_path / "run")
    for name in ("grad_hist_1d", f"grad_hist_1d/{run.layers('grad_hist_1d')[0]}", "grad_hist_2d"):
        assert run.how(name)[0]["kind"] == "conditional"


def test_watching_changes_nothing(tmp_path: Path) -> None:
    def train(watch: Any) -> Any:
        model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 2))
        optimizer = SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(70, 4)).square().mean().backward()
                optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    run = assert_identical(train, tmp_path / "run", {**EVERYTHING, "instruments": ["grad_hist_1d", "grad_hist_2d"]})
    assert run.series("grad_hist_1d")[1].shape == (3, 59)
    assert run.series("grad_hist_2d")[1].shape == (3, 13, 25)


@pytest.mark.parametrize("kind", [GradHist1d, GradHist2d])
@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_without_samples_is_not_measured(kind: Any, exact: bool) -> None:
    with pytest.raises(NotMeasured):
        kind(exact=exact).measure(made_up_step({"a": torch.randn(0, 3)}))


@pytest.mark.parametrize("kind", [GradHist1d, GradHist2d])
def test_no_elements_are_refused(kind: Any) -> None:
    with pytest.raises(SetupError, match="at least 1 is needed"):
        kind(elements=0)
