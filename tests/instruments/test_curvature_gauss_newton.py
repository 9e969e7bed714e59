"""Trace and diagonal of the Gauss-Newton matrix, and the Takeuchi criterion, in real loops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL, Instrument, Readings
from cockpit_lite.instruments.ggn_diagonal import GaussNewtonDiagonal
from cockpit_lite.instruments.ggn_trace import GaussNewtonTrace
from cockpit_lite.instruments.hessian_trace import HessianTrace
from cockpit_lite.instruments.tic_diag import TakeuchiDiagonal, tic_diag
from cockpit_lite.instruments.tic_trace import TakeuchiTrace, tic_trace
from cockpit_lite.probes.quantiles import MOST_SORTED, QUANTILES, quantiles
from cockpit_lite.run import Run
from cockpit_lite.step import Step
from tests import reference
from tests.identity import cockpit
from tests.zoo import ZOO

SIZE = 8


class Witness(Instrument):
    """Keeps the diagonal that the others of the same step saw."""

    name = "witness"
    needs = (CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL)

    def measure(self, step: Step) -> Readings:
        self.diagonal = {name: values.clone() for name, values in step.curvature.gauss_newton_diagonal().items()}
        return {"witness": 0.0}


def one_step(name: str, folder: Path, instruments: list[Instrument], size: int = SIZE) -> tuple[Run, nn.Module, Any]:
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64).eval()
    before = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    batch = architecture.batch(size, torch.Generator().manual_seed(5), torch.float64)
    with cockpit(model, optimizer, run=folder, instruments=instruments, budget=None):
        architecture.loss(model, batch).backward()
        optimizer.step()
    return load_run(folder), before, batch


def value(run: Run, name: str) -> float:
    return float(run.series(name)[1][0])


@pytest.mark.parametrize("name", ["linear_regression", "mlp", "conv", "deep_linear", "bare_parameters"])
def test_the_trace_equals_the_hessian_s_where_each_layer_is_piecewise_linear(name: str, tmp_path: Path) -> None:
    run, model, batch = one_step(name, tmp_path / "run", [GaussNewtonTrace()], size=64)
    if sum(p.numel() for p in model.parameters()) > 1_000:
        model = model.double()
        parameters = list(model.parameters())
        slopes = torch.autograd.grad(ZOO[name].loss(model, batch), parameters, create_graph=True)
        generator = torch.Generator().manual_seed(0)
        samples = []
        for _ in range(300):
            signs = [torch.randint(0, 2, p.shape, generator=generator).double() * 2 - 1 for p in parameters]
            products = torch.autograd.grad(slopes, parameters, signs, retain_graph=True)
            samples.append(sum(float((s * p).sum()) for s, p in zip(signs, products, strict=True)))
        found = torch.tensor(samples)
        expected, tolerance = found.mean().item(), 4 * found.std().item() / 300**0.5
    else:
        expected, tolerance = reference.hessian(ZOO[name], model, batch).trace().item(), 0.0
    error = run.how("ggn_trace")[0]["standard_error"]
    assert 0 < error < 0.3 * expected
    assert value(run, "ggn_trace") == pytest.approx(expected, abs=4 * error + tolerance)
    assert run.how("ggn_trace")[0]["kind"] == "gauss-newton"
    blocks = [value(run, f"ggn_trace/{key}") for key, _ in model.named_parameters()]
    assert sum(blocks) == pytest.approx(value(run, "ggn_trace"))


def test_means_of_the_diagonal_are_the_traces_of_the_blocks(tmp_path: Path) -> None:
    run, model, _ = one_step("mlp", tmp_path / "run", [GaussNewtonTrace(), GaussNewtonDiagonal()])
    for key, parameter in model.named_parameters():
        trace = value(run, f"ggn_trace/{key}")
        assert value(run, f"ggn_diagonal/{key}") == pytest.approx(trace / parameter.numel())


def test_quantiles_of_the_diagonal(tmp_path: Path) -> None:
    witness = Witness()
    run, _, _ = one_step("mlp", tmp_path / "run", [GaussNewtonDiagonal(), witness])
    elements = torch.cat([values.flatten() for values in witness.diagonal.values()]).sort().values
    found = run.series("ggn_diagonal")[1][0]
    assert found.shape == (len(QUANTILES),)
    assert found[0] == pytest.approx(elements[0].item(), abs=1e-12)
    assert found[-1] == pytest.approx(elements[-1].item())
    assert found[3] == pytest.approx(elements.quantile(0.5).item(), rel=1e-4, abs=1e-9)


def test_quantiles_of_many_elements_are_those_of_a_selection_but_for_the_ends() -> None:
    values = torch.linspace(0, 1, 10 * MOST_SORTED + 7)
    found = quantiles([values[:1_234_567], torch.tensor([-3.0]), torch.empty(0)])
    assert found[0].item() == -3
    assert found[-1].item() == 1
    assert found[1:-1].tolist() == pytest.approx(QUANTILES[1:-1], abs=1e-4)


@pytest.mark.parametrize("name", ["linear_regression", "mlp", "tied_autoencoder"])
def test_the_criterion_by_traces(name: str, tmp_path: Path) -> None:
    """It shares the draw with the trace, so the quotient is exact."""
    run, model, batch = one_step(name, tmp_path / "run", [GaussNewtonTrace(), TakeuchiTrace()])
    rows = SIZE * reference.matrix(reference.contributions(ZOO[name], model, batch))
    expected = sum(float(row @ row) for row in rows) / SIZE / value(run, "ggn_trace")
    assert value(run, "tic_trace") == pytest.approx(expected)
    relative = run.how("ggn_trace")[0]["standard_error"] / value(run, "ggn_trace")
    assert run.how("tic_trace")[0]["standard_error"] == pytest.approx(relative * expected)


def test_the_criterion_by_the_trace_of_the_hessian(tmp_path: Path) -> None:
    run, model, batch = one_step("linear_regression", tmp_path / "run", [HessianTrace(), TakeuchiTrace("hessian")])
    rows = SIZE * reference.matrix(reference.contributions(ZOO["linear_regression"], model, batch))
    expected = rows.square().sum().item() / SIZE / value(run, "hessian_trace")
    assert value(run, "tic_trace") == pytest.approx(expected)
    assert run.how("tic_trace")[0]["kind"] == "estimated"


@pytest.mark.parametrize("name", ["linear_regression", "mlp", "tied_autoencoder"])
def test_the_criterion_by_diagonals(name: str, tmp_path: Path) -> None:
    witness = Witness()
    run, model, batch = one_step(name, tmp_path / "run", [witness, TakeuchiDiagonal()])
    rows = SIZE * reference.matrix(reference.contributions(ZOO[name], model, batch))
    diagonal = torch.cat([values.flatten() for values in witness.diagonal.values()])
    expected = 0.0
    for j in range(rows.shape[1]):
        expected += (rows[:, j] @ rows[:, j]).item() / SIZE / (diagonal[j].item() + 1e-7)
    assert value(run, "tic_diag") == pytest.approx(expected, rel=1e-6)


def test_the_pure_functions() -> None:
    gradients = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    contributions = gradients / 2
    assert tic_trace(contributions.square().sum(1), torch.tensor(5.0)).item() == pytest.approx((5 + 10) / 2 / 5)
    diagonal = torch.tensor([2.0, 0.5], dtype=torch.float64)
    found = tic_diag(contributions.square().sum(0), diagonal, 2)
    assert found.item() == pytest.approx((1 + 9) / 2 / 2 + (4 + 1) / 2 / 0.5, rel=1e-6)


def test_a_trace_that_is_not_positive_has_a_reason(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TakeuchiTrace("hessian")], budget=None):
        (-model(torch.arange(6.0).reshape(3, 2)).square()).mean().backward()
        optimizer.step()
    assert "not positive" in load_run(tmp_path / "run").not_measured["tic_trace"]


def test_accumulation_has_a_reason_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TakeuchiTrace(), TakeuchiDiagonal()], budget=None):
        for _ in range(3):
            for _ in range(2):
                model(torch.randn(3, 2)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = load_run(tmp_path / "run")
    for name in ("tic_trace", "tic_diag"):
        assert name in run.names or run.not_measured[name]


@pytest.mark.parametrize("options", [{"curvature": "fisher"}, {"samples": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError):
        TakeuchiTrace(**options)
