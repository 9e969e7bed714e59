r"""Products with the Hessian of one mini-batch loss.

With ``g = grad(loss, parameters)`` taken so that it can be differentiated again, ``H v`` is the derivative of ``g'v``: one
product costs about one or two times a forward and backward pass and no finite difference is involved. (Differences of
gradients are useless for networks with ReLU, whose gradients jump.)

Under ReLU and other piecewise linear activations the Hessian is the one of the linear piece the weights are in: the kinks
carry curvature that no derivative sees. Where the network is piecewise linear in each layer, what is left beside the
Gauss-Newton matrix are only the products between different layers.

Reference: B. Pearlmutter, "Fast exact multiplication by the Hessian" (Neural Computation, 1994).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.obstacles import check_graph, explain
from cockpit_lite.curvature.quietly import quietly
from cockpit_lite.errors import NotMeasured


class Curvature:
    """Second-order view of one mini-batch loss, alive until the user's backward frees the graph.

    Nothing is computed before the first use. The user's gradients, buffers, hooks on parameters and random numbers stay
    as they are, to the bit.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> curvature = Curvature((weight**3).sum(), {"weight": weight}, torch.Generator())
        >>> curvature.hessian_vector_product([torch.tensor([1.0, 1.0])])
        [tensor([ 6., 12.])]

    Attributes:
        parameters: The parameters that require a gradient, by name, each once.
        generator: Generator for random vectors, on the parameters' device; never the global one.
        products: How many Hessian-vector products were spent so far.
    """

    def __init__(
        self,
        loss: Tensor,
        parameters: Mapping[str, nn.Parameter],
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        scale: float | Tensor = 1.0,
    ):
        """Look at ``loss`` just before its backward.

        Args:
            loss: The mini-batch loss with its graph.
            parameters: By name. Those the loss does not depend on count as zero, those that are frozen are left out.
            generator: For random vectors.
            model: Where backward hooks are looked for and buffers are kept safe.
            scale: What a gradient scaler multiplied the loss with; divided out of gradient and products.
        """
        self.generator = generator
        self.products = 0
        self.parameters: dict[str, nn.Parameter] = {}
        known: set[int] = set()
        for name, parameter in parameters.items():
            if parameter.requires_grad and id(parameter) not in known:
                known.add(id(parameter))
                self.parameters[name] = parameter
        self._loss: Tensor | None = loss
        self._model = model
        self._scale = scale
        self._slopes: list[Tensor | None] = []
        self._custom_functions: list[str] = []
        self._opened = False
        self._failure: str | None = None

    @property
    def dimension(self) -> int:
        """Number of elements of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def note(self) -> str | None:
        """What a reader of the values should know, or None."""
        if not self._custom_functions:
            return None
        return "second derivative taken on trust: " + ", ".join(self._custom_functions)

    @property
    def gradient(self) -> dict[str, Tensor]:
        """Gradient of the loss by parameter name, detached; zeros for unused parameters.

        Raises:
            NotMeasured: if it cannot be taken beside the user's own backward.
        """
        self._open()
        return {
            name: torch.zeros_like(parameter, requires_grad=False) if slope is None else slope.detach() / self._scale
            for (name, parameter), slope in zip(self.parameters.items(), self._slopes, strict=True)
        }

    def hessian_vector_product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hessian times ``vectors``, one tensor a parameter, in the order of :attr:`parameters`.

        Raises:
            NotMeasured: if an operation of the user's has no second derivative; the message names it.
        """
        self._open()
        self.products += 1
        # A gradient without a graph is constant in the parameters: its part of the Hessian is exactly zero.
        slopes, weights = [], []
        for slope, vector in zip(self._slopes, vectors, strict=True):
            if slope is not None and slope.requires_grad:
                slopes.append(slope)
                weights.append(vector)
        parameters = list(self.parameters.values())
        products: Sequence[Tensor | None] = [None] * len(parameters)
        if slopes:
            products = self._differentiate(slopes, weights, create_graph=False)
        return [
            torch.zeros_like(parameter, requires_grad=False) if product is None else product / self._scale
            for parameter, product in zip(parameters, products, strict=True)
        ]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one vector of at least single precision, on the device of the first parameter."""
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
        return torch.cat([tensor.detach().reshape(-1).to(tensors[0].device, dtype) for tensor in tensors])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Undo :meth:`flatten`: cut a vector into tensors like the parameters."""
        parameters = list(self.parameters.values())
        pieces = vector.split([parameter.numel() for parameter in parameters])
        return [piece.view_as(parameter).to(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times one long vector (see :meth:`flatten`)."""
        return self.flatten(self.hessian_vector_product(self.unflatten(vector)))

    def flat_gradient(self) -> Tensor:
        """Return :attr:`gradient` as one long vector."""
        return self.flatten(list(self.gradient.values()))

    def release(self) -> None:
        """Let go of the graph; from here on nothing can be measured."""
        self._loss = None
        self._slopes = []
        self._failure = "the graph of the loss is no longer there"

    def _open(self) -> None:
        if self._failure is not None:
            raise NotMeasured(self._failure)
        if self._opened:
            return
        try:
            self._take_gradient()
        except NotMeasured as obstacle:
            self._failure = str(obstacle)
            raise
        self._opened = True

    def _take_gradient(self) -> None:
        assert self._loss is not None
        if not self.parameters:
            raise NotMeasured("no parameter requires a gradient")
        if any(parameter.is_complex() for parameter in self.parameters.values()):
            raise NotMeasured("the model has complex parameters")
        self._custom_functions = check_graph(self._loss, self._model)
        self._slopes = self._differentiate([self._loss], None, create_graph=True)
        if all(slope is None for slope in self._slopes):
            raise NotMeasured("the loss depends on none of the watched parameters")
        if self._custom_functions and not any(slope is not None and slope.requires_grad for slope in self._slopes):
            raise NotMeasured(
                f"the gradient of the custom autograd function {self._custom_functions[0]} cannot be differentiated"
            )

    def _differentiate(self, outputs: list[Tensor], weights: list[Tensor] | None, *, create_graph: bool) -> list[Tensor | None]:
        parameters = list(self.parameters.values())
        buffers = self._model.buffers() if self._model is not None else ()
        try:
            with quietly(parameters, buffers):
                slopes = torch.autograd.grad(
                    outputs, parameters, weights, retain_graph=True, create_graph=create_graph, allow_unused=True
                )
        except RuntimeError as error:
            self._failure = explain(error)
            raise NotMeasured(self._failure) from error
        return list(slopes)
