"""Small vectors of one length, measured together: the biases of a net, and the scales of its normalisations.

There are many of them in a deep net, and operations and Python calls take longer than what they calculate. So their per-sample
gradients are kept until the step is over, and then as many operations measure all of one length as would measure one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.checks import Check, check_direction
from cockpit_lite.probes.per_sample.forms import Dense, Form
from cockpit_lite.probes.per_sample.forms.form import is_long, squares_of
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics

#: Elements (a quarter of a megabyte in float32) that the per-sample gradients of a parameter may have to be kept.
SMALL = 1 << 16


def small_vector(form: Form | None) -> Dense | None:
    """Return the per-sample gradients without what else the form keeps, if they are those of a small vector."""
    if not isinstance(form, Dense) or len(form.shape) != 1 or form.values.numel() > SMALL or is_long(form.values):
        return None
    return form if type(form) is Dense else Dense(form.values)


def measure_alike(
    vectors: Mapping[str, Dense],
    result: PerSampleStatistics,
    directions: Mapping[str, Mapping[str, Tensor]],
    gradient: Mapping[str, Tensor] | None,
    squares: bool,
    some: int | None,
) -> dict[str, Check]:
    """Add norms, inner products and sums of squares of several vectors to the result; return what is to be compared.

    Args:
        vectors: By parameter name; all of a batch that comes in one piece.
        result: Added to.
        directions: Name -> direction of inner products, which is parameter name -> tensor.
        gradient: What the contributions are checked against, by parameter name.
        squares: Whether sums of squares are wanted.
        some: How many samples are enough along directions that have a name, at least; all if left out.
    """
    groups: dict[object, dict[str, Dense]] = {}
    for name, form in vectors.items():
        kind = (form.values.shape, form.values.dtype, form.values.device)
        groups.setdefault(kind, {})[name] = form
    checks: dict[str, Check] = {}
    for group in groups.values():
        rows = torch.stack([form.values for form in group.values()])
        result.squared_norms.update(zip(group, squares_of(rows).unbind(), strict=True))
        if squares:
            result.sum_of_squares.update(zip(group, rows.square().sum(1).unbind(), strict=True))
        every = 1 if some is None else max(1, rows.shape[1] // some)
        for key, values in directions.items():
            towards = {name: values[name] for name in group if values.get(name) is not None}
            if not towards:
                continue
            columns = torch.stack(list(towards.values())).to(rows.dtype)[:, :, None]
            products = torch.bmm(_chosen(rows, group, towards)[:, :: every if key else 1], columns)[..., 0]
            kept = result.along.setdefault(key, {}) if key else result.products
            kept.update(zip(towards, products.unbind(), strict=True))
            if not key and values is gradient:
                checks.update({name: Check(kept[name], None) for name in towards})
        known = {} if gradient is None else {name: gradient.get(name) for name in group if name not in checks}
        totals = {name: total for name, total in known.items() if total is not None}
        if totals:
            left = check_direction(next(iter(totals.values()))).left  # the same for all of one length
            found = _chosen(rows, group, totals) @ left.to(rows.dtype)
            expected = torch.stack(list(totals.values())).to(left.dtype) @ left
            checks.update(zip(totals, map(Check, found.unbind(), expected.unbind()), strict=True))
    return checks


def _chosen(rows: Tensor, group: Mapping[str, Dense], names: Collection[str]) -> Tensor:
    """Return the rows of some of the vectors, nearly always of all."""
    return rows if len(names) == len(group) else rows[[number for number, name in enumerate(group) if name in names]]
