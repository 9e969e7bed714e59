"""Smallest eigenvalue of the Hessian: how much the loss bends down somewhere, and the eigenvalue of largest magnitude.

    min_eigenvalue           = min over unit vectors v of v'Hv         algebraic: the most negative one, if any is negative
    max_magnitude_eigenvalue = the eigenvalue furthest from zero, with its sign
    min_magnitude_eigenvalue = the eigenvalue nearest to zero, with its sign

The largest (``max_eigenvalue``) and the smallest are the ends of the spectrum; the largest magnitude is at one of them. That is
what a power iteration finds, which for a Hessian may be a negative eigenvalue where the largest was wanted. The smallest
magnitude is inside the bulk around zero, where a few products show nothing: it is there for models of a dozen weights only, and
is no measure of conditioning for others; see ``condition``.

A bad value: at the start of training and near saddle points some negative curvature is normal, of the order of a tenth of the
largest eigenvalue or less; gradient descent leaves along it by itself. A minimum that is as negative as the largest is positive,
for many steps: the loss is dominated by what is not convex in the output, or by few examples that are badly wrong.

Estimates with their residuals; the smallest Ritz value is never below the true smallest eigenvalue, and by default it may be
above it by a tenth of the largest magnitude: late in training, where the largest has grown, read it as a sign that something
bends down. They share the search of ``max_eigenvalue``. Under ReLU the curvature in the kinks is invisible: this is the Hessian
of the smooth piece that the weights are in. Its Gauss-Newton part has no negative eigenvalue, so the negative ones are what
bends in the model itself.

References: C. Lanczos, 1950; L. Sagun, U. Evci, V. Guney, Y. Dauphin, L. Bottou, Empirical Analysis of the Hessian of
Over-Parametrized Neural Networks, 2017.
"""

from __future__ import annotations

from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings
from cockpit_lite.step import Step


class MinEigenvalue(Instrument):
    """Writes ``min_eigenvalue`` and ``max_magnitude_eigenvalue``; ``min_magnitude_eigenvalue`` where the search saw everything.

    Keeps one vector of the size of the model between measurements.

    Args:
        tolerance: Stop when the estimated error of the smallest is below this share of the largest magnitude.
        max_products: Spend no more Hessian-vector products than this on the shared search, at least 2.
    """

    name = "min_eigenvalue"
    needs = (CURVATURE,)
    readings = ("min_eigenvalue", "max_magnitude_eigenvalue")
    preset = "full"

    def __init__(self, tolerance: float = 1e-1, max_products: int = 6):
        if not tolerance > 0:
            raise SetupError(f"MinEigenvalue(tolerance={tolerance}): must be above 0.")
        if max_products < 2:
            raise SetupError(f"MinEigenvalue(max_products={max_products}): at least 2 are needed.")
        self.tolerance = tolerance
        self.max_products = max_products

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        top = curvature.top_eigenpairs(tolerance=self.tolerance, max_products=self.max_products)
        highest = top.values[0], top.residuals[0]
        del top  # its vector is as large as the model
        bottom = curvature.bottom_eigenpairs(tolerance=self.tolerance, max_products=self.max_products)
        lowest = bottom.values[0], bottom.residuals[0]
        magnitude, residual = max(highest, lowest, key=lambda pair: abs(pair[0]))
        note = "; ".join(filter(None, [curvature.note, None if bottom.converged else "not converged: an upper bound"])) or None
        readings = {
            "min_eigenvalue": Reading(lowest[0], "estimated", residual=lowest[1], note=note),
            "max_magnitude_eigenvalue": Reading(magnitude, "estimated", residual=residual, note=curvature.note),
        }
        everything = curvature.krylov.ritz_values
        if len(everything) == curvature.dimension:
            readings["min_magnitude_eigenvalue"] = Reading(min(everything, key=abs), "estimated", note=curvature.note)
        return readings

    def __repr__(self) -> str:
        return f"MinEigenvalue(tolerance={self.tolerance}, max_products={self.max_products})"
