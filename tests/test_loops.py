"""Every form of loop: what the cockpit records is what the loop itself can compute, and the loop is not changed.

Each loop below notes by hand, in float64, what a step's readings must be (:class:`Ledger`), runs plain and watched with the
same outcome to the bit, and is then compared with the recorded run.
"""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from cockpit_lite import Every, load_run
from cockpit_lite.black_box.calls import MOST_CALLS
from cockpit_lite.run import Run
from tests.identity import EVERYTHING, Watch, assert_identical, cockpit
from tests.zoo import ZOO

#: Known gaps. Strict: the test that begins to pass says that its mark can go.
gap = partial(pytest.mark.xfail, strict=True)


class Net(nn.Module):
    """Two parts that a loop may also call one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 10), nn.Tanh())
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def data(steps: int = 6, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(size, 6, generator=generator)
        yield x, x[:, :3].argmax(1)


def norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(tensor.detach().to_dense().double().pow(2).sum().item() for tensor in tensors))


class Ledger:
    """What the cockpit should have recorded, computed within the loop.

    A loop calls ``backward(loss)`` in place of ``loss.backward()``, or notes the two numbers itself with ``loss`` and
    ``gradient``; and ``update(optimizer)`` in place of ``optimizer.step()``.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._parameters: list[Tensor] = []
        self._start: list[Tensor] = []
        self._row: dict[str, float] = {}

    def follow(self, model: nn.Module) -> None:
        """Begin, with the weights as they are."""
        self._parameters = list(model.parameters())
        self._start = self._copy()

    def backward(self, loss: Tensor, **arguments: Any) -> None:
        """Add a part of the step's objective and note the gradient."""
        loss.backward(**arguments)
        self.loss(loss)
        self.gradient()

    def loss(self, loss: Tensor) -> None:
        self._row["loss"] = self._row.get("loss", 0.0) + loss.item()

    def gradient(self, parameters: Iterable[Tensor] | None = None, scale: float = 1.0) -> None:
        """Note the raw gradient as it is now."""
        self._row["grad_norm"] = self._gradient_norm(parameters) / scale

    def forget(self) -> None:
        """The step was given up before its update."""
        self._row = {}

    def update(self, optimizer: Optimizer, *arguments: Any) -> Any:
        """Take the step."""
        return self.update_with(partial(optimizer.step, *arguments), optimizer)

    def update_with(
        self, step: Callable[[], Any], optimizer: Optimizer, parameters: Iterable[Tensor] | None = None, scale: float = 1.0
    ) -> Any:
        """Take the step in the loop's own way."""
        before, row = self._copy(), self._row
        applied = self._gradient_norm(parameters) / scale
        result = step()
        if "grad_norm" in row and applied != row["grad_norm"] and "closure" not in row:
            row["grad_norm_clipped"] = applied
        row.pop("closure", None)
        row["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        row["update_size"] = norm(after.detach() - old for after, old in zip(self._parameters, before, strict=True))
        row["distance"] = norm(old - start for old, start in zip(before, self._start, strict=True))
        self.rows.append(row)
        self._row = {}
        return result

    def in_closure(self, loss: Tensor) -> None:
        """Note the first evaluation of a closure; later ones are the optimizer's own business."""
        if "closure" not in self._row:
            self._row.update(closure=1.0, loss=loss.item(), grad_norm=self._gradient_norm(None))

    def check(self, run: Run) -> None:
        """Compare with what was recorded: the same readings at the same steps, and no others."""
        for name in ("loss", "grad_norm", "grad_norm_clipped", "learning_rate", "update_size", "distance"):
            expected = {step: row[name] for step, row in enumerate(self.rows) if name in row}
            if not expected:
                assert name not in run.names, f"{name} cannot be known in this loop"
                continue
            steps, values = run.series(name)
            assert list(steps) == list(expected), f"{name} recorded at other steps"
            # float32 sums; an update is a difference of two much larger float32 numbers.
            np.testing.assert_allclose(values, list(expected.values()), rtol=2e-4, atol=1e-6, err_msg=name)

    def _gradient_norm(self, parameters: Iterable[Tensor] | None) -> float:
        return norm(p.grad for p in (self._parameters if parameters is None else parameters) if p.grad is not None)

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]


Loop = Callable[[Watch, Ledger], None]


def check(loop: Loop, folder: Path) -> Run:
    """Run a loop plain and watched, require the same outcome, and compare the readings with the ledger."""
    ledgers: list[Ledger] = []

    def train(watch: Watch) -> Any:
        ledgers.append(Ledger())
        loop(watch, ledgers[-1])
        return ledgers[-1].rows

    run = assert_identical(train, folder / "run")
    assert ledgers[-1].rows
    ledgers[-1].check(run)
    return run


def start(ledger: Ledger, factory: Callable[..., Optimizer] = SGD, **options: Any) -> tuple[Net, Optimizer]:
    model = Net()
    ledger.follow(model)
    return model, factory(model.parameters(), **(options or {"lr": 0.1}))


# ------------------------------------------------------------------------------------------------------ where zero_grad is


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("place", ["before forward", "before backward", "after step", "model", "by hand"])
def test_gradients_are_zeroed_anywhere(place: str, set_to_none: bool, tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, SGD, lr=0.1, momentum=0.9)
        with watch(model, optimizer):
            for x, y in data():
                if place == "before forward":
                    optimizer.zero_grad(set_to_none)
                loss = F.cross_entropy(model(x), y)
                if place == "before backward":
                    optimizer.zero_grad(set_to_none)
                ledger.backward(loss)
                ledger.update(optimizer)
                if place == "after step":
                    optimizer.zero_grad(set_to_none)
                elif place == "model":
                    model.zero_grad(set_to_none)
                elif place == "by hand":
                    for parameter in model.parameters():
                        assert parameter.grad is not None
                        if set_to_none:
                            parameter.grad = None
                        else:
                            parameter.grad.zero_()

    check(loop, tmp_path)


def test_gradients_are_never_zeroed(tmp_path: Path) -> None:
    """A fault of the user's: the gradient is what the optimizer gets, the leftovers included."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)

    check(loop, tmp_path)


# ---------------------------------------------------------------------------------------------------------- accumulation


def test_gradient_accumulation(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for number, (x, y) in enumerate(data(16)):
                ledger.backward(F.cross_entropy(model(x), y) / 4)
                if number % 4 == 3:
                    ledger.update(optimizer)
                    optimizer.zero_grad()

    run = check(loop, tmp_path)
    assert run.last_step == 3


def test_gradient_accumulation_with_a_number_that_changes(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, Adam, lr=0.01)
        batches = data(20)
        with watch(model, optimizer):
            for count in (1, 3, 1, 1, 5, 2):
                for _ in range(count):
                    x, y = next(batches)
                    ledger.backward(F.cross_entropy(model(x), y) / count)
                ledger.update(optimizer)
                optimizer.zero_grad()

    check(loop, tmp_path)


def test_accumulation_does_not_pass_for_one_batch(tmp_path: Path) -> None:
    """Four micro-batches of 8 give the statistics of one batch of 32, or none; curvature says that it is of the first 8."""

    def loop(pieces: int, watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data(4, 32):
                optimizer.zero_grad()
                for some, labels in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                    ledger.backward(F.cross_entropy(model(some), labels) / pieces)
                ledger.update(optimizer)

    whole, pieces = check(partial(loop, 1), tmp_path / "whole"), check(partial(loop, 4), tmp_path / "pieces")
    for name in ("hessian_trace", "curvature_along_gradient"):
        assert all("of the first of 4 micro-batches" in how["note"] for how in pieces.how(name).values()), name
    for name in ("norm_test", "inner_product_test", "orthogonality_test", "gradient_noise_scale"):
        assert name in whole.names, name
        if name in pieces.names:
            np.testing.assert_allclose(pieces.series(name)[1], whole.series(name)[1], rtol=1e-3, err_msg=name)
        else:
            assert pieces.not_measured[name]


# -------------------------------------------------------------------------------------------------------------- clipping


def _replace_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad = parameter.grad * 0.3


def _scale_in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(0.3)


@pytest.mark.parametrize(
    "clip",
    [
        lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05),
        lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
        _replace_gradients,
        _scale_in_place,
    ],
    ids=["norm", "value", "replaced", "scaled"],
)
def test_clipping_between_backward_and_step(clip: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                clip(model)
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert (run.series("grad_norm")[1] > run.series("grad_norm_clipped")[1]).all()


def test_clipping_of_one_part_only(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                nn.utils.clip_grad_norm_(model.trunk.parameters(), 0.01)
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_clipping_that_comes_and_goes(tmp_path: Path) -> None:
    """The raw norm may be missing where clipping surprises, but a clipped one never passes for it."""
    clipped = {4, 5, 6, 9}

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for step, (x, y) in enumerate(data(12)):
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                if step in clipped:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                ledger.update(optimizer)

    ledgers: list[Ledger] = []

    def train(watch: Watch) -> None:
        ledgers.append(Ledger())
        loop(watch, ledgers[-1])

    run = assert_identical(train, tmp_path / "run")
    steps, values = run.series("grad_norm")
    assert set(range(12)) - set(steps) <= {4, 9}
    np.testing.assert_allclose(values, [ledgers[-1].rows[step]["grad_norm"] for step in steps], rtol=1e-4)


# --------------------------------------------------------------------------------------- schedulers and parameter groups


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: StepLR(optimizer, 2, 0.5),
        lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=6),  # changes the momentum too
        lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 3)),  # warm-up: the first rate is 0
    ],
    ids=["step", "one cycle", "warm-up"],
)
def test_learning_rate_schedulers(scheduler: Callable[[Optimizer], Any], tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, SGD, lr=0.1, momentum=0.9)
        schedule = scheduler(optimizer)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)
                schedule.step()

    run = check(loop, tmp_path)
    assert len(set(run.series("learning_rate")[1])) > 1


def test_learning_rate_as_a_tensor(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, Adam, lr=torch.tensor(0.01), foreach=False)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)
                optimizer.param_groups[0]["lr"].mul_(0.9)

    check(loop, tmp_path)


def test_several_parameter_groups(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, _ = start(ledger)
        optimizer = AdamW([{"params": model.trunk.parameters(), "lr": 0.01}, {"params": model.head.parameters(), "lr": 0.1}])
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert list(run.series("learning_rate/group0")[1]) == [0.01] * 6
    assert list(run.series("learning_rate/group1")[1]) == [0.1] * 6


def test_a_group_that_is_added_on_the_way(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, _ = start(ledger)
        model.trunk.requires_grad_(False)
        optimizer = SGD(model.head.parameters(), lr=0.1)
        with watch(model, optimizer):
            for step, (x, y) in enumerate(data()):
                if step == 3:
                    model.trunk.requires_grad_(True)
                    optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 0.01})
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert list(run.series("grad_norm/trunk.0.weight")[0]) == [3, 4, 5]


# -------------------------------------------------------------------------------------------------------- two optimizers


def test_two_optimizers_for_two_parts(tmp_path: Path) -> None:
    """Both step after the same backward pass: that is one step."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, _ = start(ledger)
        optimizers = [SGD(model.trunk.parameters(), lr=0.1), Adam(model.head.parameters(), lr=0.01)]

        def step() -> None:
            for optimizer in optimizers:
                optimizer.step()

        with watch(model, optimizers):
            for x, y in data():
                for optimizer in optimizers:
                    optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update_with(step, optimizers[0])

    run = check(loop, tmp_path)
    assert list(run.series("learning_rate/group1")[1]) == [0.01] * 6


def test_two_optimizers_that_take_turns(tmp_path: Path) -> None:
    """Generator against discriminator: each update is a step, with its own loss and its own parameters' gradient."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model = nn.ModuleDict(
            {"generator": nn.Linear(2, 3), "critic": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))}
        )
        ledger.follow(model)
        generator, critic = model["generator"], model["critic"]
        of_generator, of_critic = SGD(generator.parameters(), lr=0.05), Adam(critic.parameters(), lr=0.01)
        with watch(model, [of_critic, of_generator]):
            for x, _ in data():
                of_critic.zero_grad()
                fake = generator(x[:, :2])
                loss = F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(x[:, 3:])).mean()
                loss.backward()
                ledger.loss(loss)
                ledger.gradient(list(critic.parameters()))
                ledger.update_with(of_critic.step, of_critic, list(critic.parameters()))
                of_generator.zero_grad()
                loss = F.softplus(-critic(fake)).mean()  # leaves a gradient in the critic, which nobody uses
                loss.backward()
                ledger.loss(loss)
                ledger.gradient(list(generator.parameters()))
                ledger.update_with(of_generator.step, of_critic, list(generator.parameters()))

    run = check(loop, tmp_path)
    assert run.last_step == 11


def test_an_optimizer_that_is_not_watched(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        other = nn.Linear(6, 3)
        of_other = SGD(other.parameters(), lr=0.1)
        with watch(model, optimizer):
            for x, y in data():
                of_other.zero_grad()
                F.cross_entropy(other(x), y).backward()
                of_other.step()
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_parameters_that_only_the_loss_has(tmp_path: Path) -> None:
    """Learned weights of two losses, in the optimizer but not in the model."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model = Net()
        balance = nn.Parameter(torch.zeros(2))
        ledger.follow(nn.ParameterList([*model.parameters(), balance]))
        optimizer = Adam([*model.parameters(), balance], lr=0.01)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                outputs = model(x)
                losses = torch.stack((F.cross_entropy(outputs, y), outputs.pow(2).mean()))
                ledger.backward((losses * torch.exp(-balance) + balance).sum())
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert "grad_norm/optimizer.0.4" in run.names


# ---------------------------------------------------------------------------------------------------- any kind of a loss


@pytest.mark.parametrize("given", [False, True])
def test_a_loss_module(given: bool, tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        with watch(model, optimizer, *([criterion] if given else [])):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(criterion(model(x), y))
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_a_composite_loss(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                outputs = model(x)
                penalty = sum((p.pow(2).sum() for p in model.parameters()), torch.zeros(()))
                ledger.backward(F.cross_entropy(outputs, y) + 0.1 * F.mse_loss(outputs, x[:, :3]) + 1e-3 * penalty)
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_a_model_that_returns_its_own_loss(tmp_path: Path) -> None:
    architecture = ZOO["own_loss_ignored_labels"]

    def loop(watch: Watch, ledger: Ledger) -> None:
        model = architecture.build()
        ledger.follow(model)
        optimizer = AdamW(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        with watch(model, optimizer):
            for _ in range(5):
                batch = architecture.batch(6, generator)
                optimizer.zero_grad()
                ledger.backward(model(*batch.inputs, labels=batch.targets)["loss"])
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_two_backward_calls_on_one_forward(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                outputs = model(x)
                ledger.backward(F.cross_entropy(outputs, y), retain_graph=True)
                ledger.backward(0.1 * outputs.pow(2).mean())
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_two_backward_calls_on_two_forwards(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.backward(0.1 * (model(x + 0.1) - model(x)).pow(2).mean())
                ledger.update(optimizer)

    check(loop, tmp_path)


@pytest.mark.parametrize("how", ["function", "list", "two roots", "seeded", "vector", "unreduced"])
def test_backward_is_called_in_another_way(how: str, tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                outputs = model(x)
                loss = F.cross_entropy(outputs, y)
                objective = loss
                if how == "function":
                    torch.autograd.backward(loss)
                elif how == "list":
                    torch.autograd.backward([loss], [None])
                elif how == "two roots":
                    penalty = outputs.pow(2).mean()
                    torch.autograd.backward((loss, penalty), (torch.ones(()), torch.tensor(0.5)))
                    objective = loss + 0.5 * penalty
                elif how == "seeded":
                    loss.backward(gradient=torch.tensor(2.0))
                    objective = 2 * loss
                elif how == "vector":
                    loss.reshape(1).backward()
                else:
                    losses = F.cross_entropy(outputs, y, reduction="none")
                    losses.backward(torch.full((8,), 1 / 8))
                    objective = losses.mean()
                ledger.loss(objective)
                ledger.gradient()
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_parts_of_the_model_are_called_instead_of_the_model(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model.head(model.trunk(x)), y))
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_the_model_is_wrapped_in_another(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        whole = nn.Sequential(nn.Dropout(0.2), model)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(whole(x), y))
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_the_whole_step_is_taken_inside_of_the_model_s_call(tmp_path: Path) -> None:
    """As Lightning does with manual optimization under DistributedDataParallel."""

    class TakesItsStep(Net):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            logits = super().forward(x)
            if y is None:
                return logits
            self.optimizer.zero_grad()
            self.ledger.backward(loss := F.cross_entropy(logits, y))
            self.ledger.update(self.optimizer)
            return loss

    def inside(watch: Watch, ledger: Ledger) -> None:
        model = TakesItsStep()
        ledger.follow(model)
        # kept out of the module's attributes, which deepcopy and state_dict look through
        object.__setattr__(model, "ledger", ledger)
        object.__setattr__(model, "optimizer", SGD(model.parameters(), lr=0.1))
        with watch(model, model.optimizer):
            for x, y in data():
                model(x, y)

    def outside(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)

    found, expected = check(inside, tmp_path / "inside"), check(outside, tmp_path / "outside")
    for name in ("norm_test", "gradient_noise_scale", "alpha", "curvature_along_gradient"):
        np.testing.assert_allclose(found.series(name)[1], expected.series(name)[1], rtol=1e-4, err_msg=name)


def test_gradients_without_backward(tmp_path: Path) -> None:
    """``torch.autograd.grad`` and assignment: there is no backward to see, but the gradient is there for the optimizer."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                ledger.gradient()
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert "backward" in run.not_measured["loss"]


def test_sparse_gradients(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model = nn.Sequential(nn.Embedding(12, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))
        ledger.follow(model)
        optimizers = [SparseAdam(model[0].parameters(), lr=0.01), Adam(model[2].parameters(), lr=0.01)]
        generator = torch.Generator().manual_seed(0)

        def step() -> None:
            for optimizer in optimizers:
                optimizer.step()

        with watch(model, optimizers):
            for _ in range(5):
                model.zero_grad()
                words = torch.randint(12, (8, 3), generator=generator)
                ledger.backward(F.cross_entropy(model(words), words[:, 0] % 3))
                ledger.update_with(step, optimizers[0])

    check(loop, tmp_path)


# ---------------------------------------------------------------------------------------------- other things in the loop


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("place", ["between steps", "before backward", "before step"])
def test_validation_in_between(mode: Callable[[], Any], place: str, tmp_path: Path) -> None:
    """A validation loss is no training loss, with or without ``no_grad``, wherever it is computed."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        held_out, labels = next(data(1, 20))

        def validate() -> None:
            model.eval()
            with mode():
                F.cross_entropy(model(held_out), labels)
            model.train()

        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                if place == "before backward":
                    validate()
                ledger.backward(loss)
                if place == "before step":
                    validate()
                ledger.update(optimizer)
                if place == "between steps":
                    validate()

    run = check(loop, tmp_path)
    for name in ("norm_test", "hessian_trace"):  # of the training batch alone, so they can be had at every step
        assert list(run.series(name)[0]) == list(range(6)), name


def test_validation_does_not_change_the_readings(tmp_path: Path) -> None:
    def loop(validating: bool, watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        held_out, labels = next(data(1, 20))
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                if validating:
                    F.cross_entropy(model(held_out), labels)
                ledger.backward(loss)
                ledger.update(optimizer)

    without, within = (check(partial(loop, validating), tmp_path / str(validating)) for validating in (False, True))
    assert without.names == within.names
    for name in without.names:
        if name not in ("step_time", "overhead"):
            np.testing.assert_array_equal(without.series(name)[1], within.series(name)[1], err_msg=name)


def test_a_step_that_is_skipped(tmp_path: Path) -> None:
    """The loop throws a batch away after its backward pass: no step, and nothing of it in the next one."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for number, (x, y) in enumerate(data(8)):
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                if number in (2, 3, 6):
                    ledger.forget()
                    continue
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert run.last_step == 4


def test_a_forward_pass_that_is_thrown_away(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for number, (x, y) in enumerate(data(8)):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                if number in (2, 5):
                    continue
                ledger.backward(loss)
                ledger.update(optimizer)

    check(loop, tmp_path)


def test_several_steps_on_one_gradient(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data(3):
                optimizer.zero_grad()
                ledger.backward(F.cross_entropy(model(x), y))
                ledger.update(optimizer)
                ledger.gradient()
                ledger.update(optimizer)

    run = check(loop, tmp_path)
    assert list(run.series("loss")[0]) == [0, 2, 4]  # the other steps have no loss of their own


def test_autocast(tmp_path: Path) -> None:
    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data():
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = F.cross_entropy(model(x), y)
                ledger.backward(loss)
                ledger.update(optimizer)

    check(loop, tmp_path)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_gradient_scaler(unscale: bool, fused: bool, tmp_path: Path) -> None:
    """Loss, gradient and curvature are recorded without the scale, and the scaler's own skipped step is no step.

    Fused optimizers are called all the same, unscale by themselves, and find out by themselves that there is no step to take.
    """

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, SGD, lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with watch(model, optimizer):
            for number, (x, y) in enumerate(data(8)):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                scaler.scale(loss * math.inf if number == 3 else loss).backward()
                if number == 3:
                    scaler.step(optimizer)
                else:
                    ledger.loss(loss)
                    ledger.gradient(scale=scaler.get_scale())
                    if unscale:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                    ledger.update_with(partial(scaler.step, optimizer), optimizer, scale=1.0 if unscale else scaler.get_scale())
                scaler.update()

    run = check(loop, tmp_path)
    assert run.series("hessian_trace")[1].max() < 100  # measured without the scale too


# --------------------------------------------------------------------------------------------------------------- closures


@pytest.mark.parametrize(
    "factory",
    [
        lambda parameters: LBFGS(parameters, lr=0.5, max_iter=4),
        lambda parameters: LBFGS(parameters, max_iter=3, line_search_fn="strong_wolfe"),
        lambda parameters: LBFGS(parameters, lr=0.5, max_iter=1),
        lambda parameters: Adam(parameters, lr=0.01),
        lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    ],
    ids=["lbfgs", "lbfgs_wolfe", "lbfgs_one", "adam", "sgd"],
)
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure(factory: Callable[[Any], Optimizer], keyword: bool, tmp_path: Path) -> None:
    """Loss and gradient are those of the first evaluation, the update is that of the whole step."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model = Net()
        ledger.follow(model)
        optimizer = factory(model.parameters())

        def evaluate(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            ledger.in_closure(loss)
            return loss

        with watch(model, optimizer):
            for x, y in data():
                closure = partial(evaluate, x, y)
                ledger.update_with(
                    partial(optimizer.step, closure=closure) if keyword else partial(optimizer.step, closure), optimizer
                )

    check(loop, tmp_path)


def test_a_backward_before_the_closure_is_not_counted_twice(tmp_path: Path) -> None:
    """As some training frameworks do: look at the loss first, then let the closure do it again."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, Adam, lr=0.01)

        def evaluate(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            ledger.in_closure(loss)
            return loss

        with watch(model, optimizer):
            for x, y in data():
                F.cross_entropy(model(x), y).backward()
                ledger.update(optimizer, partial(evaluate, x, y))

    check(loop, tmp_path)


def test_accumulation_with_a_closure(tmp_path: Path) -> None:
    """As some training frameworks do: all but the last part outside of the closure, without a step."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger, Adam, lr=0.01)

        def evaluate(x: Tensor, y: Tensor, first: bool) -> Tensor:
            loss = F.cross_entropy(model(x), y) / 3
            if first:
                optimizer.zero_grad()
            ledger.backward(loss)
            return loss

        with watch(model, optimizer):
            for number, (x, y) in enumerate(data(12)):
                closure = partial(evaluate, x, y, number % 3 == 0)
                if number % 3 < 2:
                    closure()
                else:
                    ledger._row["closure"] = 1.0  # the gradient is complete within the update only
                    ledger.update_with(partial(optimizer.step, closure), optimizer)

    run = check(loop, tmp_path)
    assert run.last_step == 3
    assert not [alert for alert in run.alerts if alert.name == "gradients-not-zeroed"]
    assert run.series("batch_size")[1].tolist() == [24] * 4


def test_clipping_within_the_closure(tmp_path: Path) -> None:
    raw: list[float] = []

    def loop(watch: Watch, ledger: Ledger) -> None:
        raw.clear()
        model, optimizer = start(ledger, Adam, lr=0.01)

        def evaluate(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            ledger.in_closure(loss)
            raw.append(nn.utils.clip_grad_norm_(model.parameters(), 0.05).item())
            return loss

        with watch(model, optimizer):
            for x, y in data():
                ledger.update(optimizer, partial(evaluate, x, y))

    run = assert_identical(lambda watch: loop(watch, Ledger()), tmp_path / "run")
    np.testing.assert_allclose(run.series("grad_norm")[1], raw, rtol=1e-4)
    np.testing.assert_allclose(run.series("grad_norm_clipped")[1], [0.05] * 6, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------- when to measure


def test_only_some_steps_are_measured(tmp_path: Path) -> None:
    """Loss and learning rate are there at every step; what costs more follows the schedule."""

    def loop(watch: Watch, ledger: Ledger) -> None:
        model, optimizer = start(ledger)
        with watch(model, optimizer):
            for x, y in data(10):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                ledger.loss(loss)
                ledger.update(optimizer)

    ledgers: list[Ledger] = []

    def train(watch: Watch) -> None:
        ledgers.append(Ledger())
        loop(watch, ledgers[-1])

    run = assert_identical(train, tmp_path / "run", {"instruments": "full", "schedule": Every(4), "budget": None})
    for name, steps in {"loss": range(10), "learning_rate": range(10), "grad_norm": (0, 4, 8), "update_size": (0, 4, 8)}.items():
        assert list(run.series(name)[0]) == list(steps), name
    np.testing.assert_allclose(run.series("loss")[1], [row["loss"] for row in ledgers[-1].rows], rtol=1e-5)


def test_what_the_user_logs(tmp_path: Path) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run") as watching:
        assert watching.step == 0
        for step, (x, y) in enumerate(data(4)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            assert watching.step == step + 1
            watching.log(validation_accuracy=0.1 * step, validation_loss=torch.tensor(1.0 / (step + 1)))
    run = load_run(tmp_path / "run")
    np.testing.assert_allclose(run.series("validation_accuracy")[1], [0.0, 0.1, 0.2, 0.3])
    assert list(run.series("validation_loss")[0]) == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("instruments", ["light", "full"])
@pytest.mark.parametrize("schedule", [Every(1), Every(3)])
def test_nothing_piles_up(instruments: str, schedule: Every, tmp_path: Path) -> None:
    """As many tensors are alive after step 30 as after step 10, and no loss of an earlier step is among them."""
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.01)
    held_out = torch.randn(20, 6)
    counts: dict[int, int] = {}
    losses: list[weakref.ref[Tensor]] = []
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=instruments, schedule=schedule, budget=None):
        for step, (x, y) in enumerate(data(31)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            losses.append(weakref.ref(loss))
            model(held_out)  # validation that forgot no_grad
            loss.backward()
            optimizer.step()
            if step in (9, 30):  # both are multiples of 3
                del loss
                gc.collect()
                counts[step] = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
                assert sum(reference() is not None for reference in losses) <= 1
    assert counts[30] <= counts[9] + MOST_CALLS  # whose inputs the black box holds until a backward pass, with the random state


def test_the_model_can_be_freed_afterwards(tmp_path: Path) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.01)
    watching = cockpit(model, optimizer, run=tmp_path / "run", **EVERYTHING)
    with watching:
        for x, y in data(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    gone = weakref.ref(model)
    del model, optimizer, watching, x, y
    gc.collect()
    assert gone() is None


# -------------------------------------------------------------------------------------------------------------- no steps


def test_a_block_without_a_step(tmp_path: Path) -> None:
    model = Net()
    with cockpit(model, SGD(model.parameters(), lr=0.1), run=tmp_path / "run", report=True):
        F.cross_entropy(model(torch.randn(4, 6)), torch.zeros(4, dtype=torch.long)).backward()
    run = load_run(tmp_path / "run")
    assert run.last_step is None
    assert run.info["steps"] == 0
    assert "step" in (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
