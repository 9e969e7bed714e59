"""The spectral density of a step, made once for all instruments that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit_lite.curvature.density import OUTLIERS, Spectrum
from cockpit_lite.curvature.sub_batch import SHARE

if TYPE_CHECKING:
    from cockpit_lite.step import Step

#: Nodes of the quadrature, each of which costs a product with the Hessian; fewer where eigenvalues are known beside it.
NODES, NODES_BESIDE = 5, 3

#: No more nodes than this in all, the known eigenvalues among them.
MOST_NODES = NODES_BESIDE + OUTLIERS + 1


def spectral_density(step: Step) -> Spectrum:
    """Return the density of the Hessian's eigenvalues, from the default share of the batch; use it by ``step.once``.

    What a search for eigenvalues has found on the step so far, on the whole batch, is taken from there.
    """
    if step.curvature.eigenvalues_are_known:
        return step.curvature.density_beside_eigenvalues(NODES_BESIDE, SHARE)
    part, _ = step.curvature.sub_batch_or_all(SHARE)
    return part.spectral_density(steps=NODES, probes=1)
