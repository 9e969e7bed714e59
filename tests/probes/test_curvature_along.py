from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite import Every, load_run
from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.instruments.curvature_along_gradient import CurvatureAlongGradient
from cockpit_lite.probes import curvature_along
from cockpit_lite.probes.curvature_along import AlongDirections, cut
from cockpit_lite.probes.replay import Replay
from tests import reference
from tests.identity import cockpit
from tests.zoo import ZOO

#: Samples that can be told apart, on either axis of the input, with masks drawn, shared weights, attention, recurrence, ...
APART = ["mlp", "mlp_dropout", "conv", "encoder_time_first", "encoder_dropout", "gpt_tied", "lstm", "class_weighted", "sum_loss"]
#: ... and samples that meet.
MEETING = ["mlp_batch_norm_dropout", "contrastive"]


@pytest.mark.parametrize("name", [*APART, *MEETING])
def test_part_by_part_it_is_that_of_the_whole_batch(name: str) -> None:
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64)
    parameters = reference.trainable(model)
    probe = ForwardProbe(model)
    probe.start()
    torch.manual_seed(1)
    loss = architecture.loss(model, architecture.batch(9, torch.Generator().manual_seed(0), torch.float64))
    call = probe.call
    probe.stop()
    assert call is not None
    replay = Replay(loss, call)
    curvature = Curvature(loss, parameters, torch.Generator().manual_seed(0), model=model, forward=call)
    gradient, other = curvature.gradient, curvature.unflatten(torch.randn(curvature.dimension, dtype=torch.float64))
    directions = [gradient, dict(zip(gradient, other, strict=True))]
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    products, calls = AlongDirections(), []
    for _ in range(2):
        before = torch.get_rng_state()
        slopes, curvatures = products.of(replay, weights, directions)
        assert torch.equal(torch.get_rng_state(), before)
        for direction, slope, bent in zip(directions, slopes, curvatures, strict=True):
            vector = torch.cat([direction[name].flatten() for name in parameters])
            torch.testing.assert_close(slope, vector @ curvature.flat_gradient())
            torch.testing.assert_close(bent, vector @ curvature.product(vector))
        assert products.is_small(replay)
        calls.append([kind.apart for kind in products._kinds.values()])
    assert calls == [[name in APART]] * 2


def test_a_large_graph_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature_along, "WORTH", 0)
    monkeypatch.setattr(curvature_along, "LARGE", 1)
    model, inputs = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(400, 2)
    seen: list[int] = []
    model[0].forward = lambda value, forward=model[0].forward: seen.append(len(value)) or forward(value)  # type: ignore[assignment]
    probe, products = ForwardProbe(model), AlongDirections()
    for _ in range(2):
        probe.start()
        loss, call = F.cross_entropy(model(inputs), torch.arange(400) % 2), probe.call
        probe.stop()
        assert call is not None
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        products.of(Replay(loss, call), weights, [weights])
    assert seen == [400, *[100] * 4] * 2
    assert not products.is_small(Replay(loss, call))


def test_parts_are_not_too_small() -> None:
    model = nn.Linear(2, 2)
    for size, sizes in ((3, []), (7, []), (8, [4, 4]), (15, [5, 5, 5]), (100, [25] * 4)):
        probe = ForwardProbe(model)
        probe.start()
        loss, call = model(torch.randn(size, 2)).square().sum(), probe.call
        probe.stop()
        assert call is not None
        found = cut(Replay(loss, call))
        assert [part.size for part in found[0]] == sizes if sizes else not [part for part in found if part[0].axis == 0]


def scaled(loss: Tensor) -> Tensor:
    return 128.0 * loss


def train(folder: Path, by_the_graph: bool, **how: Any) -> tuple[dict[str, list[float]], dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    groups = [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[3].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups if how.get("rates") else model.parameters(), lr=0.1)
    if hook := how.get("hook"):
        model[0].register_forward_hook(hook)
    instrument = CurvatureAlongGradient()
    instrument._by_the_graph = by_the_graph
    draws = torch.Generator().manual_seed(0)
    with cockpit(model, optimizer, run=folder, instruments=[instrument], schedule=Every(1), budget=None):
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(how.get("micro_batches", 1)):
                inputs = torch.randn(12, 4, generator=draws, dtype=torch.float64)
                loss_of: Callable[[Tensor], Tensor] = how.get("loss", lambda loss: loss)
                loss_of(F.cross_entropy(model(inputs), torch.arange(12) % 3)).backward()
            if how.get("clip"):
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    run = load_run(folder)
    series = {name: run.series(name) for name in instrument.readings}
    return {name: values.tolist() for name, (_, values) in series.items()}, {
        "steps": {name: steps.tolist() for name, (steps, _) in series.items()},
        "notes": run.how(instrument.name),
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
    }


@pytest.mark.parametrize(
    "how",
    [{}, {"rates": True}, {"clip": True}, {"loss": scaled}, {"micro_batches": 2}],
    ids=["plain", "two learning rates", "clipped", "own weighting", "accumulation"],
)
def test_behind_the_backward_pass_it_is_the_same(how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature_along, "WORTH", 0)
    behind, facts = train(tmp_path / "behind", False, **how)
    before, known = train(tmp_path / "before", True, **how)
    assert all(torch.equal(mine, other) for mine, other in zip(facts["weights"], known["weights"], strict=True))
    for name, values in behind.items():
        assert len(values) >= 2 or how.get("micro_batches")
        expected = dict(zip(known["steps"][name], before[name], strict=True))
        assert values == pytest.approx([expected[step] for step in facts["steps"][name]])
    if not how:
        assert all(entry["note"] == "by a second forward pass" for entry in facts["notes"].values())


def test_a_forward_that_cannot_be_repeated_is_measured_on_the_graph_from_the_second_step_on(tmp_path: Path) -> None:
    _, facts = train(tmp_path / "run", False, hook=lambda module, args, output: None)
    assert facts["steps"]["curvature_along_gradient"] == [1, 2]
