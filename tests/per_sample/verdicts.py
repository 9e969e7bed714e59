"""Is what the engine says of a parameter exact, named as not covered, or wrong?"""

from __future__ import annotations

import torch
from torch import Tensor

from tests import reference
from tests.per_sample.checker import relative_error, watched
from tests.zoo import Architecture

#: Greatest relative difference from a loop over single samples in float64.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}


def verdicts(architecture: Architecture, dtype: torch.dtype, size: int = 6) -> tuple[dict[str, str], dict[str, str]]:
    """Return parameter name -> "exact", "named", "wrong" or "no reference", and the reasons of those that are named.

    Exact: the squared norms, the inner products with the gradient and the sum of squares all agree with the loop. The model is in
    eval mode, where the samples of most are independent.

    Args:
        architecture: Of the zoo, or a real model family.
        dtype: The type the model is trained in.
        size: How many samples the batch has.
    """
    model = architecture.build(dtype=dtype).eval()
    batch = architecture.batch(size, torch.Generator().manual_seed(0), dtype=dtype)
    statistics, _ = watched(model, lambda: architecture.loss(model, batch))
    found = dict.fromkeys(statistics.not_covered, "named")
    if architecture.interacts:  # no loop over samples says what one of them contributes
        return {**dict.fromkeys(statistics.squared_norms, "no reference"), **found}, statistics.not_covered
    expected = reference.contributions(architecture, model, batch)
    everything = torch.stack([rows.square().sum() for rows in expected.values()]).sum()
    for name, norms in statistics.squared_norms.items():
        rows = expected[name].reshape(len(expected[name]), -1)
        squares, total = rows.square().sum(1), rows.sum(0)
        rounding = squares.sum() < torch.finfo(dtype).eps ** 2 * everything  # zero but for rounding
        pairs: list[tuple[Tensor, Tensor, Tensor | None]] = [
            (norms, squares, None),
            (statistics.products[name], rows @ total, squares.sqrt() * total.norm()),
            (statistics.sum_of_squares[name], expected[name].square().sum(0), None),
        ]
        exact = rounding or all(relative_error(ours, true, scale) < TOLERANCES[dtype] for ours, true, scale in pairs)
        found[name] = "exact" if exact else "wrong"
    return found, statistics.not_covered
