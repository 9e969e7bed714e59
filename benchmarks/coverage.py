"""How many parameters have exact per-sample statistics, over the architectures of the zoo.

A parameter counts as exact if the squared norms, the inner products with the gradient and the sum of squares all agree with a
loop over single samples in float64; as named if the engine says that it is not covered, and why; as silently wrong otherwise.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from benchmarks.page import arguments, publish, table
from tests import reference
from tests.per_sample.checker import relative_error, watched
from tests.zoo import ZOO, Architecture

BATCH = 6
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}


def verdicts(architecture: Architecture, dtype: torch.dtype) -> tuple[dict[str, str], dict[str, str]]:
    """Return parameter name -> "exact", "named", "wrong" or "no reference", and the reasons of those that are named."""
    model = architecture.build(dtype=dtype).eval()
    batch = architecture.batch(BATCH, torch.Generator().manual_seed(0), dtype=dtype)
    statistics, _ = watched(model, lambda: architecture.loss(model, batch))
    found = dict.fromkeys(statistics.not_covered, "named")
    try:
        expected = reference.contributions(architecture, model, batch)
    except ValueError:  # samples interact: no loop over them says what a sample contributes
        return {**dict.fromkeys(statistics.squared_norms, "no reference"), **found}, statistics.not_covered
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


def main() -> None:
    """Measure the zoo and write the section."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    counts: dict[torch.dtype, Counter[str]] = {dtype: Counter() for dtype in TOLERANCES}
    rows, full = [], 0
    for name, architecture in ZOO.items():
        reasons: dict[str, str] = {}
        for dtype, count in counts.items():
            found, reasons = verdicts(architecture, dtype)
            count.update(found.values())
        full += not reasons
        rows += [[name, f"`{parameter}`", reason] for parameter, reason in reasons.items()]
    totals = []
    for dtype, count in counts.items():
        known = sum(count.values())
        shares = [f"{count[kind]} ({count[kind] / known:.1%})" for kind in ("exact", "named", "no reference")]
        totals.append([str(dtype).removeprefix("torch."), known, *shares, f"**{count['wrong']}**"])
    header = ["precision", "parameters", "exact", "named as not covered", "no reference", "silently wrong (target 0)"]
    body = f"""
{len(ZOO)} architectures in eval mode, batches of {BATCH}, against a loop over single samples in float64: squared norms, inner
products with the gradient and sums of squares of every parameter, to a relative {TOLERANCES[torch.float32]:.0e} in float32 and
{TOLERANCES[torch.float64]:.0e} in float64. All parameters are covered in {full} of {len(ZOO)} architectures
({full / len(ZOO):.0%}; target 95 %).

{table(header, totals)}

Named:

{table(["architecture", "parameter", "reason"], rows)}
"""
    publish("coverage", "Coverage of per-sample statistics", body, options.print_only)


if __name__ == "__main__":
    main()
