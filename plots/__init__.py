"""Gauges and the cockpit page: pictures of a run, read from its log. Knows no torch.

Each gauge is a function ``name(run, ax)`` that draws on any axes, in a file of its name; calling it again with the same axes
updates the picture::

    from cockpit_lite import load_run, plots

    plots.grad_norm(load_run("runs/mine"), ax)

Readings that are drawn together have the same gauge under each of their names. ``plots.reading("any_reading")`` is the gauge of
what has none of its own.
"""

from cockpit_lite.plots.activation_mean import activation_mean
from cockpit_lite.plots.activation_std import activation_std
from cockpit_lite.plots.alpha import alpha
from cockpit_lite.plots.animate import animate
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
from cockpit_lite.plots.layout import CHECKS, CURVATURE, GRADIENTS, LAYERS, OVERVIEW, PAGES, Layout, pages
from cockpit_lite.plots.learning_rate import learning_rate
from cockpit_lite.plots.loss import loss
from cockpit_lite.plots.max_eigenvalue import max_eigenvalue
from cockpit_lite.plots.min_eigenvalue import min_eigenvalue
from cockpit_lite.plots.page import Page, save_page
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
from cockpit_lite.plots.wiring import wiring

norm_test = inner_product_test = orthogonality_test = gradient_tests
overhead = step_time
tic_diag = tic_trace

__all__ = [
    "CHECKS",
    "CURVATURE",
    "GRADIENTS",
    "LAYERS",
    "OVERVIEW",
    "PAGES",
    "Layout",
    "Page",
    "activation_mean",
    "activation_std",
    "alpha",
    "animate",
    "attention",
    "cabs",
    "condition",
    "conflicting_samples",
    "curvature_along_gradient",
    "curvature_noise",
    "dead_units",
    "distance",
    "early_stopping",
    "effective_rank",
    "eigenvector_overlap",
    "ggn_diagonal",
    "ggn_trace",
    "grad_hist_1d",
    "grad_hist_2d",
    "grad_norm",
    "gradient_alignment",
    "gradient_noise_scale",
    "gradient_scale",
    "gradient_tests",
    "gsnr",
    "hardest_samples",
    "hessian_diagonal",
    "hessian_trace",
    "label_noise",
    "layerwise_curvature",
    "learning_rate",
    "loss",
    "max_eigenvalue",
    "min_eigenvalue",
    "pages",
    "reading",
    "residual_growth",
    "saturation",
    "save_page",
    "sharpness_limit",
    "spectral_density",
    "step_time",
    "tangent_kernel",
    "tic_trace",
    "trust_ratio",
    "update_ratio",
    "update_size",
    "validation_overlap",
    "wiring",
]
