"""Gradient norm, update size, update ratio and distance against the same in float64, in a loop with momentum and clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite.instruments import Distance, GradientNorm, UpdateRatio
from cockpit_lite.norms import parameter_norms, total_norm
from cockpit_lite.run import Run, load_run
from cockpit_lite.step import Step
from tests.identity import EVERYTHING, cockpit

CLIP = 0.3


def norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(tensor.detach().double().pow(2).sum().item() for tensor in tensors))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict[str, float]]]:
    """A run, and what it must hold, computed by the loop itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    rows: list[dict[str, float]] = []
    folder = tmp_path_factory.mktemp("sizes") / "run"
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": "light"}):
        for _ in range(8):
            x = 3 * torch.randn(16, 4)
            optimizer.zero_grad()
            F.cross_entropy(model(x), x[:, :3].argmin(1)).backward()
            row = {"grad_norm": norm(parameter.grad for parameter in model.parameters() if parameter.grad is not None)}
            row |= {f"grad_norm/{name}": norm([p.grad]) for name, p in model.named_parameters() if p.grad is not None}
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            row["grad_norm_clipped"] = norm(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            row["distance"] = norm(now - then for now, then in zip(before, start, strict=True))
            optimizer.step()
            updates = [now - then for now, then in zip(model.parameters(), before, strict=True)]
            row["update_size"] = norm(updates)
            row["update_ratio"] = norm(updates) / norm(before)
            names = [name for name, _ in model.named_parameters()]
            for name, update, weights in zip(names, updates, before, strict=True):
                if weights.dim() > 1:
                    row[f"update_ratio/{name}"] = norm([update]) / norm([weights])
            rows.append(row)
    return load_run(folder), rows


def test_every_size_at_every_step(recorded: tuple[Run, list[dict[str, float]]]) -> None:
    run, rows = recorded
    assert any(row["grad_norm"] > 2 * CLIP for row in rows)  # else clipping was not tried
    for name in rows[0]:
        steps, values = run.series(name)
        assert steps.tolist() == list(range(8)), name
        np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-5, atol=1e-7, err_msg=name)


def test_nothing_else_is_recorded_of_them(recorded: tuple[Run, list[dict[str, float]]]) -> None:
    run, rows = recorded
    kinds = ("grad_norm", "update_ratio", "distance", "update_size")
    assert {name for name in run.names if name.startswith(kinds)} == set(rows[0])  # a bias has no ratio of its own


def test_distance_and_update_agree_over_steps(recorded: tuple[Run, list[dict[str, float]]]) -> None:
    run, _ = recorded
    distance, updates = run.series("distance")[1], run.series("update_size")[1]
    assert distance[0] == 0
    assert (np.abs(np.diff(distance)) <= updates[:-1] * (1 + 1e-5)).all()  # the triangle inequality


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_do_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    tensors = {"a": torch.full((100, 100), 1000.0, dtype=dtype), "b": torch.zeros(3, dtype=dtype)}
    norms = parameter_norms(tensors)
    assert norms["a"].item() == pytest.approx(1e5, rel=1e-2) and norms["b"].item() == 0
    assert total_norm(norms).item() == pytest.approx(1e5, rel=1e-2)


def test_norms_of_nothing() -> None:
    assert parameter_norms({}) == {} and total_norm({}).item() == 0


def test_a_norm_that_is_not_finite_stays_so() -> None:
    for value in (math.nan, math.inf):
        assert not math.isfinite(total_norm(parameter_norms({"a": torch.tensor([1.0, value]), "b": torch.ones(2)})).item())


def test_without_clipping_there_is_no_clipped_norm() -> None:
    step = Step(0, {})
    step.observed.update(gradient={"w": torch.ones(4)}, applied_gradient={"w": torch.ones(4)}, gradient_was_changed=False)
    assert {name: float(value) for name, value in GradientNorm().measure(step).items()} == {"grad_norm": 2.0, "grad_norm/w": 2.0}  # type: ignore[arg-type]


def test_weights_that_start_at_zero() -> None:
    step = Step(0, {"w": torch.nn.Parameter(torch.zeros(2, 2))})
    step.observed.update(weights_before={"w": torch.zeros(2, 2)}, update={"w": torch.ones(2, 2)})
    readings = UpdateRatio().measure(step)
    assert float(readings["update_ratio"]) > 1e30  # type: ignore[arg-type]


def test_distance_knows_its_own_start() -> None:
    weight = nn.Parameter(torch.zeros(4))
    instrument = Distance()
    instrument.start({"w": weight})
    with torch.no_grad():
        weight += 3  # the copy must not move along
    step = Step(5, {"w": weight})
    step.observed["weights_before"] = {"w": weight.detach(), "added_later": torch.ones(3)}
    assert {name: float(value) for name, value in instrument.measure(step).items()} == {"distance": 6.0}  # type: ignore[arg-type]
