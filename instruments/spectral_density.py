"""Spectral density: how the eigenvalues of the Hessian are spread, and how many directions are flat.

    spectral_density = (nodes, weights), an array of two rows: the weight is the share of all eigenvalues that a node stands for
    flat_directions  = sum of the weights of the nodes with |node| < 0.01 max |node|

Stochastic Lanczos quadrature: for a random sign vector v the Lanczos method gives nodes and weights with sum_k w_k f(node_k) =
v'f(H)v / D for all polynomials f of degree up to 2 m - 1, m the number of nodes: the moments of the spectrum, right in the mean.
With a handful of nodes the outermost ones are near the ends of the spectrum and the bulk is one or two nodes near zero; it is a
picture of the whole, not of single eigenvalues. Estimated; m is in the note. Where a search for eigenvalues has been made on the
same step (``max_eigenvalue``, ``condition`` and others do), the largest ones and the smallest are nodes of their own with the
weight of one eigenvalue each, and the quadrature is for what is left.

It is that of a quarter of the batch, at a quarter of the price; the note says of how many samples. Fewer samples have larger
outliers, by some tenths of their value: those of a search, here as in ``max_eigenvalue``, are of the whole batch.
Where samples meet (batch normalisation) the density is of the whole batch, too.

A trained classifier looks like this: a bulk that holds nearly all of the weight near zero, with few outliers far above it, about
as many as classes. Outliers that move out over time: training sharpens, compare with the stability limit. Weight on large
negative nodes: the loss is not near a minimum. A bulk that widens with training while the loss does not fall: noise is being
fitted. Batch normalisation pulls outliers in. Compare runs of the same model.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

Sources: B. Ghorbani, S. Krishnan, Y. Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, 2019;
V. Papyan, The Full Spectrum of Deepnet Hessians at Scale, 2018; G. Golub, G. Meurant, Matrices, Moments and Quadrature, 2010.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.curvature.sub_batch import SHARE, check
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings
from cockpit_lite.probes import density
from cockpit_lite.step import Step

#: Eigenvalues below this share of the largest magnitude are called flat.
FLAT = 0.01


def flat_share(nodes: Tensor, weights: Tensor) -> Tensor:
    """Return the share of the spectrum below :data:`FLAT` times the largest magnitude, a scalar tensor; all of it if H = 0."""
    sizes = nodes.abs()
    return (weights * (sizes <= FLAT * sizes.max())).sum() + (0 * nodes).sum()  # NaN stays NaN


class SpectralDensity(Instrument):
    """Writes ``spectral_density``, a (2, nodes) array, and ``flat_directions``, a share.

    Args:
        steps: Nodes for each random vector, at least 2; by default what other instruments share.
        probes: Random vectors; the error of the moments falls with the root of their number times that of the weights.
        sub_batch: Take it of so many samples of the batch, or of a share of it below 1; None: of all.
    """

    name = "spectral_density"
    needs = (CURVATURE,)
    readings = ("spectral_density", "flat_directions")
    preset = "full"

    def __init__(self, steps: int = density.NODES, probes: int = 1, sub_batch: float | None = SHARE):
        if steps < 2:
            raise SetupError(f"SpectralDensity(steps={steps}): at least 2 are needed.")
        if probes < 1:
            raise SetupError(f"SpectralDensity(probes={probes}): at least 1 is needed.")
        check("SpectralDensity", sub_batch)
        self.sub_batch = sub_batch
        self.steps = steps
        self.probes = probes

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        part, known = curvature.sub_batch_or_all(self.sub_batch)
        how, most = f"quadrature with {self.steps} nodes", self.steps * self.probes
        if (self.steps, self.probes, self.sub_batch) == (density.NODES, 1, SHARE):
            if curvature.eigenvalues_are_known:
                how = f"eigenvalues of the whole batch, and a quadrature with {density.NODES_BESIDE} nodes"
            found, most = step.once(density.spectral_density), density.MOST_NODES
        else:
            found = part.spectral_density(self.steps, self.probes)
        # Always the same number: a small model has fewer eigenvalues than nodes were asked for.
        table = torch.nn.functional.pad(torch.stack([found.nodes, found.weights]), (0, most - len(found.nodes)), value=torch.nan)
        note = "; ".join(filter(None, [known, how]))
        flat = flat_share(found.nodes, found.weights)
        return {
            "spectral_density": Reading(table, "estimated", note=note),
            "flat_directions": Reading(flat, "estimated", note=note),
        }

    def __repr__(self) -> str:
        return f"SpectralDensity(steps={self.steps}, probes={self.probes}, sub_batch={self.sub_batch})"
