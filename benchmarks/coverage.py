"""How many parameters have exact per-sample statistics, over the architectures of the zoo and over real model families.

A parameter counts as exact if the squared norms, the inner products with the gradient and the sum of squares all agree with a
loop over single samples in float64; as named if the engine says that it is not covered, and why; as silently wrong otherwise.

The real families are those of torchvision, timm and transformers, at a small size and without weights; they are measured where
the extra ``models`` is installed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch

from benchmarks.page import arguments, publish, table
from tests.models.families import FAMILIES, MISSING
from tests.models.precision import Float64Throughout
from tests.per_sample.verdicts import TOLERANCES, verdicts
from tests.zoo import ZOO, Architecture

BATCH = 6
#: A model is covered if so large a share of its parameters is.
COVERED = 0.99


class Coverage(NamedTuple):
    """What was found over some architectures.

    Attributes:
        counts: Type -> verdict -> number of parameters.
        covered: In how many architectures nearly all parameters are exact, or have no reference because samples interact.
        named: Architecture, reason -> number of parameters that are named for it.
    """

    counts: dict[torch.dtype, Counter[str]]
    covered: int
    named: Counter[tuple[str, str]]


def cover(architectures: Mapping[str, Architecture]) -> Coverage:
    """Measure all architectures in both types."""
    counts: dict[torch.dtype, Counter[str]] = {dtype: Counter() for dtype in TOLERANCES}
    covered, named = 0, Counter[tuple[str, str]]()
    for name, architecture in architectures.items():
        shares = []
        reasons: dict[str, str] = {}
        for dtype, count in counts.items():
            # many models calculate parts in float32 whatever their type, and then have no more digits to compare
            with Float64Throughout() if dtype == torch.float64 else nullcontext():
                found, reasons = verdicts(architecture, dtype, BATCH)
            count.update(found.values())
            shares.append(sum(verdict in ("exact", "no reference") for verdict in found.values()) / len(found))
        covered += min(shares) >= COVERED
        named.update((name, reason) for reason in reasons.values())
    return Coverage(counts, covered, named)


def section(title: str, architectures: Mapping[str, Architecture]) -> str:
    """Measure and return the part of the page about these architectures."""
    found = cover(architectures)
    totals = []
    for dtype, count in found.counts.items():
        known = sum(count.values())
        shares = [f"{count[kind]} ({count[kind] / known:.1%})" for kind in ("exact", "named", "no reference")]
        totals.append([str(dtype).removeprefix("torch."), known, *shares, f"**{count['wrong']}**"])
    header = ["precision", "parameters", "exact", "named as not covered", "no reference", "silently wrong (target 0)"]
    number = len(architectures)
    lines = [
        f"### {title}",
        f"At least {COVERED:.0%} of the parameters are covered in {found.covered} of {number} ({found.covered / number:.0%}; "
        "target 95 %).",
        table(header, totals),
    ]
    if found.named:
        rows = [[name, count, reason] for (name, reason), count in found.named.items()]
        lines += ["Named:", table(["architecture", "parameters", "reason"], rows)]
    return "\n\n".join(lines)


def families() -> str:
    """Return the part about the real families, or what is missing for it."""
    missing = f"Not measured: {', '.join(MISSING)} not installed (`pip install -e '.[models]'`)." if MISSING else ""
    if not FAMILIES:
        return f"### Real model families\n\n{missing}"
    packages: dict[str, list[str]] = {}
    for name in FAMILIES:
        package, _, family = name.partition("_")
        packages.setdefault(package, []).append(family.replace("_", " "))
    listing = [f"{package}: {', '.join(names)}." for package, names in packages.items()]
    parts = [section(f"{len(FAMILIES)} real model families", FAMILIES), *listing, missing]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    """Measure and write the section."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    body = f"""
Models in eval mode, batches of {BATCH}, against a loop over single samples in float64: squared norms, inner products with the
gradient and sums of squares of every parameter, to a relative {TOLERANCES[torch.float32]:.0e} in float32 and
{TOLERANCES[torch.float64]:.0e} in float64.

{section(f"{len(ZOO)} architectures of the zoo", ZOO)}

{families()}
"""
    publish("coverage", "Coverage of per-sample statistics", body, options.print_only)


if __name__ == "__main__":
    main()
