"""Watching changes nothing: weights, gradients, random numbers, hooks and exceptions are those of the plain loop."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from cockpit_lite import load_run
from tests.combinations import COMBINATIONS, FEATURES, Combination
from tests.identity import EVERYTHING, CockpitFactory, Watch, assert_identical, cockpit, compare, outcome
from tests.optimizers import OPTIMIZERS, OptimizerCase
from tests.zoo import ZOO, Architecture

#: Known gaps. Strict: the test that begins to pass says that its mark can go.
gap = partial(pytest.mark.xfail, strict=True)


def dropout_and_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(16, 4),
    )


def batches(steps: int, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        targets = torch.randint(4, (size,), generator=generator)
        yield torch.randn(size, 1, 6, 6, generator=generator) + targets.view(-1, 1, 1, 1), targets


def classify(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]


def simple(watch: Watch, between: Callable[[nn.Module, int], Any] = lambda model, step: None, steps: int = 4) -> Any:
    """A plain loop; what ``between`` returns is compared too."""
    model = dropout_and_batch_norm()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen = []
    with watch(model, optimizer):
        for step, (inputs, targets) in enumerate(batches(steps)):
            optimizer.zero_grad()
            loss = classify(model, inputs, targets)
            seen.append(between(model, step))
            loss.backward()
            seen.append(between(model, step))
            optimizer.step()
            seen.append(between(model, step))
            seen.append(loss.detach())
    return seen


# ---------------------------------------------------------------------------------------------------- the harness itself


@pytest.mark.parametrize(
    "disturb",
    [
        lambda model, optimizer: next(model.parameters()).data.mul_(1 + 1e-7),
        lambda model, optimizer: torch.rand(1),
        lambda model, optimizer: random.random(),
        lambda model, optimizer: np.random.rand(),
        lambda model, optimizer: model.eval(),
        lambda model, optimizer: model.register_forward_hook(lambda *_: None),
        lambda model, optimizer: next(model.parameters()).register_hook(lambda grad: None),
        lambda model, optimizer: next(model.parameters()).register_post_accumulate_grad_hook(lambda p: None),
        lambda model, optimizer: optimizer.register_step_post_hook(lambda *_: None),
        lambda model, optimizer: model[1].running_mean.add_(1e-6),
        lambda model, optimizer: setattr(model, "marked", True),
        lambda model, optimizer: setattr(next(model.parameters()), "marked", True),
        lambda model, optimizer: optimizer.state[next(model.parameters())]["momentum_buffer"].neg_(),
        lambda model, optimizer: next(model.parameters()).grad.mul_(-1),
        lambda model, optimizer: warnings.warn("something", stacklevel=2),
        lambda model, optimizer: threading.Thread(target=time.sleep, args=(1,), daemon=True).start(),
        lambda model, optimizer: (_ for _ in ()).throw(RuntimeError("boom")),
    ],
)
def test_the_harness_sees_a_disturbance(disturb: Callable[[Any, Any], Any]) -> None:
    def train(watch: Watch, disturbed: bool) -> None:
        model = dropout_and_batch_norm()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        with watch(model, optimizer):
            for inputs, targets in batches(2):
                classify(model, inputs, targets).backward()
                optimizer.step()
        if disturbed:
            disturb(model, optimizer)

    plain = outcome(lambda watch: train(watch, False), None, 0)
    assert list(compare(plain.observed, outcome(lambda watch: train(watch, False), None, 0).observed)) == []
    assert list(compare(plain.observed, outcome(lambda watch: train(watch, True), None, 0).observed))


def test_the_harness_sees_a_function_that_was_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.autograd.backward

    def train(watch: Watch, careless: bool) -> None:
        model = nn.Linear(2, 1)
        with watch(model, SGD(model.parameters(), lr=0.1)):
            if careless:
                monkeypatch.setattr(torch.autograd, "backward", lambda *args, **kwargs: original(*args, **kwargs))

    plain = outcome(lambda watch: train(watch, False), None, 0)
    assert any(
        "torch.autograd.backward" in line
        for line in compare(plain.observed, outcome(lambda watch: train(watch, True), None, 0).observed)
    )


# ------------------------------------------------------------------------------------------------ optimizers and the zoo


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.name)
def test_fifty_steps_with_every_optimizer(case: OptimizerCase, tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        model = dropout_and_batch_norm()
        optimizer = case.factory(model)
        seen = []
        with watch(model, optimizer):
            for inputs, targets in batches(50):
                seen.append(case.step(optimizer, partial(classify, model, inputs, targets)))
                seen.append(gradients(model))
        return seen

    run = assert_identical(train, tmp_path / "run")
    for name in ("loss", "learning_rate", "grad_norm", "update_size", "distance"):
        assert list(run.series(name)[0]) == list(range(50)), name


@pytest.mark.parametrize("architecture", ZOO.values(), ids=ZOO.keys())
def test_the_whole_zoo(architecture: Architecture, tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        model = architecture.build()
        optimizer = AdamW(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(2)
        seen = []
        with watch(model, optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                loss = architecture.loss(model, architecture.batch(6, generator))
                loss.backward()
                optimizer.step()
                seen.append((loss.detach(), gradients(model)))
        return seen

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("loss")[0]) == [0, 1, 2, 3]


#: One of each way of training, with an optimizer that is another one each time; benchmarks.identity runs them all.
SLICE = [
    of_feature[number % len(of_feature)]
    for number, of_feature in enumerate([c for c in COMBINATIONS if c.feature == feature] for feature in FEATURES)
    if of_feature[0].feature != "anomaly detection"
]
#: A pass of ours is not possible there, and the user's anomaly mode must not speak of it.
SLICE += [c for c in COMBINATIONS if c.name == "anomaly detection, two_groups, recommender_offsets"]


@pytest.mark.parametrize("combination", SLICE, ids=lambda combination: combination.name)
def test_every_way_of_training(combination: Combination, tmp_path: Path) -> None:
    run = assert_identical(combination.train, tmp_path / "run")
    assert len(run.series("loss")[0]) >= 2


def test_every_way_of_training_meets_every_optimizer_and_every_net() -> None:
    assert len(COMBINATIONS) >= 200 and len({combination.name for combination in COMBINATIONS}) == len(COMBINATIONS)
    assert {combination.architecture.name for combination in COMBINATIONS} == set(ZOO)
    assert all({c.case.name for c in COMBINATIONS if c.feature == feature} >= {"sgd", "adahessian"} for feature in FEATURES)


@pytest.mark.parametrize("instruments", ["light", "standard", "full"])
def test_every_preset(instruments: str, tmp_path: Path) -> None:
    assert_identical(simple, tmp_path / "run", {"instruments": instruments}, report=True)
    assert (tmp_path / "run" / "report.html").is_file()


# ------------------------------------------------------------------------------------------------- copies and snapshots


def test_pickle_of_the_model_at_any_moment(tmp_path: Path) -> None:
    def pickled(model: nn.Module, step: int) -> Any:
        data = pickle.dumps(model)
        assert b"cockpit" not in data
        return [sorted(vars(module)) for module in pickle.loads(data).modules()], len(data)

    assert_identical(lambda watch: simple(watch, pickled), tmp_path / "run")


def test_torch_save_of_the_model_at_any_moment(tmp_path: Path) -> None:
    def save(model: nn.Module, step: int) -> Any:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        return list(torch.load(buffer, weights_only=False).state_dict().items())

    assert_identical(lambda watch: simple(watch, save), tmp_path / "run")


def test_state_dict_at_any_moment(tmp_path: Path) -> None:
    def state_dict(model: nn.Module, step: int) -> Any:
        state = model.state_dict()
        return [(key, value.clone()) for key, value in state.items()], dict(state._metadata)

    assert_identical(lambda watch: simple(watch, state_dict), tmp_path / "run")


def test_a_deepcopy_is_a_free_model(tmp_path: Path) -> None:
    """The copy carries no hook of ours: it trains by itself, inside the block and after it."""
    copies: list[nn.Module] = []

    def duplicate(model: nn.Module, step: int) -> Any:
        clone = copy.deepcopy(model)
        copies.append(clone)
        hooks = [key for module in clone.modules() for key, value in vars(module).items() if key.endswith("_hooks") and value]
        clone.eval()
        clone.zero_grad()
        clone(torch.ones(2, 1, 6, 6)).sum().backward()
        return hooks, gradients(clone)

    run = assert_identical(lambda watch: simple(watch, duplicate), tmp_path / "run")
    assert list(run.series("loss")[0]) == [0, 1, 2, 3]  # the copies' backward passes are not steps, and not in the loss
    copies[-1](torch.ones(2, 1, 6, 6)).sum().backward()


def test_exponential_moving_average(tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        model = dropout_and_batch_norm()
        optimizer = Adam(model.parameters(), lr=0.01)
        average = None
        with watch(model, optimizer):
            for step, (inputs, targets) in enumerate(batches(8)):
                optimizer.zero_grad()
                classify(model, inputs, targets).backward()
                optimizer.step()
                if step == 3:
                    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
                elif average is not None:
                    average.update_parameters(model)
        assert average is not None
        return list(average.state_dict().items())

    assert_identical(train, tmp_path / "run")


def test_weights_loaded_in_the_middle(tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        model = dropout_and_batch_norm()
        optimizer = Adam(model.parameters(), lr=0.01)
        start = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        with watch(model, optimizer):
            for step, (inputs, targets) in enumerate(batches(8)):
                optimizer.zero_grad()
                classify(model, inputs, targets).backward()
                optimizer.step()
                if step == 4:
                    model.load_state_dict(start[0])
                    optimizer.load_state_dict(start[1])

    assert_identical(train, tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------ the user's


def test_hooks_of_the_user_fire_as_often_and_in_the_same_order(tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        optimizer = SGD(model.parameters(), lr=0.1)
        events: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: events.append(f"pre {name}"))
            module.register_forward_hook(lambda *_, name=name: events.append(f"forward {name}"))
            if name:
                module.register_full_backward_hook(lambda *_, name=name: events.append(f"backward {name}"))
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda grad, name=name: events.append(f"gradient {name}"))
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: events.append(f"accumulated {name}"))
        optimizer.register_step_pre_hook(lambda *_: events.append("before step"))
        optimizer.register_step_post_hook(lambda *_: events.append("after step"))
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        with watch(model, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                model(inputs).pow(2).mean().backward()
                optimizer.step()
        return events

    assert_identical(train, tmp_path / "run")


def test_hooks_on_inner_tensors_fire_as_often(tmp_path: Path) -> None:
    """They can be found on no parameter and on no module."""

    def train(watch: Watch) -> Any:
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        optimizer = SGD(model.parameters(), lr=0.1)
        events: list[Tensor] = []
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        with watch(model, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                hidden = model[1](model[0](inputs))
                hidden.register_hook(lambda grad: events.append(grad.clone()))
                model[2](hidden).pow(2).mean().backward()
                optimizer.step()
        return events

    assert_identical(train, tmp_path / "run")


def test_gradient_scaled_by_a_parameter_hook(tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        model = dropout_and_batch_norm()
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: grad * 0.5)
        optimizer = SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer):
            for inputs, targets in batches(4):
                optimizer.zero_grad()
                classify(model, inputs, targets).backward()
                optimizer.step()

    assert_identical(train, tmp_path / "run")


def test_optimizer_in_backward(tmp_path: Path) -> None:
    """One optimizer a parameter, stepped from its accumulation hook: the gradient is gone when backward returns."""

    def train(watch: Watch) -> None:
        model = dropout_and_batch_norm()
        optimizers = {parameter: SGD([parameter], lr=0.05) for parameter in model.parameters()}

        def step(parameter: Tensor) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        with watch(model, list(optimizers.values())):
            for inputs, targets in batches(4):
                classify(model, inputs, targets).backward()

    assert_identical(train, tmp_path / "run")


def test_random_numbers_of_all_generators(tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        model = dropout_and_batch_norm()
        optimizer = Adam(model.parameters(), lr=0.01)
        inputs, targets = next(batches(1, 64))
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)  # from the global generator
        drawn = []
        with watch(model, optimizer):
            for _ in range(2):
                for some, labels in loader:
                    scale = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
                    optimizer.zero_grad()
                    F.cross_entropy(model(some * scale), labels).backward()
                    optimizer.step()
                    drawn.append((random.random(), float(np.random.rand()), torch.rand(2)))
        return drawn

    assert_identical(train, tmp_path / "run")


def test_graph_of_the_user_is_freed_as_ever(tmp_path: Path) -> None:
    """A second backward through the freed graph fails, and with retain_graph it works, watched or not."""

    def train(watch: Watch) -> Any:
        model = dropout_and_batch_norm()
        optimizer = SGD(model.parameters(), lr=0.05)
        messages = []
        with watch(model, optimizer):
            for step, (inputs, targets) in enumerate(batches(4)):
                optimizer.zero_grad()
                loss = classify(model, inputs, targets)
                loss.backward(retain_graph=step % 2 == 0)
                try:
                    loss.backward()
                except RuntimeError as error:
                    messages.append(str(error))
                optimizer.step()
        return messages

    assert_identical(train, tmp_path / "run")


def test_gradient_penalty_and_own_grad_calls(tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        model = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))
        optimizer = Adam(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        seen = []
        with watch(model, optimizer):
            for _ in range(4):
                x = torch.randn(5, 6, generator=generator, requires_grad=True)
                optimizer.zero_grad()
                (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
                (model(x).mean() + (slope.norm(dim=1) - 1).pow(2).mean()).backward()
                optimizer.step()
                seen.append((slope.detach(), x.grad))
        return seen

    assert_identical(train, tmp_path / "run")


def test_anomaly_detection(tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        with torch.autograd.set_detect_anomaly(True):
            return simple(watch)

    assert_identical(train, tmp_path / "run")


def test_a_backward_of_the_user_s_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else has replaced ``torch.autograd.backward``: theirs is called, and theirs is put back."""
    original, calls = torch.autograd.backward, []

    def counted(*args: Any, **kwargs: Any) -> None:
        calls.append(len(args))
        original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", counted)
    assert_identical(simple, tmp_path / "run")
    assert torch.autograd.backward is counted
    assert len(calls) == 8  # four steps, plain and watched


# ------------------------------------------------------------------------------------------- unusual numbers and callers


def regress(watch: Watch, model: nn.Module, call: Callable[..., Tensor] | None = None, **data: Any) -> None:
    """Three steps of a small regression on random numbers."""
    optimizer = SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(4)
    with watch(model, optimizer):
        for _ in range(3):
            x = torch.randn(data.get("size", 8), 6, generator=generator).to(data.get("dtype", torch.float32)) * data.get(
                "scale", 1.0
            )
            optimizer.zero_grad()
            (call or model)(x).abs().pow(2).mean().backward()
            optimizer.step()


def tanh_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    run = assert_identical(lambda watch: regress(watch, tanh_net().to(dtype), dtype=dtype), tmp_path / "run")
    assert list(run.series("grad_norm")[0]) == [0, 1, 2]


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, 1e30])
def test_numbers_that_are_none(scale: float, tmp_path: Path) -> None:
    run = assert_identical(lambda watch: regress(watch, nn.Linear(6, 2), scale=scale), tmp_path / "run")
    assert list(run.series("loss")[0]) == [0, 1, 2]
    assert np.isfinite(run.series("loss")[1]).all() == (scale == 0.0)


@pytest.mark.parametrize("size", [0, 1])
def test_batches_without_a_variance(size: int, tmp_path: Path) -> None:
    run = assert_identical(lambda watch: regress(watch, tanh_net(), size=size), tmp_path / "run")
    assert "norm_test" not in run.names
    assert run.not_measured["norm_test"]


def test_an_empty_batch_among_others_switches_nothing_off(tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        model = tanh_net()
        optimizer = SGD(model.parameters(), lr=0.05)
        with watch(model, optimizer):
            for samples in (4, 0, 4):
                optimizer.zero_grad()
                model(torch.ones(samples, 6)).square().sum().backward()  # of none it is 0, where a mean is not a number
                optimizer.step()

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("loss")[1] > 0) == [True, False, True]
    assert not [reason for reason in run.not_measured.values() if "Error" in reason]


def test_complex_parameters(tmp_path: Path) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 6, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.cfloat) @ self.weight.T

    assert_identical(lambda watch: regress(watch, Complex()), tmp_path / "run")


def test_functional_call_and_vmap(tmp_path: Path) -> None:
    def train(how: str, watch: Watch) -> None:
        model = tanh_net()
        functional = partial(torch.func.functional_call, model, dict(model.named_parameters()))
        regress(watch, model, functional if how == "functional" else torch.func.vmap(model))

    for how in ("functional", "vmap"):
        run = assert_identical(partial(train, how), tmp_path / how)
        assert list(run.series("grad_norm")[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    "watched",
    [
        pytest.param("model", marks=gap(reason="PyTorch warns of global hooks where a compiled copy of the model is called")),
        "compiled",
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model(watched: str, warm: bool, tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        torch._dynamo.reset()
        model = tanh_net()
        compiled = torch.compile(model, backend="aot_eager")
        if warm:
            compiled(torch.zeros(8, 6))
        regress(watch, model if watched == "model" else compiled, compiled)

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("loss")[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    "moment",
    ["before backward", "within backward"],
)
def test_another_thread_trains_another_model(moment: str, tmp_path: Path) -> None:
    other = tanh_net()

    def work(*_: Tensor) -> None:
        thread = threading.Thread(target=lambda: other(torch.ones(4, 6)).sum().backward())
        thread.start()
        thread.join()

    def train(watch: Watch) -> None:
        model = tanh_net()

        def call(x: Tensor) -> Tensor:
            outputs = model(x)
            work() if moment == "before backward" else outputs.register_hook(work)
            return outputs

        regress(watch, model, call)

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("grad_norm")[0]) == [0, 1, 2]


def test_two_trainings_at_the_same_time_in_two_threads(tmp_path: Path) -> None:
    def train(watch: Watch) -> Any:
        models, errors = [tanh_net() for _ in range(2)], []
        ready = threading.Barrier(2)

        def work(model: nn.Module, seed: int) -> None:
            try:
                optimizer = SGD(model.parameters(), lr=0.01)
                generator = torch.Generator().manual_seed(seed)
                with watch(model, optimizer):
                    ready.wait()
                    for _ in range(8):
                        optimizer.zero_grad()
                        model(torch.randn(8, 6, generator=generator)).pow(2).mean().backward()
                        optimizer.step()
                    ready.wait()
            except BaseException as error:
                errors.append(repr(error))
                ready.abort()

        threads = [threading.Thread(target=work, args=(model, seed)) for seed, model in enumerate(models)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [[parameter.detach() for parameter in model.parameters()] for model in models], errors

    options = {"instruments": ["light", "norm_test", "max_eigenvalue", "tangent_kernel"], "budget": None}
    plain, watched = outcome(train, None, 0), outcome(train, CockpitFactory(tmp_path / "run", False, options), 0)
    for part in ("returned", "raised", "generators", "process"):  # the order of the models is by chance
        assert list(compare(plain.observed[part], watched.observed[part])) == []
    assert load_run(tmp_path / "run").series("loss")[0].tolist() == list(range(8))


# ------------------------------------------------------------------------------------------------------------ exceptions


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("failed in backward")


class Failing(nn.Module):
    """Raises ``error`` at the third forward pass, or in the backward pass that follows."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.error, self.calls = error, 0
        self.linear = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            if self.error is not None:
                raise self.error
            return self.linear(FailingBackward.apply(x.flatten(1).requires_grad_()))
        return self.linear(x.flatten(1))


def exceptions() -> list[BaseException]:
    chained = RuntimeError("with a cause", 3)
    chained.__cause__ = KeyError("the cause")
    return [RuntimeError("out of memory"), chained, KeyboardInterrupt(), SystemExit(3), StopIteration("end"), GeneratorExit()]


@pytest.mark.parametrize("error", exceptions(), ids=lambda error: type(error).__name__)
def test_exceptions_pass_through_unchanged(error: BaseException, tmp_path: Path) -> None:
    model = Failing(error)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(type(error)) as caught, cockpit(model, optimizer, run=tmp_path / "run", **EVERYTHING):
        for inputs, targets in batches(5):
            optimizer.zero_grad()
            classify(model, inputs, targets).backward()
            optimizer.step()
    assert caught.value is error
    assert error.__context__ is None
    innermost = caught.traceback[-1]
    assert innermost.name == "forward"  # the traceback ends where the user's code raised


@pytest.mark.parametrize(
    "error", [RuntimeError("in forward"), KeyboardInterrupt(), None], ids=["forward", "interrupt", "backward"]
)
@pytest.mark.parametrize("handled", ["inside", "outside", "not"])
def test_everything_is_put_back_after_an_exception(error: BaseException | None, handled: str, tmp_path: Path) -> None:
    """... also where the user catches it and goes on with the next batch."""

    def train(watch: Watch) -> None:
        model = Failing(copy.copy(error))
        optimizer = Adam(model.parameters(), lr=0.01)
        outside = contextlib.suppress(BaseException) if handled == "outside" else contextlib.nullcontext()
        with outside, watch(model, optimizer):
            for inputs, targets in batches(6):
                with contextlib.suppress(BaseException) if handled == "inside" else contextlib.nullcontext():
                    optimizer.zero_grad()
                    classify(model, inputs, targets).backward()
                    optimizer.step()

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("loss")[0]) == list(range(5 if handled == "inside" else 2))


@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if case.closure], ids=lambda case: case.name)
def test_an_exception_in_a_closure(case: OptimizerCase, tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        model = Failing(ZeroDivisionError("in the closure"))
        optimizer = case.factory(model)
        with watch(model, optimizer):
            for inputs, targets in batches(4):
                case.step(optimizer, partial(classify, model, inputs, targets))

    assert_identical(train, tmp_path / "run")


# ----------------------------------------------------------------------------------------------- several at once, again


def test_one_cockpit_after_the_other(tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        model = dropout_and_batch_norm()
        optimizer = SGD(model.parameters(), lr=0.05)
        for _ in range(2):
            with watch(model, optimizer):
                for inputs, targets in batches(3):
                    optimizer.zero_grad()
                    classify(model, inputs, targets).backward()
                    optimizer.step()

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("loss")[0]) == [0, 1, 2]


def test_two_cockpits_on_one_model(tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        model = dropout_and_batch_norm()
        optimizer = SGD(model.parameters(), lr=0.05)
        with watch(model, optimizer):
            for step, (inputs, targets) in enumerate(batches(6)):
                with watch(model, optimizer) if step == 2 else contextlib.nullcontext():
                    optimizer.zero_grad()
                    classify(model, inputs, targets).backward()
                    optimizer.step()

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("grad_norm")[0]) == list(range(6))


def test_two_models_side_by_side_left_in_any_order(tmp_path: Path) -> None:
    def train(watch: Watch) -> None:
        models = [dropout_and_batch_norm(), dropout_and_batch_norm()]
        optimizers = [SGD(model.parameters(), lr=0.05) for model in models]
        first, second = (watch(model, optimizer) for model, optimizer in zip(models, optimizers, strict=True))
        first.__enter__()
        second.__enter__()
        for step, (inputs, targets) in enumerate(batches(6)):
            if step == 4:
                first.__exit__(None, None, None)  # the one that came first leaves first
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                classify(model, inputs, targets).backward()
                optimizer.step()
        second.__exit__(None, None, None)

    run = assert_identical(train, tmp_path / "run")
    assert list(run.series("loss")[0]) == [0, 1, 2, 3]
    other = load_run(tmp_path / "run-2")
    assert list(other.series("loss")[0]) == [0, 1, 2, 3, 4, 5]
    assert run.series("grad_norm")[1][0] != other.series("grad_norm")[1][0]  # each recorded its own model
