"""No reading is silently wrong: over the whole zoo each is the slow reference's, or it is not there and the run says why."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD

from cockpit_lite import load_run, run_log
from cockpit_lite.run import Run
from tests import reference
from tests.identity import EVERYTHING, cockpit
from tests.zoo import ZOO, Architecture, Batch

PER_SAMPLE = ("norm_test", "inner_product_test", "orthogonality_test", "gradient_noise_scale")
LEARNING_RATE = 0.01
SEED = 9  # of the noise that dropout draws


@pytest.fixture(autouse=True)
def _all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is compared, not what the log rounds it to."""
    monkeypatch.setattr(run_log, "_number", repr)


def one_step(architecture: Architecture, folder: Path, dtype: torch.dtype, *, train: bool) -> tuple[Run, torch.nn.Module]:
    """Watch one step; return the run and the model as it was before."""
    model, before = (architecture.build(dtype=dtype).train(train) for _ in range(2))
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
    torch.manual_seed(SEED)
    with cockpit(model, optimizer, run=folder, **EVERYTHING):
        architecture.loss(model, the_batch(architecture, dtype)).backward()
        optimizer.step()
    return load_run(folder), before


def the_batch(architecture: Architecture, dtype: torch.dtype) -> Batch:
    return architecture.batch(6, torch.Generator().manual_seed(5), dtype)


def found(run: Run, name: str) -> float | None:
    """Return a reading of step 0; None: not measured, and the run says why."""
    if name in run.names:
        return float(run.series(name)[1][0])
    assert run.not_measured.get(name), f"{name} is missing without a reason"
    return None


def check_per_sample(architecture: Architecture, dtype: torch.dtype, folder: Path, *, train: bool) -> None:
    run, model = one_step(architecture, folder, dtype, train=train)
    torch.manual_seed(SEED)
    rows = 6 * reference.matrix(reference.contributions(architecture, model, the_batch(architecture, dtype)))
    signal = rows.mean(0).pow(2).sum().item() - reference.variance(rows) / 6
    expected = {
        "norm_test": reference.norm_test(rows),
        "inner_product_test": reference.inner_product_test(rows),
        "orthogonality_test": reference.orthogonality_test(rows),
        "gradient_noise_scale": reference.noise_scale(rows) if signal > 0 else math.inf,  # noise drowns this one batch
    }
    for name, value in expected.items():
        reading = found(run, name)
        if reading is not None:
            tolerance = 1e-8 if dtype == torch.float64 else 1e-4
            if name == "gradient_noise_scale":  # a quotient whose denominator may nearly cancel
                tolerance *= max(1.0, rows.mean(0).pow(2).sum().item() / abs(signal))
            assert reading == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if not a.interacts], ids=lambda a: a.name)
def test_per_sample_readings_are_right_or_missing(architecture: Architecture, dtype: torch.dtype, tmp_path: Path) -> None:
    check_per_sample(architecture, dtype, tmp_path / "run", train=False)


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if a.dropout and not a.batch_norm], ids=lambda a: a.name)
def test_per_sample_readings_with_noise(architecture: Architecture, tmp_path: Path) -> None:
    check_per_sample(architecture, torch.float64, tmp_path / "run", train=True)


def test_samples_that_meet_in_the_model(tmp_path: Path) -> None:
    """A graph's nodes: no gradient flows through one sample alone, so there is no number, or a marked one."""
    run, _ = one_step(ZOO["graph_of_samples"], tmp_path / "run", torch.float64, train=True)
    for name in PER_SAMPLE:
        reading = found(run, name)
        assert reading is None or run.how(name)[0]["kind"] == "conditional", name


@pytest.mark.parametrize("name", ["contrastive", "two_towers"])
def test_samples_that_meet_in_the_loss(name: str, tmp_path: Path) -> None:
    """A contrastive loss is a mean of losses, one a sample, each of which sees the others too: g_n is the gradient of its own."""
    architecture = ZOO[name]
    run, model = one_step(architecture, tmp_path / "run", torch.float64, train=True)
    logits = model(*the_batch(architecture, torch.float64).inputs)
    losses = F.cross_entropy(logits, torch.arange(6), reduction="none")
    gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    rows = torch.stack([torch.cat([values.flatten() for values in row]) for row in gradients])
    for name in ("norm_test", "inner_product_test", "orthogonality_test"):
        reading = found(run, name)
        assert reading is None or reading == pytest.approx(getattr(reference, name)(rows), rel=1e-8), name


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if a.batch_norm], ids=lambda a: a.name)
def test_batch_norm_in_train_mode_is_named(architecture: Architecture, tmp_path: Path) -> None:
    run, _ = one_step(architecture, tmp_path / "run", torch.float64, train=True)
    for name in PER_SAMPLE:
        reading = found(run, name)
        assert reading is None or run.how(name)[0]["kind"] == "conditional", name


def has_small_hessian(architecture: Architecture) -> bool:
    return not architecture.no_double_backward and sum(p.numel() for p in architecture.build().parameters()) <= 500


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if has_small_hessian(a)], ids=lambda a: a.name)
def test_curvature_readings_are_right_or_missing(architecture: Architecture, tmp_path: Path) -> None:
    run, model = one_step(architecture, tmp_path / "run", torch.float64, train=False)
    batch = the_batch(architecture, torch.float64)
    hessian = reference.hessian(architecture, model, batch)
    gradient = torch.cat([values.flatten() for values in reference.gradient(architecture, model, batch).values()])
    curvature = (gradient @ hessian @ gradient).item()

    along = found(run, "curvature_along_gradient")
    if along is not None:
        assert along == pytest.approx(curvature / gradient.dot(gradient).item(), rel=1e-7, abs=1e-9)
        assert found(run, "taylor_gradient_term") == pytest.approx(LEARNING_RATE * gradient.dot(gradient).item(), rel=1e-8)
        assert found(run, "taylor_curvature_term") == pytest.approx(LEARNING_RATE**2 * curvature / 2, rel=1e-7, abs=1e-13)

    trace = found(run, "hessian_trace")
    if trace is not None:  # an unbiased estimate: its error is measured against the deviation it must have
        off_diagonal = hessian - torch.diag(hessian.diagonal())
        deviation = math.sqrt(2 * off_diagonal.pow(2).sum().item())
        assert abs(trace - hessian.trace().item()) <= 4 * deviation + 1e-8

    largest = found(run, "max_eigenvalue")
    if largest is not None:  # a Ritz value: an eigenvalue lies within its residual, and none lies far above it
        eigenvalues = torch.linalg.eigvalsh(hessian)
        residual = run.how("max_eigenvalue").get(0, {}).get("residual", 0.0)
        assert (eigenvalues - largest).abs().min().item() <= residual + 1e-8
        assert largest <= eigenvalues[-1].item() * (1 + 1e-8) + 1e-10
        sharpness = found(run, "sharpness")  # of plain gradient descent it is the same number
        # The search that they share may have gone on in between.
        assert sharpness is None or largest * (1 - 1e-8) - 1e-10 <= sharpness <= eigenvalues[-1].item() * (1 + 1e-8) + 1e-10

    smallest = found(run, "min_eigenvalue")
    if smallest is not None:
        eigenvalues = torch.linalg.eigvalsh(hessian)
        residual = run.how("min_eigenvalue").get(0, {}).get("residual", 0.0)
        assert (eigenvalues - smallest).abs().min().item() <= residual + 1e-8
        assert smallest >= eigenvalues[0].item() - 1e-8 * eigenvalues.abs().max().item() - 1e-10


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if has_small_hessian(a)], ids=lambda a: a.name)
def test_the_step_s_expansion_is_right_or_missing(architecture: Architecture, tmp_path: Path) -> None:
    """A plain gradient step: d = -e G, so both Taylor terms and the curvature along it are known from G and H."""
    run, model = one_step(architecture, tmp_path / "run", torch.float64, train=False)
    batch = the_batch(architecture, torch.float64)
    gradients = reference.gradient(architecture, model, batch)
    gradient = torch.cat([values.flatten() for values in gradients.values()])
    curvature = (gradient @ reference.hessian(architecture, model, batch) @ gradient).item()
    if found(run, "trust_ratio") is None:
        return
    squared = gradient.dot(gradient).item()
    assert found(run, "update_gradient_term") == pytest.approx(LEARNING_RATE * squared, rel=1e-8)
    assert found(run, "update_curvature_term") == pytest.approx(LEARNING_RATE**2 * curvature / 2, rel=1e-7, abs=1e-13)
    assert found(run, "curvature_along_update") == pytest.approx(curvature / squared, rel=1e-7, abs=1e-9)
    before = architecture.loss(model, batch).item()
    with torch.no_grad():
        for name, parameter in reference.trainable(model).items():
            parameter.sub_(gradients[name], alpha=LEARNING_RATE)
    actual = before - architecture.loss(model, batch).item()
    assert found(run, "actual_decrease") == pytest.approx(actual, rel=1e-6, abs=1e-12)
    predicted = LEARNING_RATE * squared - LEARNING_RATE**2 * curvature / 2
    assert found(run, "trust_ratio") == pytest.approx(actual / predicted, rel=1e-5)
