"""Elements of per-sample gradients, read off their factors: chosen ones, rows of the parameter, some samples at a time.

Questions to a :class:`~cockpit_lite.probes.per_sample.forms.Form`, none of which builds the N gradients at once:

    elements(form, indices, of)    (n, k)                 chosen elements of some samples' gradients
    rows(form, start, stop)        (N, stop - start, *)   what belongs to some indices of the parameter's first axis
    samples(form, start, stop)     (n, *shape)            the whole gradients of some samples
    stored(form)                   number                 how much memory it takes to keep the form
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import CHUNK, Chunks, Dense, Form, OuterProducts, Rows, Sum, Windows


@singledispatch
def elements(form: Form, indices: Tensor, of: slice) -> Tensor:
    """Return the elements at ``indices`` of some samples' flattened gradients, shape (n, k).

    Args:
        form: The gradients of one parameter.
        indices: Integers on the CPU, shape (k,): which of them make a block is found out without waiting for a device.
        of: Which samples; with a start from 0 and a step.
    """
    raise TypeError(f"{type(form).__name__} does not keep the gradients")


@singledispatch
def rows(form: Form, start: int, stop: int) -> Tensor:
    """Return the gradients for the indices ``start`` to ``stop`` of the parameter's first axis, shape (N, stop - start, rest)."""
    raise TypeError(f"{type(form).__name__} does not keep the gradients")


@singledispatch
def samples(form: Form, start: int, stop: int) -> Tensor:
    """Return the gradients of the samples ``start`` to ``stop``, shape (stop - start, *shape)."""
    raise TypeError(f"{type(form).__name__} does not keep the gradients")


@singledispatch
def stored(form: Form) -> int:
    """Return how many elements the form holds."""
    raise TypeError(f"{type(form).__name__} does not keep the gradients")


# The gradients themselves --------------------------------------------------------------------------------------------


@elements.register
def _(form: Dense, indices: Tensor, of: slice) -> Tensor:
    return form.values[of].reshape(len(range(*of.indices(form.batch_size))), -1).index_select(1, indices.to(form.values.device))


@rows.register
def _(form: Dense, start: int, stop: int) -> Tensor:
    values = form.values.reshape(form.batch_size, *(form.shape or (1,)))
    return values[:, start:stop].flatten(2) if values.dim() > 2 else values[:, start:stop, None]


@samples.register
def _(form: Dense, start: int, stop: int) -> Tensor:
    return form.values[start:stop]


@stored.register
def _(form: Dense) -> int:
    return form.values.numel()


# Outer products: a sum over the positions -----------------------------------------------------------------------------


@elements.register
def _(form: OuterProducts, indices: Tensor, of: slice) -> Tensor:
    if form.left.single:
        right, left = form.right.sums()[of], form.left.sums()[of]
        columns = [which.to(right.device) for which in (indices % right.shape[1], indices // right.shape[1])]
        return right.index_select(1, columns[0]).mul_(left.index_select(1, columns[1]))
    every_input, every_delta = form.inputs[of], form.deltas[of]
    groups, positions, fan_in = every_input.shape[1:]
    fan_out = every_delta.shape[3]
    outs, ins = indices // fan_in, indices % fan_in  # outs count through all groups
    if groups == 1 and positions > 1:
        block = _Block(outs, ins)
        if block.is_dense():
            # chosen along the last axis as they lie in memory: along a transposed one it takes fifteen times as long
            inputs = every_input[:, 0].index_select(2, block.ins.to(every_input.device))
            deltas = every_delta[:, 0].index_select(2, block.outs.to(every_delta.device))
            return block.elements(deltas.transpose(1, 2), inputs)
    group, outs, ins = (which.to(every_delta.device) for which in (outs // fan_out, outs % fan_out, ins))
    some = max(1, CHUNK // max(1, positions * len(indices)))
    found = []
    for inputs, deltas in zip(every_input.split(some), every_delta.split(some), strict=True):
        if groups == 1:
            found.append((inputs[:, 0].index_select(2, ins) * deltas[:, 0].index_select(2, outs)).sum(1))
        else:  # advanced indices put the chosen axis first: (k, n, T)
            found.append((inputs[:, group, :, ins] * deltas[:, group, :, outs]).sum(2).T)
    return torch.cat(found)


class _Block:
    """The rows and columns of a matrix that some of its elements lie in.

    Args:
        outs: The rows of the elements, integers on the CPU, shape (k,).
        ins: Their columns.
    """

    def __init__(self, outs: Tensor, ins: Tensor) -> None:
        self.outs, self._at_outs = torch.unique(outs, return_inverse=True)
        self.ins, self._at_ins = torch.unique(ins, return_inverse=True)

    def is_dense(self) -> bool:
        """Whether one product of a few rows and columns is cheaper than one element after the other."""
        return len(self.outs) * len(self.ins) <= 4 * len(self._at_outs)

    def elements(self, deltas: Tensor, inputs: Tensor) -> Tensor:
        """Return the elements, shape (n, k), from the chosen rows (n, rows, T) and the chosen columns (n, T, columns)."""
        block = (deltas @ inputs).flatten(1)
        return block.index_select(1, (self._at_outs * len(self.ins) + self._at_ins).to(block.device))


@rows.register
def _(form: OuterProducts, start: int, stop: int) -> Tensor:
    fan_out = form.deltas.shape[3]
    parts = []
    while start < stop:  # rows of one group after the other
        group, first = divmod(start, fan_out)
        last = min(first + stop - start, fan_out)
        parts.append(form.deltas[:, group, :, first:last].transpose(1, 2) @ form.inputs[:, group])
        start += last - first
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@samples.register
def _(form: OuterProducts, start: int, stop: int) -> Tensor:
    matrices = form.deltas[start:stop].transpose(-1, -2) @ form.inputs[start:stop]
    return matrices.reshape(len(matrices), *form.shape)


@stored.register
def _(form: OuterProducts) -> int:
    return form.inputs.numel() + form.deltas.numel()


def _parts(form: Chunks) -> Iterator[OuterProducts]:
    for start in range(0, max(1, form.batch_size), form.samples):
        yield form.make(slice(start, start + form.samples))


@elements.register
def _chunk_elements(form: Chunks, indices: Tensor, of: slice) -> Tensor:
    start, stop, step = of.indices(form.batch_size)
    chosen = (slice(first, min(first + form.samples * step, stop), step) for first in range(start, stop, form.samples * step))
    return torch.cat([elements(form.make(some), indices, slice(None)) for some in chosen])


@elements.register
def _(form: Windows, indices: Tensor, of: slice) -> Tensor:
    fan_in = form.shape[1:].numel()
    block = _Block(indices // fan_in, indices % fan_in)
    if form.groups > 1 or not block.is_dense():
        return _chunk_elements(form, indices, of)
    answers = form.answers[of]
    deltas = answers.flatten(2).index_select(1, block.outs.to(answers.device))
    return block.elements(deltas, torch.stack([form.column(place, of) for place in block.ins.tolist()], 2))


@rows.register
def _(form: Chunks, start: int, stop: int) -> Tensor:
    return torch.cat([rows(part, start, stop) for part in _parts(form)])


@samples.register
def _(form: Chunks, start: int, stop: int) -> Tensor:
    part = form.make(slice(start, stop))
    return samples(part, 0, part.batch_size)


@stored.register
def _(form: Chunks) -> int:
    return 0  # made when they are asked for


# Rows of a table ------------------------------------------------------------------------------------------------------


@elements.register
def _(form: Rows, indices: Tensor, of: slice) -> Tensor:
    width, chosen = form.shape[1], range(*of.indices(form.batch_size))
    wanted = indices.to(form.values.device)
    found = form.values.new_zeros(len(chosen) + 1, len(indices))  # in the last row those of the other samples
    place = torch.div(form.samples - chosen.start, chosen.step, rounding_mode="floor")
    known = (place >= 0) & (place < len(chosen)) & (place * chosen.step + chosen.start == form.samples)
    place = place.where(known, len(chosen))
    some = max(1, CHUNK // max(1, len(indices)))
    for owners, used, values in zip(place.split(some), form.rows.split(some), form.values.split(some), strict=True):
        met = used[:, None] == wanted // width
        found.index_add_(0, owners, values[:, wanted % width].where(met, found.new_zeros(())))
    return found[:-1]


def _scattered(form: Rows, target: Tensor, inside: Tensor, count: int) -> Tensor:
    """Add the entries up in ``count`` rows; those that are not ``inside`` go nowhere, without asking which they are."""
    table = form.values.new_zeros(count + 1, form.shape[1])
    return table.index_add_(0, target.where(inside, count), form.values)[:count]


@rows.register
def _(form: Rows, start: int, stop: int) -> Tensor:
    inside = (form.rows >= start) & (form.rows < stop)
    target = form.samples * (stop - start) + form.rows - start
    return _scattered(form, target, inside, form.batch_size * (stop - start)).reshape(form.batch_size, stop - start, -1)


@samples.register
def _(form: Rows, start: int, stop: int) -> Tensor:
    inside = (form.samples >= start) & (form.samples < stop)
    target = (form.samples - start) * form.shape[0] + form.rows
    return _scattered(form, target, inside, (stop - start) * form.shape[0]).reshape(stop - start, *form.shape)


@stored.register
def _(form: Rows) -> int:
    return form.values.numel()


# Both of a table that is also an output layer -------------------------------------------------------------------------


@elements.register
def _(form: Sum, indices: Tensor, of: slice) -> Tensor:
    return elements(form.table, indices, of) + elements(form.outer, indices, of)


@rows.register
def _(form: Sum, start: int, stop: int) -> Tensor:
    return rows(form.table, start, stop) + rows(form.outer, start, stop)


@samples.register
def _(form: Sum, start: int, stop: int) -> Tensor:
    return samples(form.table, start, stop) + samples(form.outer, start, stop)


@stored.register
def _(form: Sum) -> int:
    return stored(form.table) + stored(form.outer)
