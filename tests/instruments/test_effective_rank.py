"""Effective rank against the singular value decomposition, and on layers whose rank is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite import load_run
from cockpit_lite.instruments.effective_rank import EffectiveRank, effective_ranks, shares_of_width
from cockpit_lite.run import Run
from tests.identity import EVERYTHING, cockpit


def slow_effective_rank(outputs: Tensor) -> float:
    """By the definition, in float64."""
    outputs = outputs.double()
    singular = torch.linalg.svdvals(outputs - outputs.mean(0))
    shares = (singular / singular.sum()).tolist()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def watch(model: nn.Module, inputs: Tensor, folder: Path) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": [EffectiveRank()]}):
        model(inputs).sum().backward()
        optimizer.step()
    return load_run(folder)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (60, 60), (2, 3), (200, 100)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 3.0])
def test_against_the_decomposition(shape: tuple[int, int], decay: float) -> None:
    draw = torch.Generator().manual_seed(sum(shape))
    outputs = torch.randn(shape, generator=draw) * torch.arange(1, shape[1] + 1) ** -decay + 3
    found = effective_ranks(torch.stack([outputs, 7 * outputs.flip(0)]).double(), 1e-6)
    assert found.tolist() == pytest.approx([slow_effective_rank(outputs)] * 2, rel=1e-5)


def test_layers_of_different_width_and_length() -> None:
    draw = torch.Generator().manual_seed(0)
    samples = {name: torch.randn(shape, generator=draw) for name, shape in {"a": (40, 12), "b": (40, 3), "c": (7, 20)}.items()}
    found = shares_of_width({name: [values] for name, values in samples.items()})
    possible = {"a": 12, "b": 3, "c": 6}
    expected = {name: slow_effective_rank(values) / possible[name] for name, values in samples.items()}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)


def test_orthogonal_directions_count_whole() -> None:
    outputs = torch.cat([torch.eye(8), -torch.eye(8)])
    assert shares_of_width({"layer": [outputs]})["layer"].item() == pytest.approx(1.0)
    line = torch.randn(30, 1) @ torch.randn(1, 8) + 5
    assert shares_of_width({"layer": [line]})["layer"].item() == pytest.approx(1 / 8, rel=1e-3)


def test_an_output_that_never_varies_has_rank_zero() -> None:
    outputs = torch.randn(1, 8).expand(20, 8) * 1e4
    assert shares_of_width({"layer": [outputs]})["layer"].item() == 0


def test_what_is_not_finite_stays_visible_and_spoils_no_other_layer() -> None:
    broken = torch.randn(20, 4)
    broken[3, 1] = torch.nan
    shares = shares_of_width({"one": [broken], "two": [torch.randn(20, 4)], "three": [broken.nan_to_num(torch.inf)]})
    assert [value.isnan().item() for value in shares.values()] == [True, False, True]


def test_calls_count_together() -> None:
    calls = [torch.randn(150, 4) * torch.tensor([1.0, 0, 0, 0]), torch.randn(150, 4) * torch.tensor([0, 1.0, 0, 0])]
    share = shares_of_width({"layer": calls})["layer"].item()
    assert share == pytest.approx(2 / 4, rel=0.02)


def test_in_a_loop_by_layer_and_smallest(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 30), nn.LayerNorm(30), nn.Linear(30, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(30, 2) @ torch.randn(2, 32))
    inputs = torch.randn(50, 6)
    with torch.no_grad():
        outputs = {"0": model[:1](inputs), "2": model[:3](inputs)}
    expected = {name: slow_effective_rank(value) / value.shape[1] for name, value in outputs.items()}
    assert expected["2"] <= 2 / 30
    run = watch(model, inputs, tmp_path / "run")
    found = {layer: float(run.series(f"effective_rank/{layer}")[1][0]) for layer in run.layers("effective_rank")}
    assert found == pytest.approx(expected, rel=1e-3)  # neither the norm, without a matrix, nor the single unit
    assert float(run.series("effective_rank")[1][0]) == found["2"]
    assert run.how("effective_rank")[0]["kind"] == "estimated"


def test_channels_are_the_units_of_a_convolution(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 3))
    inputs = torch.randn(8, 2, 6, 6)
    with torch.no_grad():
        rows = model[0](inputs).movedim(1, -1).reshape(-1, 6)
    run = watch(model, inputs, tmp_path / "run")
    assert float(run.series("effective_rank/0")[1][0]) == pytest.approx(slow_effective_rank(rows) / 6, rel=1e-4)


def test_a_sample_of_the_rows_is_near_the_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 150, 1))
    inputs = torch.randn(20, 3, 12, 12)
    with torch.no_grad():
        rows = model[0](inputs).movedim(1, -1).reshape(-1, 32)
    run = watch(model, inputs, tmp_path / "run")
    assert float(run.series("effective_rank/0")[1][0]) == pytest.approx(slow_effective_rank(rows) / 32, rel=0.1)


def test_one_sample_or_one_unit_is_no_rank(tmp_path: Path) -> None:
    run = watch(nn.Sequential(nn.Linear(4, 1)), torch.randn(9, 4), tmp_path / "unit")
    assert "several units" in run.not_measured["effective_rank"]
    run = watch(nn.Sequential(nn.Linear(4, 5)), torch.randn(1, 4), tmp_path / "sample")
    assert "several samples" in run.not_measured["effective_rank"]
