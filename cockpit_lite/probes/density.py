"""The spectral density of a step, made once for all instruments that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit_lite.curvature.density import Spectrum
from cockpit_lite.curvature.sub_batch import SHARE

if TYPE_CHECKING:
    from cockpit_lite.step import Step

#: Nodes of the quadrature. Each costs a product with the Hessian.
NODES = 5


def spectral_density(step: Step) -> Spectrum:
    """Return the density of the Hessian's eigenvalues, from the default share of the batch; use it by ``step.once``."""
    part, _ = step.curvature.sub_batch_or_all(SHARE)
    return part.spectral_density(steps=NODES, probes=1)
