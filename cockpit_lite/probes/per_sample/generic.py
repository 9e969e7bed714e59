"""The generic rule: per-sample gradients of any parameter through any call, by ``vmap`` over the ``vjp`` of the call itself.

The call is repeated on a shadow of the module, one sample at a time in one vectorised pass: without hooks, without writing to the
user's buffers, without drawing random numbers. What it returns is compared with what the user's call returned, so a call that
cannot be repeated sample by sample (noise, batch statistics, samples that interact) is found out, not trusted.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from cockpit_lite.probes.per_sample.calls import Call, tensors_in
from cockpit_lite.probes.per_sample.forms import CHUNK, Dense
from cockpit_lite.probes.per_sample.owners import Layout
from cockpit_lite.probes.per_sample.rules.rule import NoRule, random_state
from cockpit_lite.probes.per_sample.shadow import shadow_tree

#: Greatest difference of the repeated call from the user's, relative to its largest value.
REPEATED = {torch.float64: 1e-9, torch.float32: 1e-3}
REPEATED_HALF_PRECISION = 5e-2
#: At most so many arguments may look like a batch without anybody knowing.
AMBIGUOUS = 3
#: Up to so many samples are repeated one after the other where vmap refuses.
LOOP = 256


def generic_forms(
    call: Call, parameters: Mapping[str, nn.Parameter], layout: Layout, batch_size: int
) -> tuple[dict[str, Dense], str]:
    """Return name -> per-sample gradients through this call, and what they are conditional on, if anything.

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
    if call.outputs_forgotten or call.spent:
        raise NoRule(f"what {kind} returned was not kept")
    axis = max(layout.axis, 0)
    count = call.outputs[0].shape[axis]
    leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    copy = shadow_tree(call.module)
    deltas = [
        torch.zeros_like(output) if delta is None else delta
        for output, delta in zip(call.outputs, _external(call, copy), strict=True)
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

        outputs, backward = vjp(forward, values)[:2]
        return outputs, backward(tuple(cotangents))[0]

    reason = f"{kind}'s call is not the same for one sample alone"
    for number, candidate in enumerate(_batch_arguments(leaves, axis, count)):
        positions = [position for position, _ in candidate]
        axes = [at for _, at in candidate]
        samples = [leaves[position] for position in positions]
        by_sample = partial(one_sample, axes=axes)
        drawn: list[bool] = []
        try:
            with _as_called(call), random_numbers_kept(call.outputs[0].device, drawn):
                chunk = max(1, CHUNK // max(1, elements))
                try:
                    mapped = vmap(by_sample, in_dims=(axes, output_axes), randomness="error", chunk_size=chunk)
                    outputs, gradients = mapped(samples, deltas)
                except Exception as error:  # vmap refuses some operations, and decisions that depend on values
                    if "randomness" in str(error) or count > LOOP:
                        raise
                    outputs, gradients = _looped(by_sample, samples, axes, deltas, output_axes)
        except Exception as error:  # whatever a user's forward may raise on one sample
            reason = _explain(kind, error)
            continue
        if any(drawn):
            raise NoRule(f"{kind} draws random numbers in its forward")
        same = all(
            _close(found, output.movedim(at, 0), call.outputs_overwritten, call.half_precision)
            for found, output, at, real in zip(outputs, call.outputs, output_axes, differentiable, strict=True)
            if real and at is not None
        )
        if same:
            forms = {name: Dense(gradient.detach()) for name, gradient in gradients.items()}
            if layout.owners is not None:
                forms = {name: form.fold(layout.owners, batch_size) for name, form in forms.items()}
            note = f"conditional on an argument of {kind} that every sample is given whole" if number else ""
            return forms, note
    raise NoRule(reason)


def _external(call: Call, copy: nn.Module) -> list[Tensor | None]:
    """Return the output gradients without the part that comes from the other outputs.

    An output may be made from another one, as the hidden state of an LSTM cell from its cell state. The gradient that arrives at
    the inner one then holds what goes through the outer one already, and would count it twice.
    """
    total = list(call.deltas)
    arrived = [position for position, delta in enumerate(total) if delta is not None]
    if len(arrived) < 2:
        return total
    values = {name: parameter.detach().requires_grad_(parameter.requires_grad) for name, parameter in copy.named_parameters()}
    try:
        with _as_called(call), random_numbers_kept(call.outputs[0].device, []):
            outputs = tensors_in(functional_call(copy, values, call.args, dict(call.kwargs)))
            external = list(total)
            for _ in arrived:  # settles after as many rounds as outputs are nested
                for inner in arrived:
                    outer = [position for position in arrived if position != inner and outputs[position].requires_grad]
                    if not outer or not outputs[inner].requires_grad:
                        continue
                    (through,) = torch.autograd.grad(
                        [outputs[position] for position in outer],
                        [outputs[inner]],
                        [external[position] for position in outer],
                        retain_graph=True,
                        allow_unused=True,
                    )
                    known = total[inner]
                    external[inner] = known if through is None or known is None else known - through
    except Exception as error:  # whatever a user's forward may raise when it is called again
        raise NoRule(f"{type(call.module).__name__} could not be called again ({type(error).__name__})") from error
    return external


def _looped(
    by_sample: Callable[..., tuple[Any, ...]],
    samples: Sequence[Tensor],
    axes: Sequence[int],
    deltas: Sequence[Tensor],
    output_axes: Sequence[int | None],
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Do what vmap does, one sample after the other."""
    rows = [
        by_sample(
            [sample.select(at, n) for sample, at in zip(samples, axes, strict=True)],
            [delta.select(at, n) for delta, at in zip(deltas, output_axes, strict=True) if at is not None],
        )
        for n in range(samples[0].shape[axes[0]])
    ]
    outputs = [torch.stack([row[0][position] for row in rows]).detach() for position in range(len(deltas))]
    return outputs, {name: torch.stack([row[1][name] for row in rows]) for name in rows[0][1]}


@contextmanager
def _as_called(call: Call) -> Iterator[None]:
    """Calculate as the user's call did, and keep quiet: vmap says when it is slow, and a forward what it said before."""
    device = call.outputs[0].device.type
    with torch.enable_grad(), warnings.catch_warnings(), torch.autocast(device, call.autocast, enabled=call.autocast is not None):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def random_numbers_kept(device: torch.device, drawn: list[bool]) -> Iterator[None]:
    """Put all random number generators back afterwards, and append whether any was drawn from."""
    numpy: Any = sys.modules.get("numpy")
    states: tuple[Any, Any] = (random.getstate(), None if numpy is None else numpy.random.get_state())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = random_state(device)
        try:
            yield
        finally:
            drawn.append(not all(map(torch.equal, before, random_state(device))))
            drawn.append(random.getstate() != states[0])
            random.setstate(states[0])
            if numpy is not None:
                now = numpy.random.get_state()
                drawn.append(now[2] != states[1][2] or not (now[1] == states[1][1]).all())
                numpy.random.set_state(states[1])


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


def _close(found: Tensor, expected: Tensor, shape_only: bool, half_precision: bool) -> bool:
    if found.shape != expected.shape or shape_only:
        return found.shape == expected.shape
    tolerance = REPEATED_HALF_PRECISION if half_precision else REPEATED[expected.dtype]
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
