"""Elements of per-sample gradients, read off their factors: chosen ones, rows of the parameter, some samples at a time.

Three questions to a :class:`~cockpit_lite.probes.per_sample.forms.Form`, none of which builds the N gradients at once:

    elements(form, indices)     (N, k)              chosen elements of every sample's gradient
    rows(form, start, stop)     (N, stop - start, *)  what belongs to some indices of the parameter's first axis
    samples(form, start, stop)  (n, *shape)         the whole gradients of some samples
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import CHUNK, Chunks, Dense, Form, OuterProducts, Rows, Sum


@singledispatch
def elements(form: Form, indices: Tensor) -> Tensor:
    """Return the elements at ``indices`` of every sample's flattened gradient, shape (N, k).

    Args:
        form: The gradients of one parameter.
        indices: Integers on the CPU, shape (k,): which of them make a block is found out without waiting for a device.
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


# The gradients themselves --------------------------------------------------------------------------------------------


@elements.register
def _(form: Dense, indices: Tensor) -> Tensor:
    return form.values.reshape(form.batch_size, -1)[:, indices.to(form.values.device)]


@rows.register
def _(form: Dense, start: int, stop: int) -> Tensor:
    values = form.values.reshape(form.batch_size, *(form.shape or (1,)))
    return values[:, start:stop].flatten(2) if values.dim() > 2 else values[:, start:stop, None]


@samples.register
def _(form: Dense, start: int, stop: int) -> Tensor:
    return form.values[start:stop]


# Outer products: a sum over the positions -----------------------------------------------------------------------------


@elements.register
def _(form: OuterProducts, indices: Tensor) -> Tensor:
    _, groups, positions, fan_in = form.inputs.shape
    fan_out = form.deltas.shape[3]
    outs, ins = indices // fan_in, indices % fan_in  # outs count through all groups
    if groups == 1 and positions > 1:
        unique_outs, at_outs = torch.unique(outs, return_inverse=True)
        unique_ins, at_ins = torch.unique(ins, return_inverse=True)
        if len(unique_outs) * len(unique_ins) <= 4 * len(indices):  # nearly a block: one product of a few columns
            deltas = form.deltas[:, 0].index_select(2, unique_outs.to(form.deltas.device))
            inputs = form.inputs[:, 0].index_select(2, unique_ins.to(form.inputs.device))
            block = (deltas.transpose(1, 2) @ inputs).flatten(1)
            return block[:, (at_outs * len(unique_ins) + at_ins).to(block.device)]
    group, outs, ins = (which.to(form.deltas.device) for which in (outs // fan_out, outs % fan_out, ins))
    some = max(1, CHUNK // max(1, positions * len(indices)))
    found = []
    for inputs, deltas in zip(form.inputs.split(some), form.deltas.split(some), strict=True):
        if groups == 1:
            found.append((inputs[:, 0].index_select(2, ins) * deltas[:, 0].index_select(2, outs)).sum(1))
        else:  # advanced indices put the chosen axis first: (k, n, T)
            found.append((inputs[:, group, :, ins] * deltas[:, group, :, outs]).sum(2).T)
    return torch.cat(found)


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


def _parts(form: Chunks) -> Iterator[OuterProducts]:
    for start in range(0, max(1, form.batch_size), form.samples):
        yield form.make(slice(start, start + form.samples))


@elements.register
def _(form: Chunks, indices: Tensor) -> Tensor:
    return torch.cat([elements(part, indices) for part in _parts(form)])


@rows.register
def _(form: Chunks, start: int, stop: int) -> Tensor:
    return torch.cat([rows(part, start, stop) for part in _parts(form)])


@samples.register
def _(form: Chunks, start: int, stop: int) -> Tensor:
    part = form.make(slice(start, stop))
    return samples(part, 0, part.batch_size)


# Rows of a table ------------------------------------------------------------------------------------------------------


@elements.register
def _(form: Rows, indices: Tensor) -> Tensor:
    width = form.shape[1]
    wanted = indices.to(form.values.device)
    found = form.values.new_zeros(form.batch_size, len(indices))
    some = max(1, CHUNK // max(1, len(indices)))
    for owners, used, values in zip(form.samples.split(some), form.rows.split(some), form.values.split(some), strict=True):
        met = used[:, None] == wanted // width
        found.index_add_(0, owners, values[:, wanted % width].where(met, found.new_zeros(())))
    return found


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


# Both of a table that is also an output layer -------------------------------------------------------------------------


@elements.register
def _(form: Sum, indices: Tensor) -> Tensor:
    return elements(form.table, indices) + elements(form.outer, indices)


@rows.register
def _(form: Sum, start: int, stop: int) -> Tensor:
    return rows(form.table, start, stop) + rows(form.outer, start, stop)


@samples.register
def _(form: Sum, start: int, stop: int) -> Tensor:
    return samples(form.table, start, stop) + samples(form.outer, start, stop)
