"""Curvature on the graph that the user's own forward pass left behind: no second forward, the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.front import prediction_front
from cockpit_lite.curvature.loss_graph import LossGraph
from cockpit_lite.curvature.obstacles import NoSecondDerivative, check_loss, check_nodes, trust_note
from cockpit_lite.errors import NotMeasured


class OwnGraph(LossGraph):
    """The gradient of ``loss``, bit-equal to the user's, and its derivatives.

    Args:
        loss: The root of the graph.
        parameters: What is differentiated by.
        model: Searched for backward hooks.
        outputs: What the model returned; None: its call was not seen, and there are no Gauss-Newton products.

    Raises:
        NotMeasured: if the loss cannot be differentiated beside the user's backward.
    """

    def __init__(
        self, loss: Tensor, parameters: Sequence[nn.Parameter], model: nn.Module | None, outputs: Sequence[Tensor] | None = None
    ):
        check_loss(loss, model)
        custom_functions = check_nodes([loss])
        self.parameters, self.root = parameters, loss
        self.outputs, self.without_outputs = _predictions(loss, parameters, outputs)
        if self.outputs:
            # In two parts, so that the gradient can be differentiated by what the loss sends back, too.
            self.seeds = torch.autograd.grad(loss, self.outputs, create_graph=True)
            self.slopes = torch.autograd.grad(self.outputs, parameters, self.seeds, create_graph=True, allow_unused=True)
        else:
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


def _predictions(
    loss: Tensor, parameters: Sequence[nn.Parameter], outputs: Sequence[Tensor] | None
) -> tuple[Sequence[Tensor], str]:
    """Return the outputs that the loss was made of; if there are none, also why."""
    if outputs is None:
        return (), "the call of the model was not seen, and without its outputs there is no Gauss-Newton matrix"
    try:
        return [outputs[index] for index in prediction_front(loss, outputs, parameters)], ""
    except NotMeasured as reason:
        return (), f"{reason}, so there is no Gauss-Newton matrix"
