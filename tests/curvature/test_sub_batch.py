"""Some samples of the batch: unbiased, with a standard error that holds, and refused where samples meet."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import Every, load_run
from cockpit_lite.curvature import Curvature, ForwardProbe, source
from cockpit_lite.curvature.sub_batch import SubBatch, choose
from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instruments.hessian_trace import HessianTrace
from cockpit_lite.instruments.layerwise_curvature import LayerwiseCurvature
from cockpit_lite.instruments.max_eigenvalue import MaxEigenvalue
from cockpit_lite.instruments.spectral_density import SpectralDensity
from cockpit_lite.step import Step
from tests.curvature.cases import forward, random_vectors
from tests.identity import cockpit
from tests.zoo import ZOO


def watched(model: nn.Module, inputs: Tensor, targets: Tensor, seed: int = 0, **options: Any) -> Curvature:
    probe = ForwardProbe(model)
    probe.start()
    loss = F.cross_entropy(model(inputs), targets)
    call = probe.call
    probe.stop()
    options = {"model": model, "forward": call, **options}
    return Curvature(loss, dict(model.named_parameters()), torch.Generator().manual_seed(seed), **options)


def small() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(32, 5).double(), torch.randint(3, (32,))


UNBIASED = ["mlp_dropout", "sum_loss", "two_heads", "class_weighted", "conv", "gpt_tied_dropout", "encoder_time_first"]
UNBIASED += ["encoder_dropout", "lstm", "gru_time_first", "flattening", "checkpointed_reentrant", "own_loss_ignored_labels"]


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_all_sub_batches_is_the_product_of_the_whole_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = forward(ZOO[name], torch.float64)
    curvature = step.curvature(forward=step.call, model=step.model)
    vector = torch.cat([value.flatten() for value in random_vectors(step.model).values()])
    whole = curvature.product(vector)
    parts = []
    for pair in itertools.combinations(range(4), 2):
        monkeypatch.setattr(
            source, "choose", lambda inputs, *_, pair=pair: [SubBatch(torch.tensor(pair), 4, axis) for axis in (0, 1)]
        )
        curvature._sub_batches.clear()
        part = curvature.sub_batch(2)
        assert part.samples == (2, 4)
        parts.append(part.product(vector))
    assert not torch.allclose(parts[0], whole)
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-5 * float(whole.norm()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet_batch_norm", "samples meet in the model"),
        ("contrastive", "samples meet"),
        ("physics_informed", "uses parameters beside"),
        ("graph_of_samples", "could not be differentiated twice"),
    ],
)
def test_where_samples_meet_there_is_a_reason_and_the_whole_batch(name: str, reason: str) -> None:
    step = forward(ZOO[name])
    curvature = step.curvature(forward=step.call, model=step.model)
    with pytest.raises(NotMeasured, match=reason):
        curvature.sub_batch(2)
    part, note = curvature.sub_batch_or_all(2)
    assert part is curvature
    assert note is not None and reason in note and "whole batch" in note
    assert torch.isfinite(curvature.trace(1, 2).value)


def test_samples_that_meet_in_the_loss_alone_are_found() -> None:
    model, inputs, _ = small()
    probe = ForwardProbe(model)
    probe.start()
    logits = model(inputs)
    loss = F.cross_entropy(logits @ logits.T, torch.arange(32))
    curvature = Curvature(loss, dict(model.named_parameters()), torch.Generator(), forward=probe.call)
    probe.stop()
    with pytest.raises(NotMeasured, match="samples meet in the loss"):
        curvature.sub_batch(0.25)


def test_a_share_a_number_or_all_and_each_is_made_once() -> None:
    curvature = watched(*small())
    part = curvature.sub_batch(0.25)
    assert part.samples == (8, 32) and part is curvature.sub_batch(0.25)
    assert part.note == "sub-batch of 8 of 32 samples" and curvature.note is None
    assert curvature.sub_batch(5).samples == (5, 32)
    assert curvature.sub_batch(None) is curvature is curvature.sub_batch(32) is curvature.sub_batch(400)
    assert curvature.random_products(1, 0.25).products.equal(curvature.random_products(1, 0.25).products)
    assert (curvature.products, part.products) == (0, 1)
    curvature.release()
    with pytest.raises(NotMeasured, match="no longer there"):
        part.product(torch.ones(part.dimension).double())


def test_the_same_samples_along_either_axis() -> None:
    found = choose([torch.zeros(7, 12)], 3, torch.Generator().manual_seed(0))
    assert [(part.axis, part.batch_size, part.size) for part in found] == [(0, 7, 3), (1, 12, 3)]
    assert all(part.chosen.tolist() == sorted(set(part.chosen.tolist())) for part in found)


@pytest.mark.parametrize("searched", [False, True])
def test_the_trace_is_unbiased_and_its_standard_error_holds_both_errors(searched: bool) -> None:
    model, inputs, targets = small()
    whole = watched(model, inputs, targets)
    exact = torch.stack([whole.product(unit)[index] for index, unit in enumerate(torch.eye(whole.dimension).double())]).sum()
    found = []
    for seed in range(60):
        curvature = watched(model, inputs, targets, seed)
        if searched:
            curvature.top_eigenpairs(tolerance=0.1)
        found.append(curvature.trace(1, 0.25))
    values, errors = torch.stack([one.value for one in found]), torch.stack([one.standard_error for one in found])
    assert abs(values.mean() - exact) < 4 * values.std() / 60**0.5
    assert 0.55 < values.std() / errors.square().mean().sqrt() < 1.3


def test_what_the_search_knows_is_that_of_the_whole_batch() -> None:
    curvature = watched(*small())
    curvature.top_eigenpairs(tolerance=1e-3, max_products=60)
    inside, vectors = curvature.random_products(3, 0.25), curvature.krylov.basis
    # H v = H VV'v + H_s (1 - VV')v
    for signs, product in zip(inside.signs, inside.products, strict=True):
        known = vectors.T @ (vectors @ signs)
        expected = curvature.product(known) + curvature.sub_batch(0.25).product(signs - known)
        torch.testing.assert_close(product, expected)


def test_a_block_of_a_sub_batch_is_a_block_of_its_matrix() -> None:
    curvature = watched(*small())
    block = curvature.restricted(["0.weight"])
    part = block.sub_batch(8)
    # Another draw of samples: the block has a sub-batch of its own.
    assert part.samples == (8, 32) and part.dimension == 40
    whole = torch.zeros(curvature.dimension).double()
    whole[:40] = vector = torch.randn(40).double()
    same = curvature._of(part._source, "")
    torch.testing.assert_close(part.product(vector), same.product(whole)[:40])
    estimate = block.trace(2, 8)
    assert estimate.standard_error is not None and torch.isfinite(estimate.standard_error)


def test_the_largest_eigenvalue_of_a_sub_batch_says_so_and_has_an_error() -> None:
    step = Step(0, {})
    model, inputs, targets = small()
    step.observed["curvature"] = watched(model, inputs, targets)
    whole = MaxEigenvalue(tolerance=1e-4, max_products=60).measure(step)["max_eigenvalue"]
    assert whole.standard_error is None and whole.note is None
    values = []
    for seed in range(12):
        step.observed["curvature"] = watched(model, inputs, targets, seed)
        part = MaxEigenvalue(tolerance=1e-4, max_products=60, sub_batch=8).measure(step)["max_eigenvalue"]
        values.append(part.value)
        assert "sub-batch of 8 of 32 samples" in part.note and "bias" in part.note
        assert 0 < part.standard_error < part.value and part.kind == "sub-batch"
    assert sum(values) / 12 > whole.value  # too large in the mean, as it says


def test_blocks_of_a_sub_batch_add_up_to_the_trace() -> None:
    step = Step(0, {})
    curvature = step.observed["curvature"] = watched(*small())
    blocks = LayerwiseCurvature().measure(step).values()
    trace = HessianTrace().measure(step)["hessian_trace"]
    assert sum(block.value for block in blocks) == pytest.approx(float(trace.value))
    assert trace.note == "sub-batch of 8 of 32 samples" and all(block.note == trace.note for block in blocks)
    assert curvature.sub_batch(0.25).products == 1


def test_the_global_random_numbers_and_the_model_are_left_alone() -> None:
    step = forward(ZOO["gpt_tied_dropout"])
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in step.model.state_dict().items()}
    step.curvature(forward=step.call, model=step.model).trace(1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())


@pytest.mark.parametrize("size", [0, -1, 1, 2.5])
@pytest.mark.parametrize("instrument", [HessianTrace, LayerwiseCurvature, MaxEigenvalue])
def test_sizes_that_make_no_sense_are_refused(instrument: Any, size: float) -> None:
    with pytest.raises(SetupError, match="sub_batch"):
        instrument(sub_batch=size)


@pytest.mark.parametrize("name", ["mlp_dropout", "gpt_tied_dropout", "encoder_time_first", "resnet_batch_norm", "lstm"])
def test_the_training_stays_as_it_is_to_the_bit(name: str, tmp_path: Path) -> None:
    architecture = ZOO[name]

    def train(watch: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = architecture.build(dtype=torch.float32).train()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        instruments = [MaxEigenvalue(sub_batch=0.25), HessianTrace(), LayerwiseCurvature(), SpectralDensity()]
        draw = torch.Generator().manual_seed(0)
        watched = cockpit(model, optimizer, run=tmp_path / "run", instruments=instruments, schedule=Every(1), budget=None)
        with watched if watch else nullcontext():
            for _ in range(2):
                optimizer.zero_grad()
                architecture.loss(model, architecture.batch(16, draw, torch.float32)).backward()
                optimizer.step()
        return [*(value.clone() for value in model.state_dict().values()), torch.get_rng_state()]

    assert all(torch.equal(*pair) for pair in zip(train(False), train(True), strict=True))
    note = load_run(tmp_path / "run").how("hessian_trace")[1]["note"]
    assert ("from the whole batch: samples meet" if name == "resnet_batch_norm" else "sub-batch of 4 of 16 samples") in note
