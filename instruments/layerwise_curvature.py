"""Layerwise curvature: which parameters the loss is sharp in.

    layerwise_curvature/<parameter> = trace H_pp = sum of the eigenvalues of the parameter's diagonal block of the Hessian
    layerwise_max_eigenvalue/<parameter> = largest eigenvalue of that block       (where asked for)

The blocks' traces add up to the trace of the Hessian. They come from the random products that the trace is estimated with, by
v_p' (Hv)_p with random signs v: no product of their own. What a search for eigenvalues has found is taken out of the estimate and
added exactly. What the other blocks mix in has mean zero and is part of the standard error; for a block that is flat beside sharp
ones it can be larger than the value: look at several steps then.

A layer that carries most of the curvature is the one that limits the learning rate: a last layer without normalisation, an
embedding of frequent tokens, a first layer on inputs of large scale. Its own smaller learning rate, normalised inputs or a
normalisation layer before it help. A layer whose trace is orders of magnitude below the others can take a larger rate.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

References: M. Hutchinson, 1989; Z. Yao et al., PyHessian, 2020 (traces by block, ablation of layers).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cockpit_lite.curvature import Curvature
from cockpit_lite.curvature.sub_batch import SHARE, check
from cockpit_lite.curvature.trace import Remainder
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings, layerwise
from cockpit_lite.step import Step


def block_traces(
    random: Remainder, sizes: Mapping[str, int], basis: Tensor, basis_products: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the trace of each diagonal block and its standard error, scalar tensors.

    Args:
        random: What random products say beside the subspace in which the matrix is known.
        sizes: Number of elements of each block, in order; they add up to the length of a row.
        basis: Orthonormal rows that span the subspace; may be empty.
        basis_products: The matrix times ``basis``.
    """
    # H = H VV' + H (1 - VV'): the first part is known, the outliers of the spectrum with it; the second is sampled.
    images, whole = random.images, torch.linalg.vector_norm(random.images).square()
    lengths = list(sizes.values())
    known = images.new_zeros(images.shape[1])
    for row, product in zip(basis, basis_products, strict=True):
        known.addcmul_(row, product)
    found = {}
    pieces = zip(sizes, random.signs.split(lengths, 1), images.split(lengths, 1), known.split(lengths), strict=True)
    for name, signs, image, part in pieces:
        values = (signs @ image.T).diagonal()
        # The variance of v'Av is at most 2 ||A||_F^2, and E||Av||^2 = ||A||_F^2, A the block's rows.
        squares = torch.linalg.vector_norm(image, dim=1).square()
        variance = 2 * squares.mean() / len(signs)
        if random.variance is not None:  # what the sub-batch adds to the whole is shared out as the rows' lengths are
            variance = variance + random.variance.mean() * squares.sum() / whole
        found[name] = part.sum() + values.mean(), variance.sqrt()
    return found


class LayerwiseCurvature(Instrument):
    """Writes ``layerwise_curvature/<parameter>``, and where asked for ``layerwise_max_eigenvalue/<parameter>``.

    Args:
        samples: Random products to use, shared with the trace of the Hessian.
        eigenvalues: Products to spend on the largest eigenvalue of each parameter's block, at least 2; 0: none.
            They are of the whole batch.
        sub_batch: Take the random products of so many samples of the batch, or of a share of it below 1; None: of all.
    """

    name = "layerwise_curvature"
    needs = (CURVATURE,)
    preset = "full"

    def __init__(self, samples: int = 1, eigenvalues: int = 0, sub_batch: float | None = SHARE):
        if samples < 1:
            raise SetupError(f"LayerwiseCurvature(samples={samples}): at least 1 is needed.")
        if eigenvalues < 0 or eigenvalues == 1:
            raise SetupError(f"LayerwiseCurvature(eigenvalues={eigenvalues}): at least 2 products are needed, or 0 for none.")
        check("LayerwiseCurvature", sub_batch)
        self.samples = samples
        self.eigenvalues = eigenvalues
        self.sub_batch = sub_batch

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        random = curvature.random_remainder(self.samples, self.sub_batch)
        _, note = curvature.sub_batch_or_all(self.sub_batch)
        sizes = {name: parameter.numel() for name, parameter in curvature.parameters.items()}
        traces = {
            name: Reading(value, "estimated", standard_error=error, note=note)
            for name, (value, error) in block_traces(random, sizes, *curvature.known_subspace()).items()
        }
        return {**layerwise("layerwise_curvature", traces), **self._eigenvalues(curvature)}

    def _eigenvalues(self, curvature: Curvature) -> Readings:
        if not self.eigenvalues:
            return {}
        found = {}
        for name, parameter in curvature.parameters.items():
            if parameter.numel():
                pairs = curvature.restricted([name]).top_eigenpairs(max_products=self.eigenvalues)
                note = "; ".join(filter(None, [curvature.note, None if pairs.converged else "not converged: a lower bound"]))
                found[name] = Reading(pairs.values[0], "estimated", residual=pairs.residuals[0], note=note or None)
        return layerwise("layerwise_max_eigenvalue", found)

    def __repr__(self) -> str:
        return f"LayerwiseCurvature(samples={self.samples}, eigenvalues={self.eigenvalues}, sub_batch={self.sub_batch})"
