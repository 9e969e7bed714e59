"""What is said of a diagonal, made once for all instruments that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cockpit_lite.probes.quantiles import quantiles

if TYPE_CHECKING:
    from cockpit_lite.step import Step

#: How the diagonal of the Gauss-Newton matrix was got.
SAMPLED = "from random signs at the outputs"


@dataclass(frozen=True)
class DiagonalSummary:
    """A diagonal in a few numbers.

    Attributes:
        quantiles: Over all weights, see :func:`~cockpit_lite.probes.quantiles.quantiles`.
        means: By parameter; those without elements are missing.
    """

    quantiles: Tensor
    means: Mapping[str, Tensor]


def summarised(diagonal: Mapping[str, Tensor]) -> DiagonalSummary:
    """Return the summary of a diagonal by parameter."""
    return DiagonalSummary(
        quantiles(diagonal.values()), {name: values.mean() for name, values in diagonal.items() if values.numel()}
    )


def gauss_newton_diagonal(step: Step) -> DiagonalSummary:
    """Return the summary of the sampled diagonal of the Gauss-Newton matrix; use it by ``step.once``.

    Raises:
        NotMeasured: if there is none.
    """
    return summarised(step.curvature.gauss_newton_diagonal())
