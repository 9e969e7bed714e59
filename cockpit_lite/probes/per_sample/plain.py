"""Linear layers that are given one row a sample, with nothing special about them: measured straight from their call.

In a small net operations and Python calls take longer than what they calculate. So these layers, which are most of such a net,
go neither through a rule nor through what is needed for several micro-batches; what is calculated, and every check, is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cockpit_lite.norms import PIECE
from cockpit_lite.probes.per_sample.calls import Call
from cockpit_lite.probes.per_sample.checks import Check, along_direction, check_direction, ones
from cockpit_lite.probes.per_sample.forms import OuterProducts, Side, Sums
from cockpit_lite.probes.per_sample.forms.outer_products import products_with_sum, sum_is_quick
from cockpit_lite.probes.per_sample.rules.linear import PerSampleLinear
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics

ACCURATE = (torch.float32, torch.float64)


def is_plain(call: Call, batch_size: int) -> bool:
    """Whether the call is one of a linear layer in which row n is sample n, and all that it was given is still there."""
    owner, layout = call.owner, call.layout
    if owner is None or type(owner.rule) is not PerSampleLinear or len(call.args) != 1 or call.condensed or call.spent:
        return False
    if layout is None or layout.axis or layout.owners is not None or layout.reason:
        return False
    inputs, deltas = call.args[0], call.deltas[0]
    return (
        deltas is not None
        and type(inputs) is Tensor
        and inputs.dim() == 2
        and inputs.shape[0] == deltas.shape[0] == batch_size
        and batch_size <= PIECE  # what is added up by one product: of more samples it would lose digits
        and inputs.dtype == deltas.dtype
        and inputs.dtype in ACCURATE
        and not call.kwargs
        and not call.overwritten
    )


def plain_forms(call: Call) -> dict[str, OuterProducts | Sums]:
    """Return parameter name -> form of its per-sample gradients, of a call that is plain."""
    owner, deltas = call.owner, call.deltas[0]
    assert owner is not None and deltas is not None
    left = Side(deltas)
    return {
        name: OuterProducts(call.args[0], left, owner.parameters[local].shape) if local == "weight" else Sums(left)
        for local, name in owner.names.items()
    }


def measure_plain(
    call: Call,
    result: PerSampleStatistics,
    directions: Mapping[str, Mapping[str, Tensor]],
    gradient: Mapping[str, Tensor] | None,
    squares: bool,
    some: int | None,
) -> dict[str, Check]:
    """Add norms, inner products and sums of squares to the result; return what is to be compared.

    With one position c_n = d_n a_n' for the weight and d_n for the bias, so that everything follows from a and d.

    Args:
        call: One that is plain.
        result: Added to.
        directions: Name -> direction of inner products, which is parameter name -> tensor.
        gradient: What the contributions are checked against, by parameter name.
        squares: Whether sums of squares are wanted.
        some: How many samples are enough along directions that have a name, at least; all if left out.
    """
    owner, inputs, deltas = call.owner, call.args[0], call.deltas[0]
    assert owner is not None and deltas is not None
    checks: dict[str, Check] = {}
    norms = torch.linalg.vector_norm(deltas, dim=-1)
    squared = deltas.square() if squares else None
    every = 1 if some is None else max(1, len(deltas) // some)
    along: Tensor | None = None
    for local, name in owner.names.items():
        of_weight = local == "weight"
        size = torch.linalg.vector_norm(inputs, dim=-1).mul_(norms) if of_weight else norms
        result.squared_norms[name] = size * size
        if squared is not None:
            result.sum_of_squares[name] = squared.T @ inputs.square() if of_weight else squared.sum(0)
        total = None if gradient is None else gradient.get(name)
        for key, values in directions.items():
            direction = values.get(name)
            if direction is None:
                continue
            if key:
                rows = inputs[::every] if of_weight else None
                result.along.setdefault(key, {})[name] = _products(rows, deltas[::every], direction)
            elif of_weight and direction is total and sum_is_quick(inputs, deltas):
                # the contributions sum to the gradient, which is checked: their products among each other say the same
                result.products[name] = products_with_sum(inputs, deltas)
            else:
                result.products[name] = _products(inputs if of_weight else None, deltas, direction)
                if direction is total:
                    checks[name] = Check(result.products[name], None)
        if total is not None and name not in checks:
            sides = check_direction(total)
            if along is None:  # sides of one length are the same, so that weight and bias share it
                along = deltas @ sides.left
            others = inputs @ sides.right if of_weight else ones(len(deltas), deltas.device, deltas.dtype)
            checks[name] = Check(along, along_direction(total, sides), others)
    return checks


def _products(inputs: Tensor | None, deltas: Tensor, direction: Tensor) -> Tensor:
    """Return the inner products of d_n a_n', or of d_n if there are no inputs, with a direction."""
    towards = direction.to(deltas.dtype)
    return deltas @ towards if inputs is None else (inputs @ towards.T).mul_(deltas).sum(1)
