"""Largest eigenvalue of the Hessian: the curvature in the sharpest direction.

Formula: ``max over unit vectors v of v'Hv``, algebraic (the largest, not the largest in magnitude), by Lanczos started from
the eigenvector of the last measurement. The residual ``‖Hv - value v‖`` says how good the eigenpair is.

A bad value: plain gradient descent with learning rate e is stable along a direction only while its curvature stays below
``2/e``. Full-batch training tends to climb up to that limit and hover there (the edge of stability); a value well beyond it
goes with a rising loss. A value that grows without end calls for a smaller learning rate, warm-up or clipping.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

References: C. Lanczos (1950); J. Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of
Stability" (ICLR 2021); F. Dangel et al., "Cockpit" (NeurIPS 2021).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cockpit_lite.curvature import Curvature, top_eigenpair
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings

if TYPE_CHECKING:
    from cockpit_lite.step import Step

# What is mixed into the last eigenvector, in its length. Lanczos could not leave it once another one has overtaken it: the
# gradient holds much of whatever eigenvector is coming up, the noise a little of everything.
_GRADIENT = 0.5
_NOISE = 0.1


class MaxEigenvalue(Instrument):
    """Largest eigenvalue of the Hessian of the mini-batch loss.

    Keeps one vector of the size of the model between measurements and holds up to ``max_products`` of them, but no more
    than fit in ``memory`` bytes, while it measures; with fewer vectors Lanczos restarts and needs more products for the
    same precision.

    Args:
        tolerance: Stop when the residual is below this share of the eigenvalue. The error is of the order of its square
            where the eigenvalue stands apart: about 0.1 % with the default.
        max_products: Spend no more Hessian-vector products than this on a measurement, at least 2.
        memory: Bytes that the vectors may take while measuring.
    """

    name = "max_eigenvalue"
    needs = (CURVATURE,)
    preset = "full"

    def __init__(self, tolerance: float = 3e-2, max_products: int = 12, memory: int = 2**31):
        if not tolerance > 0:
            raise SetupError(f"MaxEigenvalue(tolerance={tolerance}): must be above 0.")
        if max_products < 2:
            raise SetupError(f"MaxEigenvalue(max_products={max_products}): at least 2 are needed.")
        self.tolerance = tolerance
        self.max_products = max_products
        self.memory = memory
        self._eigenvector: Tensor | None = None
        self._shapes: list[torch.Size] = []

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        start = self._start(curvature)
        vectors = max(2, self.memory // (start.numel() * start.element_size()))
        pair = top_eigenpair(
            curvature.product, start, tolerance=self.tolerance, max_products=self.max_products, max_vectors=vectors
        )
        self._eigenvector = pair.vector if math.isfinite(pair.value) else None
        notes = [note for note in (curvature.note, None if pair.converged else "not converged: a lower bound") if note]
        return {self.name: Reading(pair.value, "estimated", residual=pair.residual, note="; ".join(notes) or None)}

    def _start(self, curvature: Curvature) -> Tensor:
        """Return the last eigenvector, or the gradient the first time, with something to leave it by."""
        shapes = [parameter.shape for parameter in curvature.parameters.values()]
        gradient = curvature.flat_gradient()
        noise = torch.randn(gradient.shape, generator=curvature.generator, device=gradient.device, dtype=gradient.dtype)
        # A gradient that is zero or not finite is no start; then the noise alone is.
        start = _unit(torch.nan_to_num(gradient, posinf=0.0, neginf=0.0))
        if self._eigenvector is not None and shapes == self._shapes:
            known = self._eigenvector.to(gradient)
            start = known + torch.copysign(start.new_full((), _GRADIENT), known @ start) * start
        self._shapes = shapes
        return start + _NOISE * _unit(noise)

    def __repr__(self) -> str:
        return f"MaxEigenvalue(tolerance={self.tolerance}, max_products={self.max_products})"


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(vector.dtype).tiny)
