"""Checks that try something out on a copy of the model: what no look at a training step can tell."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Adam
from torch.utils._pytree import tree_map

from cockpit_lite.preflight.result import Check
from cockpit_lite.probes.per_sample.calls import tensors_in

#: The loss of a model on a batch.
Objective = Callable[[nn.Module, Any], Tensor]

#: Relative difference between backward and differences above which one of them is wrong.
_GRADIENT_TOLERANCE = 1e-4
_DIRECTIONS = 3
#: Samples that must be learnt by heart, steps and seconds for it, and what must be left of the loss.
_SAMPLES = 8
_STEPS = 300
_SECONDS = 20.0
_LEFT = 0.2


def batch_size(batch: Any) -> int | None:
    """Return the number of samples: the length of the first tensor that has one."""
    return next((tensor.shape[0] for tensor in tensors_in(batch) if tensor.dim()), None)


def first_samples(batch: Any, count: int) -> Any:
    """Return the batch with its first samples only."""
    size = batch_size(batch)
    return tree_map(
        lambda leaf: leaf[:count] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf, batch
    )


def in_double(batch: Any) -> Any:
    """Return the batch with its floating point tensors in double precision."""
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, batch)


def without_dropout(model: nn.Module) -> nn.Module:
    """Return the model, a copy, with dropout switched off and everything else in its mode."""
    for module in model.modules():
        if isinstance(module, _DropoutNd) or (hasattr(module, "dropout") and isinstance(module.dropout, float)):
            module.eval()
    return model


def check_leaks(model: nn.Module, inputs: Sequence[Any], size: int) -> Check:
    """Change one sample and look whether the outputs of the others stay as they are."""
    name = "samples stay apart"
    model = copy.deepcopy(model).eval()
    tensors = [value for value in tensors_in(inputs) if value.dim() and value.shape[0] == size]
    if size < 3 or not tensors:
        return Check(name, "not checked", "the batch has fewer than 3 samples, or the model is given no tensor of it")
    changed = tree_map(lambda leaf: _with_another_first(leaf, size), list(inputs))
    with torch.no_grad():
        before, after = tensors_in(model(*inputs)), tensors_in(model(*changed))
    pairs = [(one, two) for one, two in zip(before, after, strict=True) if one.dim() and one.shape[0] == size]
    if not pairs:
        return Check(name, "not checked", "the output does not carry the samples on its first axis")
    # The same samples in another company: kernels may round differently, by far less than this.
    moved = max(float((one[1:] - two[1:]).abs().max() / one[1:].abs().max().clamp(min=1e-12)) for one, two in pairs)
    if moved > 1e-3:
        return Check(
            name,
            "failed",
            f"changing sample 0 moves the outputs of the others by {moved:.1%} of the largest, in eval mode: something mixes the "
            "samples, a reshape that swaps axes or a mean over the batch",
        )
    return Check(name, "passed", "changing sample 0 leaves the outputs of the others as they are (eval mode)")


def _with_another_first(leaf: Any, size: int) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != size:
        return leaf
    return torch.cat([leaf[size - 1 :], leaf[1:]])


def check_backward(model: nn.Module, batch: Any, loss: Objective, generator: torch.Generator) -> Check:
    """Compare backward with central differences of the loss along random directions, in float64."""
    name = "backward agrees with differences"
    model = without_dropout(copy.deepcopy(model).double())
    batch = in_double(batch)

    def repeated(model: nn.Module, batch: Any) -> Tensor:
        torch.manual_seed(0)  # a forward that draws random numbers draws the same ones
        return loss(model, batch)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(repeated(model, batch), parameters, allow_unused=True)
    worst = 0.0
    for _ in range(_DIRECTIONS):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters]
        _leave_padding(model, parameters, direction)
        # Along the gradient as well, so that the slope is not a small difference of large terms.
        direction = [
            d + (0 if g is None else g * (d.norm() / g.norm().clamp(min=1e-30)))
            for d, g in zip(direction, gradients, strict=True)
        ]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
        size = sum(float(p.detach().square().sum()) for p in parameters) ** 0.5
        length = 1e-7 * max(size, 1e-3) / sum(float(d.square().sum()) for d in direction) ** 0.5
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, way in zip(parameters, direction, strict=True):
                    parameter.add_(way, alpha=sign * length)
            # With gradients: without them some modules take another, fused path.
            values.append(float(repeated(model, batch).detach()))
        with torch.no_grad():
            for parameter, way in zip(parameters, direction, strict=True):
                parameter.add_(way, alpha=length)
        found = (values[0] - values[1]) / (2 * length)
        worst = max(worst, abs(found - slope) / max(abs(slope), abs(found), 1e-300))
    if worst > _GRADIENT_TOLERANCE:
        return Check(
            name,
            "failed",
            f"they differ by {worst:.1g} of the slope: a custom backward is wrong, a part is detached, or the forward draws "
            "random "
            "numbers",
        )
    return Check(name, "passed", f"to {worst:.1g} of the slope, along {_DIRECTIONS} random directions in float64")


def _leave_padding(model: nn.Module, parameters: Sequence[nn.Parameter], direction: Sequence[Tensor]) -> None:
    """Do not move along the rows of padding, whose gradient torch leaves out on purpose."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None and id(module.weight) in places:
            direction[places[id(module.weight)]][module.padding_idx] = 0


def check_fit(model: nn.Module, batch: Any, loss: Objective) -> Check:
    """Learn a few samples by heart: a model that cannot has a fault, whatever the data."""
    name = "can fit one small batch"
    model = without_dropout(copy.deepcopy(model))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    batch = first_samples(batch, _SAMPLES)
    first = last = float(loss(model, batch))
    until = time.monotonic() + _SECONDS
    # Which learning rate suits is not the question here: two are tried.
    for rate in (1e-2, 1e-3):
        trial = copy.deepcopy(model)
        optimizer = Adam(trial.parameters(), lr=rate)
        for step in range(_STEPS):
            optimizer.zero_grad()
            value = loss(trial, batch)
            value.backward()
            optimizer.step()
            last = float(value)
            if last < _LEFT * abs(first):
                return Check(
                    name, "passed", f"the loss of {_SAMPLES} samples fell from {first:.3g} to {last:.3g} in {step + 1} steps"
                )
            if time.monotonic() > until:
                return Check(
                    name, "not checked", f"it took longer than {_SECONDS:.0f} s: the loss fell from {first:.3g} to {last:.3g}"
                )
    return Check(
        name,
        "failed",
        f"after {_STEPS} steps of Adam the loss of {_SAMPLES} samples is {last:.3g}, it began at {first:.3g}: the model cannot "
        "use its "
        "inputs (a cut graph, a wrong loss, an output that is bounded), or the loss has a floor",
    )
