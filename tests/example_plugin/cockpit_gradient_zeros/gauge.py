"""A gauge of the zeros in the gradient."""

from matplotlib.axes import Axes

from cockpit_lite.plots.panel import panel
from cockpit_lite.run import Run


def gradient_zeros(run: Run, ax: Axes) -> None:
    """Draw the share of gradient elements that are exactly zero."""
    with panel(run, ax, "Zeros in the gradient", unit="share of elements", needs="gradient_zeros") as p:
        p.line("gradient_zeros")
