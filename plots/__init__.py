"""Gauges and the cockpit page: pictures of a run, read from its log. Knows no torch.

Each gauge is a function ``name(run, ax)`` that draws on any axes, in a file of its name; calling it again with the same axes
updates the picture::

    from cockpit_lite import load_run, plots

    plots.grad_norm(load_run("runs/mine"), ax)
"""

from cockpit_lite.plots.curvature_along_gradient import curvature_along_gradient
from cockpit_lite.plots.grad_norm import grad_norm
from cockpit_lite.plots.gradient_noise_scale import gradient_noise_scale
from cockpit_lite.plots.gradient_tests import gradient_tests
from cockpit_lite.plots.hessian_trace import hessian_trace
from cockpit_lite.plots.layout import OVERVIEW, Layout
from cockpit_lite.plots.learning_rate import learning_rate
from cockpit_lite.plots.loss import loss
from cockpit_lite.plots.max_eigenvalue import max_eigenvalue
from cockpit_lite.plots.page import Page, save_page
from cockpit_lite.plots.step_time import step_time
from cockpit_lite.plots.update_ratio import update_ratio
from cockpit_lite.plots.update_size import update_size

__all__ = [
    "OVERVIEW",
    "Layout",
    "Page",
    "curvature_along_gradient",
    "grad_norm",
    "gradient_noise_scale",
    "gradient_tests",
    "hessian_trace",
    "learning_rate",
    "loss",
    "max_eigenvalue",
    "save_page",
    "step_time",
    "update_ratio",
    "update_size",
]
