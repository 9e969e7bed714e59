"""The shape of a rule: a BackPACK module extension with one method a parameter.

A rule answers in what form the per-sample gradients of a parameter come (see :mod:`cockpit_lite.probes.per_sample.forms`). Axis 0 of
``module.input0`` and of ``g_out[0]`` is the batch. All methods have BackPACK's signature ``(ext, module, g_inp, g_out, bpQuantities)``::

    class PerSampleScale(Rule):
        parameters = ("scale",)

        def scale(self, ext, module, g_inp, g_out, bpQuantities):
            return ext.measure(Dense((module.input0 * g_out[0]).flatten(1).sum(1)), module.scale)
"""

from __future__ import annotations

from typing import Any, ClassVar

from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn

from cockpit_lite.probes.per_sample.forms import Dense


class NoRule(Exception):  # noqa: N818  # a rule's way to say no, not an error
    """Raised by a rule for a configuration it does not cover; the message is the reason."""


class Rule(FirstOrderModuleExtension):
    """Base class of all rules.

    Attributes:
        parameters: Names of the parameters, each with a method of that name.
    """

    parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__(params=list(self.parameters))

    def trailing_axes(self, module: nn.Module) -> tuple[int, int] | None:
        """Return how many last axes of input and output are special, if all axes before them are alike; otherwise None.

        The batch may then be any of the leading axes, or be spread over them.
        """
        return None

    def batch_axis(self, module: nn.Module) -> int:
        """Return the axis of input and output that holds the samples."""
        return 0


def channel_sums(values: Tensor) -> Dense:
    """Return (N, C) from (N, C, *): the sum over everything behind the channels."""
    return Dense(values.flatten(2).sum(2) if values.dim() > 2 else values)


def trailing_sums(values: Tensor, shape: Any) -> Dense:
    """Return (N, *shape) from (N, *, *shape): the sum over everything between the batch and the trailing axes."""
    between = tuple(range(1, values.dim() - len(shape)))
    return Dense(values.sum(between) if between else values)
