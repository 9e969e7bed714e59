"""Hessian products on the graph that the user's own forward pass left behind: no second forward, the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.obstacles import NoSecondDerivative, check_loss, check_nodes, trust_note
from cockpit_lite.errors import NotMeasured


class OwnGraph:
    """The gradient of ``loss`` with a graph of its own, and the derivative of that gradient along vectors.

    Attributes:
        slopes: Gradient by parameter; None where the loss does not depend on it. Bit-equal to the user's gradient.
        notes: What a reader of the values should know.

    Raises:
        NotMeasured: if the loss cannot be differentiated beside the user's backward.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[nn.Parameter], model: nn.Module | None):
        check_loss(loss, model)
        custom_functions = check_nodes([loss])
        self._parameters = parameters
        self.slopes = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if any(slope is not None and slope.is_sparse for slope in self.slopes):
            raise NotMeasured("a parameter has a sparse gradient, of which PyTorch has no second derivative")
        if all(slope is None for slope in self.slopes):
            raise NotMeasured("the loss depends on none of the watched parameters")
        if custom_functions and not any(slope is not None and slope.requires_grad for slope in self.slopes):
            raise NoSecondDerivative(
                f"the gradient of the custom autograd function {custom_functions[0]} cannot be differentiated"
            )
        self.notes = trust_note(custom_functions)

    def multiply(self, vectors: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the Hessian times ``vectors``, None for zero."""
        return derivative_along(self.slopes, vectors, self._parameters)


def derivative_along(
    outputs: Sequence[Tensor | None], weights: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return the derivative of ``sum(output * weight)`` by ``inputs``; None where it is zero.

    An output without a graph is constant: its part is exactly zero, as for the gradient of a linear loss.
    """
    curved, used = [], []
    for output, weight in zip(outputs, weights, strict=True):
        if output is not None and output.requires_grad:
            curved.append(output)
            used.append(weight)
    if not curved:
        return [None] * len(inputs)
    return torch.autograd.grad(curved, inputs, used, retain_graph=True, allow_unused=True)
