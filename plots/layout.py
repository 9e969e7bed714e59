"""Layouts: which gauges stand where, on the cockpit page and on those behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from matplotlib.axes import Axes

from cockpit_lite.plots.activation_mean import activation_mean
from cockpit_lite.plots.activation_std import activation_std
from cockpit_lite.plots.alpha import alpha
from cockpit_lite.plots.attention import attention
from cockpit_lite.plots.cabs import cabs
from cockpit_lite.plots.condition import condition
from cockpit_lite.plots.conflicting_samples import conflicting_samples
from cockpit_lite.plots.curvature_along_gradient import curvature_along_gradient
from cockpit_lite.plots.curvature_noise import curvature_noise
from cockpit_lite.plots.dead_units import dead_units
from cockpit_lite.plots.distance import distance
from cockpit_lite.plots.early_stopping import early_stopping
from cockpit_lite.plots.effective_rank import effective_rank
from cockpit_lite.plots.eigenvector_overlap import eigenvector_overlap
from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.ggn_diagonal import ggn_diagonal
from cockpit_lite.plots.ggn_trace import ggn_trace
from cockpit_lite.plots.grad_hist_1d import grad_hist_1d
from cockpit_lite.plots.grad_hist_2d import grad_hist_2d
from cockpit_lite.plots.grad_norm import grad_norm
from cockpit_lite.plots.gradient_alignment import gradient_alignment
from cockpit_lite.plots.gradient_noise_scale import gradient_noise_scale
from cockpit_lite.plots.gradient_scale import gradient_scale
from cockpit_lite.plots.gradient_tests import gradient_tests
from cockpit_lite.plots.gsnr import gsnr
from cockpit_lite.plots.hardest_samples import hardest_samples
from cockpit_lite.plots.hessian_diagonal import hessian_diagonal
from cockpit_lite.plots.hessian_trace import hessian_trace
from cockpit_lite.plots.label_noise import label_noise
from cockpit_lite.plots.layerwise_curvature import layerwise_curvature
from cockpit_lite.plots.learning_rate import learning_rate
from cockpit_lite.plots.loss import loss
from cockpit_lite.plots.max_eigenvalue import max_eigenvalue
from cockpit_lite.plots.min_eigenvalue import min_eigenvalue
from cockpit_lite.plots.reading import reading
from cockpit_lite.plots.residual_growth import residual_growth
from cockpit_lite.plots.saturation import saturation
from cockpit_lite.plots.sharpness_limit import sharpness_limit
from cockpit_lite.plots.spectral_density import spectral_density
from cockpit_lite.plots.step_time import step_time
from cockpit_lite.plots.tangent_kernel import tangent_kernel
from cockpit_lite.plots.tic_trace import tic_trace
from cockpit_lite.plots.trust_ratio import trust_ratio
from cockpit_lite.plots.update_ratio import update_ratio
from cockpit_lite.plots.update_size import update_size
from cockpit_lite.plots.validation_overlap import validation_overlap
from cockpit_lite.plots.wiring import CHECKS as WIRING_CHECKS
from cockpit_lite.plots.wiring import wiring
from cockpit_lite.plugins import GAUGES, plugins
from cockpit_lite.run import Run

Gauge = Callable[[Run, Axes], None]


@dataclass(frozen=True)
class Layout:
    """Columns of gauges under a heading each.

    Attributes:
        columns: Headings and gauges.
        wide: One wide gauge below, with the list of alerts beside it.
    """

    columns: tuple[tuple[str, tuple[Gauge, ...]], ...]
    wide: Gauge | None = None

    def gauges(self) -> tuple[Gauge, ...]:
        """Return every gauge of it."""
        found = tuple(gauge for _, gauges in self.columns for gauge in gauges)
        return found if self.wide is None else (*found, self.wide)


OVERVIEW = Layout(
    columns=(
        ("STEP SIZE", (learning_rate, update_ratio, alpha)),
        ("GRADIENTS", (grad_norm, gradient_tests, gradient_noise_scale)),
        ("CURVATURE", (curvature_along_gradient, max_eigenvalue, hessian_trace)),
    ),
    wide=loss,
)

GRADIENTS = Layout(
    columns=(
        ("DO THE SAMPLES AGREE", (gsnr, gradient_alignment, conflicting_samples, hardest_samples, grad_hist_1d)),
        ("IS THE BATCH LARGE ENOUGH", (gradient_tests, gradient_noise_scale, cabs, grad_hist_2d)),
        ("IS THERE MORE TO LEARN", (early_stopping, distance, update_size, tangent_kernel)),
    )
)

LAYERS = Layout(
    columns=(
        ("SIGNAL", (activation_std, activation_mean, effective_rank)),
        ("UNITS", (dead_units, saturation, reading("gsnr", "Signal to noise", "by layer"))),
        (
            "GRADIENT AND STEP",
            (
                gradient_scale,
                reading("grad_norm", "Gradient norm", "by layer"),
                reading("update_ratio", "Update ratio", "by layer"),
            ),
        ),
    )
)

CURVATURE = Layout(
    columns=(
        ("HOW SHARP", (max_eigenvalue, sharpness_limit, hessian_trace)),
        ("WHICH DIRECTIONS", (min_eigenvalue, eigenvector_overlap, layerwise_curvature)),
        ("WHAT IT COSTS", (curvature_along_gradient, trust_ratio, curvature_noise)),
    )
)

SPECTRUM = Layout(
    columns=(
        ("HOW THE CURVATURE IS SPREAD", (spectral_density, condition)),
        ("WITHOUT THE BENDS OF THE MODEL", (ggn_trace, ggn_diagonal)),
        ("BY WEIGHT, AND ON NEW DATA", (hessian_diagonal, tic_trace)),
    )
)

CHECKS = Layout(
    columns=(
        ("IS IT PUT TOGETHER RIGHT", (wiring, residual_growth)),
        ("ARE THE DATA SOUND", (label_noise, validation_overlap)),
        ("WHAT DO THE HEADS SEE", (attention,)),
    )
)

#: The pages behind the overview, by name; gauges of readings that are on none of them are gathered by :func:`pages`.
PAGES: dict[str, Layout] = {
    "gradients": GRADIENTS,
    "layers": LAYERS,
    "curvature": CURVATURE,
    "spectrum": SPECTRUM,
    "checks": CHECKS,
}

#: Gauge -> the readings it shows beside the one of its own name.
SHOWN_BY: dict[str, tuple[str, ...]] = {
    "gradient_tests": ("norm_test", "inner_product_test", "orthogonality_test"),
    "gradient_noise_scale": (
        "batch_size",
        "suggested_batch_size",
        "suggested_batch_size_lower",
        "suggested_batch_size_upper",
    ),
    "hardest_samples": ("hardest_by_gradient", "hardest_by_loss"),
    "gradient_scale": ("gradient_growth",),
    "grad_hist_1d": ("grad_hist_1d_bins",),
    "grad_hist_2d": ("grad_hist_2d_bins",),
    "tangent_kernel": ("tangent_kernel_growth",),
    "grad_norm": ("grad_norm_clipped",),
    "curvature_along_gradient": ("taylor_gradient_term", "taylor_curvature_term"),
    "min_eigenvalue": ("max_magnitude_eigenvalue",),
    "sharpness_limit": ("sharpness_ratio", "max_learning_rate"),
    "eigenvector_overlap": ("gradient_in_top_subspace",),
    "spectral_density": ("flat_directions",),
    "condition": ("outliers_over_bulk",),
    "hessian_diagonal": ("negative_curvature",),
    "tic_trace": ("tic_diag",),
    "step_time": ("overhead",),
    "wiring": tuple(WIRING_CHECKS),
    "attention": ("attention_entropy", "attention_logit"),
    "label_noise": ("batch_accuracy",),
    "validation_overlap": ("validation_samples",),
}

#: The loss has these beside it, whatever they are called.
_WITH_THE_LOSS = ("loss", "accuracy")

#: Gauges a page of the rest holds, and how many another page must have.
_COLUMNS, _ROWS, _FEWEST = 4, 5, 3


def pages(run: Run) -> dict[str, Layout]:
    """Return the pages behind the overview, by name: together with it they show all readings of the run.

    They hold the gauges of what was measured, or was to be and could not; instruments that were not switched on leave no gap.
    """
    measured = {name.partition("/")[0] for name in run.names}
    found: dict[str, Layout] = {}
    rest: list[Gauge] = [step_time]
    for name, layout in PAGES.items():
        columns = tuple((heading, _wanted(gauges, measured | run.not_measured.keys())) for heading, gauges in layout.columns)
        page = Layout(tuple(column for column in columns if column[1]))
        if len(page.gauges()) >= _FEWEST and shown(page) & measured - shown(OVERVIEW):
            found[name] = page
        else:
            rest += page.gauges()
    placed = shown(OVERVIEW).union(*(shown(layout) for layout in PAGES.values()), shown_by(step_time))
    numbers = {name.partition("/")[0] for name in run.names if len(scalars(run, name)[0])}  # arrays need a gauge of their own
    others = plugins(GAUGES)
    rest += [others[name] for name in sorted(others) if name in measured - placed]
    rest += [reading(name) for name in sorted(numbers - placed - others.keys()) if not name.endswith(_WITH_THE_LOSS)]
    new = measured.difference(shown(OVERVIEW), *(shown(layout) for layout in found.values()))
    rest = list({gauge.__name__: gauge for gauge in reversed(_wanted(rest, new))}.values())[::-1]
    for number in range(0, len(rest), _COLUMNS * _ROWS):
        part = rest[number : number + _COLUMNS * _ROWS]
        columns = tuple(
            ("" if start else "MORE READINGS", tuple(part[start::_COLUMNS])) for start in range(min(_COLUMNS, len(part)))
        )
        found["more" if not number else f"more {number // (_COLUMNS * _ROWS) + 1}"] = Layout(columns)
    return found


def _wanted(gauges: Iterable[Gauge], readings: Set[str]) -> tuple[Gauge, ...]:
    """Return the gauges that show at least one of the readings."""
    return tuple(gauge for gauge in gauges if shown_by(gauge) & readings)


def shown(layout: Layout) -> set[str]:
    """Return the readings that a layout shows."""
    return set().union(*(shown_by(gauge) for gauge in layout.gauges()))


def shown_by(gauge: Gauge) -> set[str]:
    """Return the readings that a gauge shows."""
    name = getattr(gauge, "__name__", "")
    return {name, *SHOWN_BY.get(name, ())}
