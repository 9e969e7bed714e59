"""The one checker for every rule: a module, an input, and a loop over single samples in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics

Batch = Sequence[Tensor]


def watched(
    model: nn.Module,
    run: Callable[[], Tensor],
    products: bool = True,
    probe: PerSampleProbe | None = None,
    early: bool = False,
    one_backward: bool = False,
    directions: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> tuple[PerSampleStatistics, dict[str, Tensor]]:
    """Run one step under a probe, and return its statistics and the gradient.

    ``early``: squares, measured in the backward; ``one_backward``: products, too.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    probe = probe or PerSampleProbe(model, parameters)
    model.zero_grad()
    probe.start(products=not early, directions=directions, one_backward=one_backward)
    loss = run()
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    statistics = probe.statistics(products, gradient if products else None, gradient, squares=products or early)
    probe.stop()
    assert set(statistics.sum_of_squares) == (set(statistics.squared_norms) if products or early else set())
    assert set(statistics.squared_norms) | set(statistics.not_covered) == set(parameters)
    assert not set(statistics.squared_norms) & set(statistics.not_covered)
    return statistics, gradient


def first(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the first tensor of an output."""
    return output if isinstance(output, Tensor) else output[0]


def loop(model: nn.Module, inputs: Batch, axes: Sequence[int | None], axis: int, pick: Callable = first) -> dict[str, Tensor]:
    """Return the contributions of every sample to ``weighted``, one at a time, each (N, *shape)."""
    size = next(x.shape[a] for x, a in zip(inputs, axes, strict=True) if a is not None)
    cotangent = weights_of(pick(model(*inputs)))
    rows = []
    for n in range(size):
        model.zero_grad()
        alone = [x if a is None else x.narrow(a, n, 1) for x, a in zip(inputs, axes, strict=True)]
        (pick(model(*alone)) * cotangent.narrow(axis, n, 1)).sum().backward()
        rows.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()})
    return {name: torch.stack([row[name] for row in rows]) for name, p in model.named_parameters() if p.requires_grad}


def weights_of(output: Tensor) -> Tensor:
    """Return fixed random weights for an output."""
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(output.dtype)


def relative_error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Return the greatest difference over the greatest expected value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    largest = (expected if scale is None else scale).abs().max()
    return float((found.double() - expected.double()).abs().max() / largest.clamp(min=1e-30))


def check(
    module: nn.Module,
    *inputs: Tensor,
    axes: Sequence[int | None] | None = None,
    axis: int = 0,
    pick: Callable = first,
    prepare: Callable[..., Tensor] | None = None,
) -> PerSampleStatistics:
    """Compare squared norms and inner products of every parameter with the loop, in float64 and in float32.

    Args:
        module: In the mode that is wanted.
        inputs: Positional arguments.
        axes: Axis of each input that holds the samples; ``None``: the same for all.
        axis: Axis of the output that holds the samples.
        pick: Takes the tensor that the loss is made of from the output.
        prepare: Makes the loss from the model and the inputs instead; the loop still uses ``pick``.

    Returns:
        The statistics in float64.
    """
    axes = [0] * len(inputs) if axes is None else axes
    results = []
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = copy.deepcopy(module).to(dtype)
        batch = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        exact = copy.deepcopy(module).to(torch.float64)
        expected = loop(exact, [x.double() if x.is_floating_point() else x for x in inputs], axes, axis, pick)

        def run(model: nn.Module = model, batch: list[Tensor] = batch) -> Tensor:
            if prepare is not None:
                return prepare(model, *batch)
            output = pick(model(*batch))
            return (output * weights_of(output)).sum()

        statistics, gradient = watched(model, run)
        assert not statistics.not_covered, statistics.not_covered
        for name, contributions in expected.items():
            squares = contributions.flatten(1).square().sum(1) if contributions.dim() > 1 else contributions.square()
            total = contributions.sum(0)
            along = (contributions * total).reshape(len(contributions), -1).sum(1)
            assert relative_error(gradient[name], total) < tolerance * 10, f"{name}: the reference is another function"
            assert relative_error(statistics.squared_norms[name], squares) < tolerance, f"squared norms of {name}, {dtype}"
            scale = squares.sqrt() * total.norm()
            assert relative_error(statistics.products[name], along, scale) < tolerance, f"products of {name}, {dtype}"
            elements = contributions.square().sum(0)
            assert relative_error(statistics.sum_of_squares[name], elements) < tolerance, f"squares of {name}, {dtype}"
        results.append(statistics)
    return results[0]
