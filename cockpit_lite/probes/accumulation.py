"""Which part of an accumulated gradient a backward pass is: micro-batches are told from several losses of one forward pass.

The curvature of a step that comes in k micro-batches is estimated by that of the first one, times k: the loss of a micro-batch is
a k-th part of the objective, as the user weighs it. Of several losses of one forward pass, the first says nothing of the others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cockpit_lite.curvature.forward_probe import nodes_behind
from cockpit_lite.curvature.second_forward import ForwardCall


class Accumulation:
    """Looks at the backward passes of one step.

    Args:
        expected: How many there were on the last step.
    """

    def __init__(self, expected: int):
        self._expected = expected
        self._first: set[Any] = set()
        self._shared = False

    @property
    def note(self) -> str | None:
        """What a reader of values from the first backward pass should know."""
        return f"of the first of {self._expected} micro-batches" if self._expected > 1 else None

    def scale(self, scale: float | Tensor | None) -> float | Tensor | None:
        """Return what makes the first loss an estimate of the whole objective when it is divided by it.

        Args:
            scale: What a gradient scaler multiplied the loss with.
        """
        if self._expected == 1:
            return scale
        return 1 / self._expected if scale is None else scale / self._expected

    def begin(self, call: ForwardCall | None) -> None:
        """Remember the forward pass that the first loss came from."""
        if self._expected > 1 and call is not None:
            self._first = {output.grad_fn for output in call.outputs()} - {None}

    def follow(self, loss: Tensor) -> None:
        """Look where a later loss comes from."""
        self._shared = self._shared or bool(self._first and nodes_behind(loss) & self._first)

    def obstacle(self, backwards: int) -> str | None:
        """Return why the first backward pass does not speak for the step, or None.

        Args:
            backwards: How many there were.
        """
        if backwards == self._expected and (backwards == 1 or (self._first and not self._shared)):
            return None
        return several_backwards(backwards)


def several_backwards(count: int) -> str:
    """Return why what one backward pass says is not known of the step; it completes "not measured, because ..."."""
    return (
        f"the step's gradient comes from {count} backward passes (accumulation or several losses), "
        "and the curvature of one of them is not that of the step"
    )
