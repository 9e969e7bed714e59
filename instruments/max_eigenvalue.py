"""Largest eigenvalue of the Hessian: the curvature in the sharpest direction.

Formula: ``max over unit vectors v of v'Hv``, algebraic (the largest, not the largest in magnitude), by a search in a small
subspace that begins with the gradient and the eigenvector of the last measurement. The residual ``‖Hv - value v‖`` says how
good the eigenpair is; the value is off by about its square over the gap to the next eigenvalue, and never too large.

A bad value: plain gradient descent with learning rate e is stable along a direction only while its curvature stays below
``2/e``. Full-batch training tends to climb up to that limit and hover there (the edge of stability); a value well beyond it
goes with a rising loss. A value that grows without end calls for a smaller learning rate, warm-up or clipping.

It is that of the whole mini-batch. ``sub_batch=`` takes some of its samples, at a share of the price: a quarter of a batch has a
largest eigenvalue that is too large by some tenths, early in training and where few samples dominate by more than its value. The
standard error then is of the samples' spread along the eigenvector, and does not hold this bias.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

References: C. Lanczos (1950); J. Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of
Stability" (ICLR 2021); F. Dangel et al., "Cockpit" (NeurIPS 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit_lite.curvature import MEMORY
from cockpit_lite.curvature.sub_batch import check
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings

if TYPE_CHECKING:
    from cockpit_lite.step import Step


class MaxEigenvalue(Instrument):
    """Largest eigenvalue of the Hessian of the mini-batch loss.

    Shares its products with every instrument that asks for eigenvalues on the same step, keeps one vector of the size of the
    model between measurements, and holds two for each product, but no more than fit in ``memory`` bytes, while it measures;
    with fewer vectors it needs more products for the same precision.

    Args:
        tolerance: Stop when the estimated error of the value is below this share of it.
        max_products: Spend no more Hessian-vector products than this on a measurement, at least 2.
        memory: Bytes that the vectors may take while measuring.
        sub_batch: Estimate it from so many samples of the batch, or from a share of it below 1; None: take all.
    """

    name = "max_eigenvalue"
    needs = (CURVATURE,)
    preset = "full"

    def __init__(self, tolerance: float = 1e-2, max_products: int = 12, memory: int = MEMORY, sub_batch: float | None = None):
        if not tolerance > 0:
            raise SetupError(f"MaxEigenvalue(tolerance={tolerance}): must be above 0.")
        if max_products < 2:
            raise SetupError(f"MaxEigenvalue(max_products={max_products}): at least 2 are needed.")
        self.tolerance = tolerance
        self.max_products = max_products
        check("MaxEigenvalue", sub_batch)
        self.memory = memory
        self.sub_batch = sub_batch

    def measure(self, step: Step) -> Readings:
        curvature, known = step.curvature.sub_batch_or_all(self.sub_batch)
        curvature.krylov.limit(self.memory)
        found = curvature.top_eigenpairs(tolerance=self.tolerance, max_products=self.max_products)
        kind = "sub-batch" if curvature.samples else "estimated"
        notes = [known, "too large by the bias of few samples" if curvature.samples else None]
        notes.append(None if found.converged else "not converged: a lower bound")
        note, error = "; ".join(filter(None, notes)) or None, curvature.sub_batch_error(found.vectors[0])
        return {self.name: Reading(found.values[0], kind, standard_error=error, residual=found.residuals[0], note=note)}

    def __repr__(self) -> str:
        return f"MaxEigenvalue(tolerance={self.tolerance}, max_products={self.max_products}, sub_batch={self.sub_batch})"
