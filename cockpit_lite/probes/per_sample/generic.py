"""The generic rule: per-sample gradients of any parameter through any call, by ``vmap`` over the ``vjp`` of the call itself.

The call is repeated on a shadow of the module, one sample at a time in one vectorised pass: without hooks, without writing to the
user's buffers, without drawing random numbers. What it returns is compared with what the user's call returned, so a call that
cannot be repeated sample by sample (noise, batch statistics, samples that interact) is found out, not trusted.

What dropout drew for each sample is known from repeating the call once more with its random numbers. Where one sample alone will
not do (other random numbers, shapes that depend on the batch), that is gone back through once a sample, with the output gradients
of the others at zero.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from cockpit_lite.probes.per_sample.calls import Call, tensors_in
from cockpit_lite.probes.per_sample.forms import CHUNK, Dense
from cockpit_lite.probes.per_sample.masks import MasksBySample, RecordedMasks
from cockpit_lite.probes.per_sample.owners import Layout, normalises_over_batch
from cockpit_lite.probes.per_sample.rules.rule import NoRule, random_state, set_random_state
from cockpit_lite.probes.per_sample.shadow import shadow_tree

#: Greatest difference of the repeated call from the user's, relative to its largest value.
REPEATED = {torch.float64: 1e-9, torch.float32: 1e-3}
REPEATED_HALF_PRECISION = 5e-2
#: At most so many arguments may look like a batch without anybody knowing.
AMBIGUOUS = 3
#: Up to so many samples are done one after the other where they cannot be done together.
LOOP = 256

#: Modules whose calls vmap has refused to repeat since they draw random numbers: on later steps that is not tried again.
_DRAWN_FROM: WeakSet[nn.Module] = WeakSet()


class Output(NamedTuple):
    """An output that carries the samples: its position among all, the axis of the samples, and what the user's call returned."""

    position: int
    axis: int
    value: Tensor


def generic_forms(
    call: Call, parameters: Mapping[str, nn.Parameter], layout: Layout, batch_size: int, apart: bool = False
) -> tuple[dict[str, Dense], str]:
    """Return name -> per-sample gradients through this call, and what they are conditional on, if anything.

    Args:
        call: The call, with its output gradients.
        parameters: Dotted name in the module -> parameter; it may belong to a child.
        layout: Where the samples are in the output.
        batch_size: Number of samples.
        apart: Whether the samples are known not to meet in the call, as far as layers in it show.

    Raises:
        NoRule: if the call cannot be repeated sample by sample; the message is the reason.
    """
    kind = type(call.module).__name__
    if call.overwritten:
        raise NoRule(f"the input of {kind} was changed in place after its call")
    if call.outputs_forgotten or call.spent:
        raise NoRule(f"what {kind} returned was not kept")
    axis = max(layout.axis, 0)
    count = batch_size if layout.owners is None else len(layout.owners)
    leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    copy = shadow_tree(call.module)
    # An output without samples is made from the others, as the loss that a model returns beside its logits: what comes through it
    # has arrived at them. Where that is not so, the contributions do not sum to the gradient, and that is seen.
    outputs = [
        Output(position, at, output)
        for position, output in enumerate(call.outputs)
        if output.is_floating_point() and (at := _axis(output, _axis_of(call, position, axis), count)) is not None
    ]
    if all(call.deltas[output.position] is None for output in outputs):
        raise NoRule(f"no gradient reaches an output of {kind} that carries the batch")
    external = _external(call, copy, [output.position for output in outputs])
    deltas = [
        torch.zeros_like(output.value) if delta is None else delta for output in outputs for delta in [external[output.position]]
    ]
    elements = sum(value.numel() for value in values.values())

    def one_sample(chosen: Sequence[Tensor], cotangents: Sequence[Tensor], axes: Sequence[int]) -> tuple[Any, ...]:
        arguments = list(leaves)
        for position, sample, at in zip(positions, chosen, axes, strict=True):
            arguments[position] = sample.unsqueeze(at)

        def forward(replaced: dict[str, Tensor]) -> tuple[Tensor, ...]:
            args, kwargs = tree_unflatten(arguments, structure)
            returned = tensors_in(functional_call(copy, replaced, args, kwargs))
            return tuple(returned[output.position].squeeze(output.axis) for output in outputs)

        returned, backward = vjp(forward, values)[:2]
        return returned, backward(tuple(cotangents))[0]

    reason = f"{kind}'s call is not the same for one sample alone"
    output_axes = [output.axis for output in outputs]
    for number, candidate in enumerate(_batch_arguments(leaves, axis, count)):
        positions = [position for position, _ in candidate]
        axes = [at for _, at in candidate]
        samples = [leaves[position] for position in positions]
        by_sample = partial(one_sample, axes=axes)
        drawn: list[bool] = []
        try:
            # under a function transform, fused attention takes a mask that it cannot differentiate and fails
            with _as_called(call), sdpa_kernel(SDPBackend.MATH), random_numbers_kept(call.outputs[0].device, drawn):
                chunk = max(1, CHUNK // max(1, elements))
                mapped = partial(vmap, by_sample, in_dims=(axes, output_axes))
                draws = call.random_state is not None and call.module in _DRAWN_FROM
                if not draws:
                    try:
                        found, gradients = mapped(randomness="error", chunk_size=chunk)(samples, deltas)
                    except Exception as error:  # vmap refuses some operations, and decisions that depend on values
                        draws = "randomness" in str(error)
                        if not draws and count > LOOP:
                            raise
                        if not draws:
                            found, gradients = _looped(by_sample, samples, axes, deltas, output_axes)
                if draws:
                    _DRAWN_FROM.add(call.module)
                    masks = _masks(call, copy, values)
                    every = mapped(randomness="different")
                    found, gradients = _with_masks(every, samples, axes, deltas, output_axes, masks, axis, chunk)
        except Exception as error:  # whatever a user's forward may raise on one sample
            reason = _explain(kind, error)
            continue
        if any(drawn):
            reason = f"{kind} draws random numbers in its forward"
            break
        same = all(_close(one, output.value.movedim(output.axis, 0), call) for one, output in zip(found, outputs, strict=True))
        if same:
            forms = {name: Dense(gradient.detach()) for name, gradient in gradients.items()}
            if layout.owners is not None:
                forms = {name: form.fold(layout.owners, batch_size) for name, form in forms.items()}
            note = f"conditional on an argument of {kind} that every sample is given whole" if number else ""
            return forms, note
    if apart and batch_size <= LOOP:
        return _one_backward_a_sample(call, copy, values, outputs, deltas, layout, batch_size, reason), ""
    raise NoRule(reason)


def _masks(call: Call, copy: nn.Module, values: dict[str, Tensor]) -> list[Tensor]:
    """Return what dropout drew in the call, in order, by repeating it with its random numbers.

    Raises:
        NoRule: if these are not known.
    """
    device = call.outputs[0].device
    # elsewhere dropout draws in kernels of its own; and without the outputs nobody would see that a mask is another sample's
    if call.random_state is None or device.type != "cpu" or call.outputs_overwritten:
        raise NoRule("its randomness is not known")
    with torch.no_grad(), random_numbers_kept(device, []), RecordedMasks() as recorded:
        set_random_state(call.random_state, device)
        functional_call(copy, values, call.args, dict(call.kwargs))
    return recorded.masks


def _with_masks(
    mapped: Callable[..., tuple[Any, ...]],
    samples: Sequence[Tensor],
    axes: Sequence[int],
    deltas: Sequence[Tensor],
    output_axes: Sequence[int],
    masks: list[Tensor],
    axis: int,
    chunk: int,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Do what vmap does, some samples at a time, with what dropout drew for each of them."""
    count = samples[0].shape[axes[0]]
    parts = []
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        with MasksBySample(masks, count, axis, slice(start, start + size)):
            parts.append(
                mapped(
                    [sample.narrow(at, start, size) for sample, at in zip(samples, axes, strict=True)],
                    [delta.narrow(at, start, size) for delta, at in zip(deltas, output_axes, strict=True)],
                )
            )
    returned = [torch.cat([found[position] for found, _ in parts]).detach() for position in range(len(deltas))]
    return returned, {name: torch.cat([gradients[name] for _, gradients in parts]) for name in parts[0][1]}


def _one_backward_a_sample(
    call: Call,
    copy: nn.Module,
    values: Mapping[str, Tensor],
    outputs: Sequence[Output],
    deltas: Sequence[Tensor],
    layout: Layout,
    batch_size: int,
    reason: str,
) -> dict[str, Dense]:
    """Repeat the call as it was, and go back through it with the output gradients of one sample after the other.

    Batch normalisation may let the samples meet, which is said of everything that such a model measures.

    Raises:
        NoRule: if it cannot be repeated, with ``reason``; or if the samples meet in it otherwise.
    """
    kind, device = type(call.module).__name__, call.outputs[0].device
    owners = torch.arange(batch_size, device=device) if layout.owners is None else layout.owners.to(device)
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    arguments, structure = tree_flatten((call.args, dict(call.kwargs)))
    inputs: list[tuple[Tensor, int]] = []  # that carry the samples and can be differentiated
    for position, argument in enumerate(arguments):
        if isinstance(argument, Tensor) and argument.is_floating_point() and not any(map(normalises_over_batch, copy.modules())):
            at = _axis(argument, max(layout.axis, 0), len(owners))
            if at is not None:
                arguments[position] = argument.detach().requires_grad_()
                inputs.append((arguments[position], at))
    gradients: dict[str, list[Tensor]] = {name: [] for name in leaves}
    try:
        with _as_called(call), random_numbers_kept(device, []):
            if call.random_state is not None:
                set_random_state(call.random_state, device)
            args, kwargs = tree_unflatten(arguments, structure)
            every = tensors_in(functional_call(copy, leaves, args, kwargs))
            returned = [every[output.position] for output in outputs]
            if not all(_close(one, output.value, call) for one, output in zip(returned, outputs, strict=True)):
                raise NoRule(reason)
            for n in range(batch_size):
                alone = owners == n
                found = torch.autograd.grad(
                    returned,
                    [*leaves.values(), *(argument for argument, _ in inputs)],
                    [
                        delta * alone.reshape([-1 if axis == output.axis else 1 for axis in range(delta.dim())])
                        for delta, output in zip(deltas, outputs, strict=True)
                    ],
                    retain_graph=True,
                    materialize_grads=True,
                )
                for name, gradient in zip(leaves, found, strict=False):
                    gradients[name].append(gradient)
                for gradient, (_, at) in zip(found[len(leaves) :], inputs, strict=True):
                    if bool(gradient.movedim(at, 0)[~alone].any()):
                        raise NoRule(f"samples meet in {kind}")
    except NoRule:
        raise
    except Exception as error:  # whatever a user's forward may raise when it is called again
        raise NoRule(reason) from error
    return {name: Dense(torch.stack(rows).detach()) for name, rows in gradients.items()}


def _external(call: Call, copy: nn.Module, positions: Sequence[int]) -> list[Tensor | None]:
    """Return the gradients of the outputs at ``positions`` without the part that comes from the others of them.

    An output may be made from another one, as the hidden state of an LSTM cell from its cell state. The gradient that arrives at
    the inner one then holds what goes through the outer one already, and would count it twice.
    """
    total = list(call.deltas)
    arrived = [position for position in positions if total[position] is not None]
    if len(arrived) < 2:
        return total
    values = {name: parameter.detach().requires_grad_(parameter.requires_grad) for name, parameter in copy.named_parameters()}
    try:
        with _as_called(call), random_numbers_kept(call.outputs[0].device, []):
            if call.random_state is not None:
                set_random_state(call.random_state, call.outputs[0].device)
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
    output_axes: Sequence[int],
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Do what vmap does, one sample after the other."""
    rows = [
        by_sample(
            [sample.select(at, n) for sample, at in zip(samples, axes, strict=True)],
            [delta.select(at, n) for delta, at in zip(deltas, output_axes, strict=True)],
        )
        for n in range(samples[0].shape[axes[0]])
    ]
    returned = [torch.stack([row[0][position] for row in rows]).detach() for position in range(len(deltas))]
    return returned, {name: torch.stack([row[1][name] for row in rows]) for name in rows[0][1]}


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


def _axis_of(call: Call, position: int, axis: int) -> int:
    """Return the axis of an output, given that of the first; final states are (layers, samples, features)."""
    return call.outputs[position].dim() - 2 if position and isinstance(call.module, nn.RNNBase) else axis


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


def _close(found: Tensor, expected: Tensor, call: Call) -> bool:
    """Whether an output of the repeated call is that of the user's, as far as that is still known."""
    if found.shape != expected.shape or call.outputs_overwritten:
        return found.shape == expected.shape
    tolerance = REPEATED_HALF_PRECISION if call.half_precision else REPEATED[expected.dtype]
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
