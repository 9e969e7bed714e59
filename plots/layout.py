"""Layouts: which gauges stand where on the cockpit page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes

from cockpit_lite.plots.curvature_along_gradient import curvature_along_gradient
from cockpit_lite.plots.grad_norm import grad_norm
from cockpit_lite.plots.gradient_noise_scale import gradient_noise_scale
from cockpit_lite.plots.gradient_tests import gradient_tests
from cockpit_lite.plots.hessian_trace import hessian_trace
from cockpit_lite.plots.learning_rate import learning_rate
from cockpit_lite.plots.loss import loss
from cockpit_lite.plots.max_eigenvalue import max_eigenvalue
from cockpit_lite.plots.update_ratio import update_ratio
from cockpit_lite.plots.update_size import update_size
from cockpit_lite.run import Run

Gauge = Callable[[Run, Axes], None]


@dataclass(frozen=True)
class Layout:
    """Columns of gauges under a heading each, and one wide gauge below with the list of alerts beside it."""

    columns: tuple[tuple[str, tuple[Gauge, ...]], ...]
    wide: Gauge


OVERVIEW = Layout(
    columns=(
        ("STEP SIZE", (learning_rate, update_ratio, update_size)),
        ("GRADIENTS", (grad_norm, gradient_tests, gradient_noise_scale)),
        ("CURVATURE", (curvature_along_gradient, max_eigenvalue, hessian_trace)),
    ),
    wide=loss,
)
