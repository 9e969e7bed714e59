"""The spectral density of a step, made once for all instruments that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit_lite.curvature.density import Spectrum

if TYPE_CHECKING:
    from cockpit_lite.step import Step

#: Nodes of the quadrature. Each costs a product with the Hessian, but for the first, which the trace has in common with it.
NODES = 5


def spectral_density(step: Step) -> Spectrum:
    """Return the density of the Hessian's eigenvalues; use it by ``step.once``."""
    return step.curvature.spectral_density(steps=NODES, probes=1)
