"""Alpha against quadratics whose answer is known, and against explicit per-sample gradients along a real training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from cockpit_lite import Every, load_run
from cockpit_lite.instrument import Readings
from cockpit_lite.instruments import Alpha, GradientNorm
from cockpit_lite.instruments.alpha import Ends, Parabola, alpha, fit, standard_error, variance_of_sum
from cockpit_lite.run import Run
from cockpit_lite.sink import Sink
from cockpit_lite.step import Step
from tests import reference
from tests.identity import EVERYTHING, cockpit
from tests.zoo import ZOO

N = 8


class Bowl(nn.Module):
    """A quadratic loss: every sample sees the same."""

    def __init__(self) -> None:
        super().__init__()
        self.curvature = torch.tensor([1.0, 1.0, 1.0])
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ (self.curvature * self.weight.square()) / 2


def run_bowl(folder: Path, make: Callable[[Any], Optimizer], steps: int = 4, **options: Any) -> Run:
    model = Bowl()
    optimizer = make(model.parameters())
    inputs = torch.ones(N, 3)
    with cockpit(model, optimizer, run=folder, **{"instruments": [Alpha()], "schedule": Every(1), "budget": None, **options}):
        for _ in range(steps):
            optimizer.zero_grad()
            model(inputs).mean().backward()
            optimizer.step()
    return load_run(folder)


@pytest.mark.parametrize(
    ("learning_rate", "expected"), [(0.0, -1.0), (0.5, -0.5), (1.0, 0.0), (2.0, 1.0), (3.0, 2.0)], ids=lambda value: str(value)
)
def test_on_a_bowl(learning_rate: float, expected: float, tmp_path: Path) -> None:
    """With curvature 1 the step of learning rate 1 goes to the minimum, and one of 2 to the other side."""
    run = run_bowl(tmp_path / "run", lambda parameters: SGD(parameters, lr=learning_rate), steps=2)
    steps, values = run.series("alpha")
    assert steps.tolist() == [1]
    assert values.tolist() == pytest.approx([expected], abs=1e-6)


def test_concave_is_no_curvature_and_nan_stays_nan() -> None:
    assert alpha(Ends(-1.0, -2.0)) == -1
    assert alpha(Ends(0.0, 0.0)) == -1
    assert alpha(Ends(0.0, 1e-3)) == math.inf
    assert math.isnan(alpha(Ends(-1.0, math.nan))) and math.isnan(alpha(Ends(0.0, math.nan)))


def test_an_error_without_a_slope_to_begin_with_is_infinite_and_nan_stays_nan() -> None:
    assert standard_error(Parabola(Ends(0.0, 1.0), Ends(1.0, 1.0), 0.0)) == math.inf
    assert standard_error(Parabola(Ends(-1.0, 1.0), Ends(0.0, -1e-9), 0.0)) == 0.0
    assert math.isnan(standard_error(Parabola(Ends(-1.0, math.nan), Ends(1.0, 1.0), 0.0)))


def published(
    losses: Sequence[float], slopes: Sequence[float], loss_variances: Sequence[float], slope_variances: Sequence[float]
) -> float:
    """Alpha as Cockpit fits it (version 1.0.2, ``_fit_quadratic`` and ``_get_alpha``): f(0), f(1), f'(0), f'(1)."""
    design = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]], dtype=np.float64)
    precision = np.diag(1 / np.array([*loss_variances, *slope_variances]))
    observed = np.array([*losses, *slopes])
    _, start, bend = np.linalg.solve(design.T @ precision @ design, design.T @ precision @ observed)
    return -1.0 if bend < 0 else 2 / (-start / bend) - 1


def fitted(*numbers: Sequence[float]) -> Parabola:
    return fit(*(Ends(*pair) for pair in numbers))


def test_the_fit_is_the_published_one() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        losses, slopes = random.normal(size=2), np.array([-abs(random.normal()) - 0.5, random.normal()])
        loss_variances, slope_variances = random.uniform(0.1, 2, size=(2, 2))
        found = fitted(losses, loss_variances, slopes, slope_variances).slopes
        if found.start < 0:
            expected = published(losses, slopes, loss_variances, slope_variances)
            assert alpha(found) == pytest.approx(expected, rel=1e-9)


def test_losses_that_are_not_known_leave_the_slopes() -> None:
    parabola = fitted((0.0, 0.0), (0.0, math.inf), (-2.0, 1.0), (0.5, 0.3))
    assert [*parabola.slopes, *parabola.variances, parabola.covariance] == [-2.0, 1.0, 0.5, 0.3, 0.0]


def test_without_noise_nothing_is_corrected() -> None:
    assert alpha(fitted((1.0, 0.7), (0.0, 0.0), (-2.0, 1.0), (0.0, 0.0)).slopes) == 0.5


def test_on_a_noisy_quadratic() -> None:
    """Samples whose quadratics have centres of their own: the fit is closer than the slopes alone, and its error about right.

    Not exactly, since a sample's loss and slope are not independent, as the source takes them to be.
    """
    random, samples, curvature, step, place = np.random.default_rng(1), 32, 1.0, 1.3, -2.0
    true = (place + step) / -place  # slopes curvature * place and curvature * (place + step), along a step of length 1
    found, from_slopes, errors = [], [], []
    for _ in range(3000):
        losses, slopes, loss_variances, slope_variances = [], [], [], []
        for at in (place, place + step):
            centres = random.normal(size=samples)
            values, derivatives = curvature / 2 * (at - centres) ** 2 / samples, curvature * step * (at - centres) / samples
            losses.append(values.sum())
            slopes.append(derivatives.sum())
            loss_variances.append(float(variance_of_sum(torch.tensor(values))))
            slope_variances.append(float(variance_of_sum(torch.tensor(derivatives))))
        parabola = fitted(losses, loss_variances, slopes, slope_variances)
        found.append(alpha(parabola.slopes))
        from_slopes.append(slopes[1] / abs(slopes[0]))
        errors.append(standard_error(parabola))
    assert np.mean(found) == pytest.approx(true, abs=0.01)
    assert np.std(found) < 0.97 * np.std(from_slopes)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)


def along_training(
    name: str, make: Callable[[Any], Optimizer], samples: int, steps: int, train: Callable[..., Any]
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Train; yield the samples' losses and slopes along the step, on the scale of the whole, at both ends of every step."""
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64).eval()
    optimizer, batches, last = make(model.parameters()), torch.Generator().manual_seed(0), None
    with train(model, optimizer):
        for _ in range(steps):
            batch = architecture.batch(samples, batches, torch.float64)
            rows = samples * reference.matrix(reference.contributions(architecture, model, batch))
            with torch.no_grad():
                losses = torch.stack([architecture.loss(model, sample) for sample in architecture.samples(batch)])
            losses = losses * architecture.weights(batch) * samples
            before = torch.cat([value.detach().flatten() for value in reference.trainable(model).values()])
            optimizer.zero_grad()
            architecture.loss(model, batch).backward()
            optimizer.step()
            if last is not None:
                yield [last[0], losses], [last[1] @ last[2], rows @ last[2]]
            last = losses, rows, torch.cat([value.detach().flatten() for value in reference.trainable(model).values()]) - before


TRAININGS = [
    ("mlp", lambda parameters: SGD(parameters, lr=0.05, momentum=0.9)),
    ("mlp", lambda parameters: AdamW(parameters, lr=0.01)),
    ("deep_linear", lambda parameters: SGD(parameters, lr=0.1)),
    ("residual_mlp", lambda parameters: AdamW(parameters, lr=0.01)),
    ("class_weighted", lambda parameters: SGD(parameters, lr=0.05)),
    ("lstm_bidirectional", lambda parameters: AdamW(parameters, lr=0.01)),
]


def mean_and_variance(values: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    return [value.mean().item() for value in values], [value.var().item() / len(value) for value in values]


class Keeps(Sink):
    """Keeps alpha as it was measured: of the log, only as many digits can be asked as its error leaves known."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha: dict[int, float] = {}

    def step(self, step: int, values: Mapping[str, float]) -> None:
        if "alpha" in values:
            self.alpha[step] = values["alpha"]


@pytest.mark.parametrize(("name", "make"), TRAININGS)
def test_against_per_sample_gradients(name: str, make: Callable[[Any], Optimizer], tmp_path: Path) -> None:
    """The published fit and its error, from losses and gradients of all samples at both ends of every step."""

    kept = Keeps()

    def watched(model: nn.Module, optimizer: Optimizer) -> Any:
        options: dict[str, Any] = {"instruments": [Alpha()], "schedule": Every(1), "budget": None, "sinks": [kept]}
        return cockpit(model, optimizer, run=tmp_path / "run", **options)

    expected, errors = [], []
    for losses, slopes in along_training(name, make, N, 6, watched):
        (loss_means, loss_variances), (slope_means, (_, variance)) = mean_and_variance(losses), mean_and_variance(slopes)
        expected.append(published(loss_means, slope_means, loss_variances, [variance, variance]))
        errors.append(standard_error(fitted(loss_means, loss_variances, slope_means, [variance, variance])))
    run = load_run(tmp_path / "run")
    steps, values = run.series("alpha")
    assert steps.tolist() == list(kept.alpha) == [1, 2, 3, 4, 5]
    assert list(kept.alpha.values()) == pytest.approx(expected, rel=1e-6)
    assert values.tolist() == pytest.approx(expected, rel=6e-3)
    how = run.how("alpha")
    assert [how[step]["standard_error"] for step in steps] == pytest.approx(errors, rel=6e-3)  # three digits are logged
    assert all(how[step]["kind"] == "estimated" and "note" not in how[step] for step in steps)


@pytest.mark.parametrize("name", ["mlp", "deep_linear", "bilinear", "class_weighted"])
def test_what_the_variance_at_the_start_would_change(name: str) -> None:
    """Nearly nothing, next to the noise of alpha itself."""
    differences = []
    for losses, slopes in along_training(name, lambda p: SGD(p, lr=0.02), 16, 12, lambda *_: nullcontext()):
        (loss_means, loss_variances), (slope_means, both) = mean_and_variance(losses), mean_and_variance(slopes)
        exact, ours = (fitted(loss_means, loss_variances, slope_means, variances) for variances in (both, [both[1]] * 2))
        differences.append(abs(alpha(exact.slopes) - alpha(ours.slopes)) / standard_error(exact))
    assert np.median(differences) < 0.02
    assert max(differences) < 0.1


def train_net(folder: Path, loss: Callable[[nn.Module, Tensor], Tensor], samples: int = N) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer, generator = SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(0)
    with cockpit(model, optimizer, run=folder, instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            loss(model, model(torch.randn(samples, 3, generator=generator))).backward()
            optimizer.step()
    return load_run(folder)


def test_a_loss_that_is_not_known(tmp_path: Path) -> None:
    """The slopes say enough, and the reading says that there was nothing else."""
    run = train_net(tmp_path / "run", lambda model, y: y.sin().mean())
    how = run.how("alpha")[1]
    assert "from the slopes alone, because the loss ends in Sin" in how["note"]
    assert how["standard_error"] > 0


def test_a_batch_of_one(tmp_path: Path) -> None:
    run = train_net(tmp_path / "run", lambda model, y: y.square().mean(), samples=1)
    how = run.how("alpha")[1]
    assert "without an error, because the batch holds one sample" in how["note"]
    assert "standard_error" not in how


def test_the_second_step_of_a_pair_is_measured_too(tmp_path: Path) -> None:
    run = run_bowl(tmp_path / "run", lambda p: SGD(p, lr=0.5), steps=12, instruments=[Alpha(), GradientNorm()], schedule=Every(5))
    assert run.series("alpha")[0].tolist() == [1, 6, 11]
    assert run.series("grad_norm")[0].tolist() == [0, 5, 10]


def test_a_closure(tmp_path: Path) -> None:
    """LBFGS evaluates many times and overwrites the gradient; the step is described from its first evaluation."""
    model = Bowl()
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=3)
    inputs = torch.ones(N, 3)

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = model(inputs).mean()
        loss.backward()
        return loss

    weights = []
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            weights.append(model.weight.detach().clone())
            optimizer.step(closure)
    update = weights[1] - weights[0]
    expected = alpha(
        Ends((update @ weights[0]).item(), (update @ weights[1]).item())
    )  # the gradient of this bowl is the weight itself
    assert load_run(tmp_path / "run").series("alpha")[1].tolist() == pytest.approx([expected], rel=1e-5)


def test_weights_changed_between_two_steps(tmp_path: Path) -> None:
    model = Bowl()
    optimizer = SGD(model.parameters(), lr=0.5)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            model(torch.ones(N, 3)).mean().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight.mul_(0.9)
    run = load_run(tmp_path / "run")
    assert "alpha" not in run.names
    assert "changed between" in run.not_measured["alpha"]


def test_samples_that_cannot_be_told_apart_cost_the_error_only(tmp_path: Path) -> None:
    architecture = ZOO["graph_of_samples"]
    model, batches = architecture.build(), torch.Generator().manual_seed(0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(3):
            optimizer.zero_grad()
            architecture.loss(model, architecture.batch(N, batches)).backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    assert run.series("alpha")[0].tolist() == [1, 2]
    assert "standard_error" not in run.how("alpha")[1]


def test_complex_weights(tmp_path: Path) -> None:
    """The loss |w|^2 has its minimum along the step where both parts have it."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.cfloat)
    optimizer = SGD(model.parameters(), lr=0.25)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(N, 1, dtype=torch.cfloat)).abs().square().mean().backward()
            optimizer.step()
    assert load_run(tmp_path / "run").series("alpha")[1].tolist() == pytest.approx([-0.5], abs=1e-6)


def test_the_first_step_alone_has_a_reason(tmp_path: Path) -> None:
    run = run_bowl(tmp_path / "run", lambda p: SGD(p, lr=0.5), steps=1)
    assert "step before" in run.not_measured["alpha"]


def test_some_of_many_samples_tell_the_variance_of_the_slope(tmp_path: Path) -> None:
    """Of a batch of 96 every third is looked at: the slopes are those of all, and the variance is that of these, times 96."""
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 1), torch.randn(96, 3), torch.randn(96, 1)
    optimizer = SGD(model.parameters(), lr=0.3)
    seen: list[Tensor] = []

    class Slopes(Alpha):
        def measure(self, step: Step) -> Readings:
            seen.append(step.per_sample_slopes)
            return super().measure(step)

    with cockpit(model, optimizer, run=tmp_path / "run", **{**EVERYTHING, "instruments": [Slopes()]}):
        weights = []
        for _ in range(2):
            optimizer.zero_grad()
            weights.append([parameter.detach().clone() for parameter in model.parameters()])
            F.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    weight, bias = (now - then for now, then in zip(weights[1], weights[0], strict=True))
    residuals = F.linear(inputs, *weights[1]) - targets
    slopes = (2 / 96 * residuals * (inputs @ weight.T + bias))[:, 0]
    (found,) = seen
    assert torch.allclose(found, slopes[::3], rtol=1e-4, atol=1e-7)
    assert load_run(tmp_path / "run").how("alpha")[1]["standard_error"] > 0
