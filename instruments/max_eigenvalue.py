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

# Share of noise in the start vector: Lanczos could not leave the old eigenvector once another one has overtaken it.
_NOISE = 0.1


class MaxEigenvalue(Instrument):
    """Largest eigenvalue of the Hessian of the mini-batch loss.

    Keeps one vector of the size of the model between measurements and holds up to ``max_products`` of them, but no more
    than fit in ``memory`` bytes, while it measures; with fewer vectors Lanczos restarts and needs more products for the
    same precision.

    Args:
        tolerance: Stop when the residual is below this share of the eigenvalue.
        max_products: Spend no more Hessian-vector products than this on a measurement, at least 2.
        memory: Bytes that the vectors may take while measuring.
    """

    name = "max_eigenvalue"
    needs = (CURVATURE,)

    def __init__(self, tolerance: float = 1e-2, max_products: int = 12, memory: int = 2**31):
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
        exact = pair.converged and pair.residual == 0.0
        notes = [note for note in (curvature.note, None if pair.converged else "not converged: a lower bound") if note]
        kind = "exact" if exact else "estimated"
        return {self.name: Reading(pair.value, kind, residual=pair.residual, note="; ".join(notes) or None)}

    def _start(self, curvature: Curvature) -> Tensor:
        """Return the last eigenvector, or the gradient the first time, with a little noise."""
        shapes = [parameter.shape for parameter in curvature.parameters.values()]
        gradient = curvature.flat_gradient()
        known = self._eigenvector if shapes == self._shapes else None
        self._shapes = shapes
        start = torch.nan_to_num(gradient) if known is None else known.to(gradient)
        noise = torch.randn(gradient.shape, generator=curvature.generator, device=gradient.device, dtype=gradient.dtype)
        # A gradient of zero is no start; then the noise alone is.
        length = torch.linalg.vector_norm(start).clamp_min(torch.finfo(start.dtype).tiny)
        return start / length + noise * (_NOISE / torch.linalg.vector_norm(noise))

    def __repr__(self) -> str:
        return f"MaxEigenvalue(tolerance={self.tolerance}, max_products={self.max_products})"
