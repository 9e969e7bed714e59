"""Learning rate: of every parameter group, under the largest one the measured curvature allows."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars, stability_factor
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run


def learning_rate(run: Run, ax: Axes) -> None:
    """Draw the learning rate; for gradient descent also the limit f / largest eigenvalue."""
    groups = run.layers("learning_rate")
    needs = ["learning_rate", *(f"learning_rate/{group}" for group in groups)]
    factor = stability_factor(run)
    steps, eigenvalues = scalars(run, "max_eigenvalue")
    positive = eigenvalues > 0
    limited = factor is not None and bool(positive.any())
    # The limit moves over orders of magnitude while the rate stays.
    with panel(run, ax, "Learning rate", unit="e", scale="log" if limited else "auto", needs=needs) as p:
        p.line("learning_rate", label="first group" if groups else None, smoothed=False)
        for index, group in enumerate(groups):
            p.line(f"learning_rate/{group}", label=group, colour=1 + index, smoothed=False)
        if factor and limited:
            p.limit("stability", steps[positive], factor / eigenvalues[positive], f"{short(factor)} / max eigenvalue")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare with the limit that the largest eigenvalue sets, where there is one."""
    values = scalars(run, "learning_rate")[1]
    if not len(values):
        return None
    now = float(values[-1])
    factor, eigenvalue = stability_factor(run), recent(run, "max_eigenvalue", 3)
    if not factor or not eigenvalue or eigenvalue <= 0:
        return Verdict(f"{short(now)}" + ("" if now == values[0] else f", began at {short(float(values[0]))}"))
    share = now * eigenvalue / factor
    if share > 1.5:
        return Verdict(f"{short(now)} is {short(share, 2)} times the limit {short(factor / eigenvalue)}", "trouble")
    if share > 0.9:
        return Verdict(f"{short(now)}, at the limit {short(factor / eigenvalue)}: edge of stability", "watch")
    return Verdict(f"{short(now)}, limit {short(factor / eigenvalue)}", "healthy")
