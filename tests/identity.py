"""The promise "watching changes nothing", as one assertion.

A training function is run twice from the same seeds, once plain and once watched::

    def train(watch):
        model = Net()
        optimizer = SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer) as cockpit:
            ...
        return losses

    run = assert_identical(train, tmp_path / "run")

Whatever can be observed afterwards must agree bit for bit: what the function returned or raised, warnings, weights,
buffers, gradients, optimizer state, random number generators, hooks, attributes, modes, and the global functions that a
cockpit intercepts.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # else the first optimizer imports it, which changes the environment and the warning filters
from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite import Cockpit, Every, load_run
from cockpit_lite.run import Run

#: Everything on, at every step.
EVERYTHING: Mapping[str, Any] = {"instruments": "full", "schedule": Every(1), "budget": None}


class Unwatched:
    """What ``with watch(...) as cockpit`` gives in the plain run."""

    def log(self, **values: Any) -> None:
        """Do nothing."""


Watch = Callable[..., Any]
Train = Callable[[Watch], Any]


@dataclass
class Outcome:
    """What is left after a training function ended, as plain comparable values."""

    observed: dict[str, Any]
    exception: BaseException | None


def cockpit(model: nn.Module, optimizer: Any, *arguments: Any, report: bool = False, **options: Any) -> Cockpit:
    """Return a Cockpit without the report at the end: its pictures take longer than most tests, and have their own."""
    made = Cockpit(model, optimizer, *arguments, **options)
    if not report:
        made._write_results = lambda: None  # type: ignore[method-assign]
    return made


def assert_identical(
    train: Train, run: Path, cockpit_options: Mapping[str, Any] | None = None, *, seed: int = 0, report: bool = False
) -> Run:
    """Run ``train`` plain and watched, and require the same outcome, bit for bit.

    Args:
        train: Calls ``watch(model, optimizer)`` for its ``with`` block, and may do so more than once.
        run: Folder of the run; a second cockpit's is beside it, with "-2" behind its name.
        cockpit_options: Arguments of Cockpit; left out: :data:`EVERYTHING`.
        seed: Of Python's, numpy's and torch's generators.
        report: Whether to write the report at the end too.

    Returns:
        The recorded (first) run, so that a test can check that something was measured at all.
    """
    plain = outcome(train, None, seed)
    watched = outcome(train, CockpitFactory(run, report, EVERYTHING if cockpit_options is None else cockpit_options), seed)
    differences = list(compare(plain.observed, watched.observed))
    assert not differences, "watching changed the training:\n" + "\n".join(differences[:20])
    return load_run(run)


class CockpitFactory:
    """Makes cockpits with a run folder each: ``run``, ``run-2`` and so on."""

    def __init__(self, run: Path, report: bool, options: Mapping[str, Any]) -> None:
        self.run, self.report, self.options, self.count = run, report, options, 0

    def __call__(self, model: nn.Module, optimizer: Any, *arguments: Any) -> Cockpit:
        self.count += 1
        folder = self.run if self.count == 1 else self.run.with_name(f"{self.run.name}-{self.count}")
        return cockpit(model, optimizer, *arguments, report=self.report, run=folder, **self.options)


def outcome(train: Train, cockpit_for: Callable[..., Cockpit] | None, seed: int) -> Outcome:
    """Run ``train`` and describe everything that it left behind."""
    watched: list[tuple[nn.Module, list[Optimizer]]] = []

    @contextmanager
    def watch(model: nn.Module, optimizer: Any, *arguments: Any) -> Iterator[Any]:
        watched.append((model, list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]))
        if cockpit_for is None:
            yield Unwatched()
        else:
            with cockpit_for(model, optimizer, *arguments) as watching:
                yield watching

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else a warning that torch gives once a process is missing from the second run
    returned, exception = None, None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            before = process_state()
            threads = set(threading.enumerate())
            try:
                returned = train(watch)
            except BaseException as error:
                exception = error
            after = process_state()
            # Those that began with the training: one that an earlier test left behind may end at any time.
            left = sorted(thread.name for thread in set(threading.enumerate()) - threads)
    finally:
        torch.set_warn_always(always)
    assert watched or exception is not None, "the training function watched nothing"
    observed = {
        "returned": returned,
        "raised": describe_exception(exception),
        "warnings": [(type(w.message).__name__, str(w.message)) for w in caught],
        "generators": {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        "process": {key: "put back" if value == before[key] else (before[key], value) for key, value in after.items()},
        "threads left": left,
        "models": [model_state(model) for model, _ in watched],
        "optimizers": [optimizer_state(optimizer) for _, optimizers in watched for optimizer in optimizers],
    }
    return Outcome(observed, exception)


def process_state() -> dict[str, Any]:
    """Return what a cockpit may intercept or switch while it runs, and must put back."""
    hooks = torch.nn.modules.module
    optimizer_hooks = sys.modules[Optimizer.__module__]  # torch.optim does not offer it as an attribute
    return {
        "torch.autograd.backward": torch.autograd.backward,
        "torch.autograd.grad": torch.autograd.grad,
        "Tensor.backward": torch.Tensor.backward,
        "Tensor.__setattr__": torch.Tensor.__setattr__,
        "Module.__call__": nn.Module.__call__,
        "Module._call_impl": nn.Module._call_impl,
        "Optimizer.step": Optimizer.step,
        "optimizer hooks": describe_hooks(optimizer_hooks._global_optimizer_pre_hooks)
        + describe_hooks(optimizer_hooks._global_optimizer_post_hooks),
        "module hooks": {
            name: describe_hooks(getattr(hooks, name))
            for name in sorted(vars(hooks))
            if name.startswith("_global_") and name.endswith("hooks")
        },
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "math attention": torch.backends.cuda.math_sdp_enabled(),
        "fused attention": torch.backends.cuda.flash_sdp_enabled(),
        "signal handler": signal.getsignal(signal.SIGINT),
        "exception hook": sys.excepthook,
        "tracer": sys.gettrace(),
        "working directory": os.getcwd(),
        "environment": dict(os.environ),
        "warning filters": list(warnings.filters),
    }


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return everything that a user can see of a model."""
    state_dict = model.state_dict()
    return {
        "state_dict": dict(state_dict),
        "state_dict keys": list(state_dict),
        "parameters": dict(model.named_parameters()),
        "buffers": dict(model.named_buffers()),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "modules": {name: module_state(module) for name, module in model.named_modules()},
        "tensors": {name: tensor_attributes(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())},
    }


def module_state(module: nn.Module) -> dict[str, Any]:
    """Return a module's mode, class, attribute names and hooks."""
    hooks = {
        key: describe_hooks(value) for key, value in vars(module).items() if key.endswith("_hooks") and isinstance(value, dict)
    }
    return {
        "class": type(module).__qualname__,  # parametrized modules have a class each
        "training": module.training,
        "attributes": sorted(vars(module)),
        "hooks": hooks,
        "forward": module.forward.__qualname__ if hasattr(module.forward, "__qualname__") else repr(type(module.forward)),
    }


def tensor_attributes(tensor: Tensor) -> dict[str, Any]:
    """Return what can be hung on a tensor."""
    return {
        "attributes": sorted(vars(tensor)),
        "class": type(tensor),
        "requires_grad": tensor.requires_grad,
        "hooks": describe_hooks(tensor._backward_hooks),
        "accumulation hooks": describe_hooks(tensor._post_accumulate_grad_hooks),
    }


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state, options, attribute names and hooks."""
    hooks = {
        key: describe_hooks(value) for key, value in vars(optimizer).items() if key.endswith("_hooks") and isinstance(value, dict)
    }
    return {
        "state": optimizer.state_dict(),
        "attributes": sorted(vars(optimizer)),
        "hooks": hooks,
        "step": optimizer.step.__qualname__,
    }


def describe_hooks(hooks: Mapping[int, Any] | None) -> list[str]:
    """Return the hooks' names in order; handles are numbered through the process and differ from run to run."""
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in (hooks or {}).values()]


def describe_exception(error: BaseException | None) -> Any:
    """Return what a user sees of an exception, its causes included."""
    if error is None:
        return None
    notes = list(getattr(error, "__notes__", ()))
    return (
        type(error),
        error.args,
        notes,
        error.__suppress_context__,
        describe_exception(error.__cause__),
        describe_exception(error.__context__),
    )


def compare(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield a line for every difference; tensors and arrays are compared by their bits, so NaN equals the same NaN."""
    if type(expected) is not type(found):
        yield f"{path}: {type(expected).__name__} {expected!r:.80} became {type(found).__name__} {found!r:.80}"
    elif isinstance(expected, Tensor):
        if (expected.dtype, expected.shape, expected.layout) != (found.dtype, found.shape, found.layout):
            yield f"{path}: {expected.dtype} {tuple(expected.shape)} became {found.dtype} {tuple(found.shape)}"
        elif _bits(expected) != _bits(found):
            yield f"{path}: values differ by up to {(expected.detach() - found.detach()).abs().max().item():.3g}"
    elif isinstance(expected, np.ndarray):
        if expected.dtype != found.dtype or expected.tobytes() != found.tobytes():
            yield f"{path}: arrays differ"
    elif isinstance(expected, Mapping):
        if list(expected) != list(found):
            yield f"{path}: keys {list(expected)!r:.300} became {list(found)!r:.300}"
        else:
            for key in expected:
                yield from compare(expected[key], found[key], f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            yield f"{path}: {expected!r:.300} became {found!r:.300}"
        else:
            for index, (one, other) in enumerate(zip(expected, found, strict=True)):
                yield from compare(one, other, f"{path}/{index}")
    elif isinstance(expected, float):
        if expected.hex() != found.hex():
            yield f"{path}: {expected!r} became {found!r}"
    elif expected is not found and expected != found:
        yield f"{path}: {expected!r:.200} became {found!r:.200}"


def _bits(tensor: Tensor) -> bytes:
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
