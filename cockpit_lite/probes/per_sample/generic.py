"""The generic rule: per-sample gradients of any parameter through any call, by ``vmap`` over the ``vjp`` of the call itself.

The call is repeated on a shadow of the module, one sample at a time in one vectorised pass: without hooks, without writing to the
user's buffers, without drawing random numbers. What it returns is compared with what the user's call returned, so a call that
cannot be repeated sample by sample (noise, batch statistics, samples that interact) is found out, not trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from cockpit_lite.probes.per_sample.calls import Call, tensors_in
from cockpit_lite.probes.per_sample.forms import CHUNK, Dense
from cockpit_lite.probes.per_sample.owners import Layout
from cockpit_lite.probes.per_sample.rules.rule import NoRule
from cockpit_lite.probes.per_sample.shadow import shadow_tree

#: Greatest difference of the repeated call from the user's, relative to its largest value.
REPEATED = {torch.float64: 1e-9, torch.float32: 1e-3}
REPEATED_HALF_PRECISION = 5e-2
#: At most so many arguments may look like a batch without anybody knowing.
AMBIGUOUS = 3


def generic_forms(call: Call, parameters: Mapping[str, nn.Parameter], layout: Layout, batch_size: int) -> dict[str, Dense]:
    """Return name -> per-sample gradients through this call.

    Args:
        call: The call, with its output gradients.
        parameters: Dotted name in the module -> parameter; it may belong to a child.
        layout: Where the samples are in the output.
        batch_size: Number of samples.

    Raises:
        NoRule: if the call cannot be repeated sample by sample; the message is the reason.
    """
    kind = type(call.module).__name__
    if call.overwritten:
        raise NoRule(f"the input of {kind} was changed in place after its call")
    axis = max(layout.axis, 0)
    count = call.outputs[0].shape[axis]
    leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    copy = shadow_tree(call.module)
    deltas = [
        torch.zeros_like(output) if delta is None else delta for output, delta in zip(call.outputs, call.deltas, strict=True)
    ]
    output_axes = [_axis(output, axis, count) for output in call.outputs]
    if None in output_axes:
        raise NoRule(f"not all outputs of {kind} carry the batch")
    differentiable = [output.is_floating_point() for output in call.outputs]
    elements = sum(value.numel() for value in values.values())

    def one_sample(chosen: Sequence[Tensor], cotangents: Sequence[Tensor], axes: Sequence[int]) -> tuple[Any, ...]:
        arguments = list(leaves)
        for position, sample, at in zip(positions, chosen, axes, strict=True):
            arguments[position] = sample.unsqueeze(at)

        def forward(replaced: dict[str, Tensor]) -> tuple[Tensor, ...]:
            args, kwargs = tree_unflatten(arguments, structure)
            outputs = tensors_in(functional_call(copy, replaced, args, kwargs))
            return tuple(output.squeeze(at) for output, at in zip(outputs, output_axes, strict=True) if at is not None)

        outputs, backward = vjp(forward, values)
        return outputs, backward(tuple(cotangents))[0]

    reason = f"{kind}'s call is not the same for one sample alone"
    for candidate in _batch_arguments(leaves, axis, count):
        positions = [position for position, _ in candidate]
        axes = [at for _, at in candidate]
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # vmap says when it is slow, and a forward what it said before
                outputs, gradients = vmap(
                    lambda chosen, cotangents, axes=axes: one_sample(chosen, cotangents, axes),
                    in_dims=(axes, output_axes),
                    randomness="error",
                    chunk_size=max(1, CHUNK // max(1, elements)),
                )([leaves[position] for position in positions], deltas)
        except Exception as error:  # whatever a user's forward may raise on one sample
            reason = _explain(kind, error)
            continue
        same = all(
            _close(found, output.movedim(at, 0), shape_only=call.outputs_overwritten)
            for found, output, at, real in zip(outputs, call.outputs, output_axes, differentiable, strict=True)
            if real and at is not None
        )
        if same:
            forms = {name: Dense(gradient.detach()) for name, gradient in gradients.items()}
            if layout.owners is not None:
                forms = {name: form.fold(layout.owners, batch_size) for name, form in forms.items()}
            return forms
    raise NoRule(reason)


def _axis(tensor: Tensor, axis: int, count: int) -> int | None:
    """Return the axis of the samples: ``axis`` if it fits, else the first."""
    for candidate in (axis, 0):
        if tensor.dim() > candidate and tensor.shape[candidate] == count:
            return candidate
    return None


def _batch_arguments(leaves: Sequence[Any], axis: int, count: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the ways to say which arguments carry the samples, as (position, axis), the likeliest first."""
    options: list[tuple[int, list[int | None]]] = []
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            fitting = [at for at in dict.fromkeys((axis, 0)) if leaf.dim() > at and leaf.shape[at] == count]
            if fitting:
                options.append((position, [*fitting, None]))
    unsure = [index for index, (_, choices) in enumerate(options) if index > 0]
    for index in unsure[AMBIGUOUS:]:
        options[index] = (options[index][0], options[index][1][:1])
    if options:
        options[0] = (options[0][0], [at for at in options[0][1] if at is not None])
    for choice in product(*(choices for _, choices in options)):
        chosen = [(position, at) for (position, _), at in zip(options, choice, strict=True) if at is not None]
        if chosen:
            yield chosen


def _close(found: Tensor, expected: Tensor, shape_only: bool) -> bool:
    if found.shape != expected.shape or shape_only:
        return found.shape == expected.shape
    tolerance = REPEATED.get(expected.dtype, REPEATED_HALF_PRECISION)
    scale = expected.abs().max() if expected.numel() else torch.zeros(())
    difference = (found.detach() - expected).abs().nan_to_num()
    return not bool((difference > tolerance * scale.nan_to_num(posinf=0.0)).any())


def _explain(kind: str, error: Exception) -> str:
    message = str(error)
    if "randomness" in message:
        return f"{kind} draws random numbers in its forward"
    if "in-place" in message or "inplace" in message:
        return f"{kind} changes a buffer in its forward"
    if "control flow" in message or ".item()" in message:
        return f"{kind}'s forward depends on the values of its tensors"
    return f"{kind} cannot be called with one sample ({type(error).__name__})"
