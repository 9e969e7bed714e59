r"""A loss that can be differentiated twice: what a Hessian- and a Gauss-Newton-vector product are made of.

Let y(theta) be what the model returned, L(y) what the user made of it, J = dy/dtheta and u = dL/dy. With the gradient
``J'u`` taken so that it can be differentiated again, by theta and by u::

    H v  =  d(J'u)/dtheta v                     everything, in one pass
    J v  =  d(J'u)/du v                         linear in u, so this is exact
    G v  =  J' L'' (J v),  L'' w = du/dy w      the Gauss-Newton matrix

G is the Hessian of the loss as if the model were linear around its weights. It has no negative eigenvalue where the loss is
convex in the model's output, as nearly all are; nothing here needs that.

References: B. Pearlmutter, "Fast exact multiplication by the Hessian" (Neural Computation, 1994); N. Schraudolph, "Fast
curvature matrix-vector products for second-order gradient descent" (Neural Computation, 2002).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.errors import NotMeasured

Slopes = Sequence["Tensor | None"]


class LossGraph:
    """Gradient of a loss with a graph of its own, and products with its derivatives.

    Attributes:
        parameters: What is differentiated by.
        slopes: Gradient by parameter; None where the loss does not depend on it.
        outputs: The model's outputs that the loss was made of; empty if they could not be told apart.
        seeds: u, as a function of the outputs.
        without_outputs: Why there are none, as the end of "not measured, because ...".
        root: Where the graph of the model can be walked from.
        notes: What a reader of the values should know.
    """

    parameters: Sequence[nn.Parameter]
    slopes: Slopes
    root: Tensor
    outputs: Sequence[Tensor] = ()
    seeds: Sequence[Tensor] = ()
    without_outputs: str = ""
    notes: Sequence[str] = ()

    def multiply(self, vectors: Sequence[Tensor], positions: Sequence[int] | None = None) -> Slopes:
        """Return the Hessian times ``vectors``, None for zero.

        Args:
            vectors: One for every parameter.
            positions: Of the parameters that the Hessian is restricted to; None: all.
        """
        slopes, parameters = self._restricted(positions)
        return derivative_along(slopes, vectors, parameters)

    def multiply_gauss_newton(self, vectors: Sequence[Tensor], positions: Sequence[int] | None = None) -> Slopes:
        """Return the Gauss-Newton matrix times ``vectors``, None for zero; arguments as of :meth:`multiply`.

        Raises:
            NotMeasured: if the model's outputs are not known.
        """
        _, parameters = self._restricted(positions)
        return self.pull(self.bend(self.push(vectors, positions)), parameters)

    def push(self, vectors: Sequence[Tensor], positions: Sequence[int] | None = None) -> Slopes:
        """Return ``J v``, the derivative of every output along ``vectors``; None where the loss is linear in it."""
        if not self.outputs:
            raise NotMeasured(self.without_outputs)
        slopes, _ = self._restricted(positions)
        bent = [seed for seed in self.seeds if seed.requires_grad]
        moves = iter(derivative_along(slopes, vectors, bent) if bent else ())
        return [next(moves) if seed.requires_grad else None for seed in self.seeds]

    def bend(self, moves: Slopes) -> Slopes:
        """Return ``L'' w`` for one ``w`` an output."""
        kept = [(seed, move) for seed, move in zip(self.seeds, moves, strict=True) if move is not None]
        return derivative_along([seed for seed, _ in kept], [move for _, move in kept], self.outputs)

    def pull(self, pulls: Slopes, parameters: Sequence[nn.Parameter] | None = None) -> Slopes:
        """Return ``J' w`` for one ``w`` an output."""
        kept = [(output, pull) for output, pull in zip(self.outputs, pulls, strict=True) if pull is not None]
        return derivative_along(
            [output for output, _ in kept],
            [pull.to(output) for output, pull in kept],
            self.parameters if parameters is None else parameters,
        )

    def _restricted(self, positions: Sequence[int] | None) -> tuple[Slopes, Sequence[nn.Parameter]]:
        if positions is None:
            return self.slopes, self.parameters
        return [self.slopes[index] for index in positions], [self.parameters[index] for index in positions]


def derivative_along(outputs: Slopes, weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> Slopes:
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
