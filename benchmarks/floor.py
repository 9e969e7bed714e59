"""What the first-order instruments of an MLP cost at the least: their long operations by themselves, and a count of all of them.

The operations on the factors of the per-sample gradients, and those on vectors as long as all weights, are timed one after the
other with the sizes of the net, without hooks, checks, readings or log around them. How many operations a step takes beyond those
of a plain one is counted as torch dispatches them, and what one takes that has next to nothing to do is timed, too. What is left
of a measured step is Python: hooks, the graph of the loss, instruments, rules and the line of the log.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cockpit_lite.norms import difference_norm, parameter_norms
from cockpit_lite.packed import difference, packed
from cockpit_lite.probes.last_step import inner_product
from cockpit_lite.probes.noise import damped_ratios
from cockpit_lite.probes.per_sample.forms.outer_products import products_with_sum, sum_is_quick
from cockpit_lite.tracked_step import SLOPES

Work = Callable[[], Any]


class Counter(TorchDispatchMode):
    """Counts the operations that torch dispatches; ``count`` of them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Count one operation and call it."""
        self.count += 1
        return operation(*arguments, **(options or {}))


def operations(work: Work, times: int = 3) -> float:
    """Return how many operations it dispatches, in the mean of some calls."""
    with Counter() as counter:
        for _ in range(times):
            work()
    return counter.count / times


def long_operations(model: nn.Module, batch_size: int) -> dict[str, Work]:
    """Return what has to be done with matrices and long vectors, by name, of a net of linear layers with a row a sample."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    factors = [(torch.randn(batch_size, each.in_features), torch.randn(batch_size, each.out_features)) for each in layers]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradient = {name: torch.randn_like(value) for name, value in weights.items()}
    squares = {name: value.square() for name, value in gradient.items()}
    directions = [torch.randn_like(layer.weight) for layer in layers]
    first, every = packed(weights), max(1, batch_size // SLOPES)

    def products(inputs: Tensor, deltas: Tensor, direction: Tensor) -> Tensor:
        return (inputs @ direction.T).mul_(deltas).sum(1)

    def with_the_gradient(inputs: Tensor, deltas: Tensor, direction: Tensor) -> Tensor:
        return products_with_sum(inputs, deltas) if sum_is_quick(inputs, deltas) else products(inputs, deltas, direction)

    def along_the_update() -> tuple[Tensor, ...]:
        before = packed(weights)
        update = difference(weights, before)
        every_norm = [*parameter_norms(update).values(), *parameter_norms(before).values(), difference_norm(before, first)]
        return *every_norm, inner_product(update, gradient), inner_product(gradient, update)

    return {
        "norms of the samples": lambda: [torch.linalg.vector_norm(side, dim=-1) for pair in factors for side in pair],
        "sums of squares": lambda: [d.square().T @ a.square() for a, d in factors],
        "inner products with the gradient": lambda: [with_the_gradient(*f, v) for f, v in zip(factors, directions, strict=True)],
        "inner products with the last step, of some samples": lambda: [
            products(a[::every], d[::every], v) for (a, d), v in zip(factors, directions, strict=True)
        ],
        "check against the gradient": lambda: [
            (a @ v[0], d @ v[:, 0], v @ a[0]) for (a, d), v in zip(factors, directions, strict=True)
        ],
        "signal over noise of the weight matrices": lambda: [
            damped_ratios(gradient[name], squares[name], batch_size) for name, value in gradient.items() if value.dim() > 1
        ],
        "norm of the gradient": lambda: parameter_norms(gradient),
        "weights before the step, update and distance: copies, norms and slopes": along_the_update,
    }


def short_operations(count: int) -> Work:
    """Return so many operations that have next to nothing to do."""
    values = torch.zeros(128)

    def work() -> None:
        for _ in range(count):
            values.mul(2.0)

    return work


def shares(works: Mapping[str, Work], plain: Work, rounds: int = 200) -> dict[str, float]:
    """Return the median time of each over that of a plain step; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    base: list[float] = []
    for _ in range(rounds):
        base.append(_seconds(plain))
        for name, work in works.items():
            times[name].append(_seconds(work))
    return {name: statistics.median(a / b for a, b in zip(found, base, strict=True)) for name, found in times.items()}


def account(model: nn.Module, batch_size: int, plain: Work, measured: Work, rounds: int = 200) -> list[list[str]]:
    """Return the rows of a table: what a measured step takes beyond a plain one that cannot be left out, in plain steps.

    Args:
        model: An MLP.
        batch_size: Number of samples.
        plain: A plain step.
        measured: A step that all first-order instruments measure.
        rounds: How often everything is timed.
    """
    long = long_operations(model, batch_size)
    more = operations(measured) - operations(plain)
    short = max(round(more - sum(operations(work, 1) for work in long.values())), 1)
    found = shares(
        {**long, f"{short} operations on a few numbers each, one after the other": short_operations(short)}, plain, rounds
    )
    return [[name, f"{share:.2f}"] for name, share in found.items()] + [["together", f"{sum(found.values()):.2f}"]]


def _seconds(work: Work) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
