"""Gradient tests: is the batch large enough for the gradient to point the right way?

The norm test, the inner-product test and the orthogonality test compare the scatter of the per-sample gradients with the
gradient itself (Byrd 2012; Bollapragada 2017). Above its limit a test says that noise dominates the step.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Limits used by Bollapragada 2017; the one of orthogonality is tan 80 degrees.
INNER_LIMIT, ORTHOGONALITY_LIMIT = 0.9, 5.84
_TESTS = {"norm_test": "norm", "inner_product_test": "inner product", "orthogonality_test": "orthogonality"}
_LEGEND = ("norm", "inner", "orthogonal")


def gradient_tests(run: Run, ax: Axes) -> None:
    """Draw the three tests on one logarithmic axis; what is shaded lets the gradient be trusted."""
    with panel(run, ax, "Gradient tests", scale="log", needs=list(_TESTS)) as p:
        if p.missing:
            return
        for index, (name, label) in enumerate(zip(_TESTS, _LEGEND, strict=True)):
            p.line(name, label=label, colour=index)
        p.healthy(0.0, INNER_LIMIT)
        p.level("limit", INNER_LIMIT, f"limit {INNER_LIMIT:g}")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the signal or the noise dominates, by the inner-product test (the one about descent) or else the norm test."""
    if broken := not_finite(run, *_TESTS):
        return broken
    found = {name: value for name in _TESTS if (value := recent(run, name)) is not None}
    name = next((name for name in ("inner_product_test", "norm_test") if name in found), None)
    if name is None:
        return Verdict(f"orthogonality {short(found['orthogonality_test'], 2)}") if found else None
    value = found[name]
    text = f"{_TESTS[name]} test {short(value, 2)}"
    if value > INNER_LIMIT:
        return Verdict(f"{text}: noise dominates, larger batches would help", "watch")
    if found.get("orthogonality_test", 0.0) > ORTHOGONALITY_LIMIT:
        return Verdict(f"{text}, orthogonality {short(found['orthogonality_test'], 2)}: mostly sideways noise", "watch")
    return Verdict(f"{text}: the batch is large enough to point downhill", "healthy")
