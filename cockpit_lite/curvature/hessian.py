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
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.obstacles import NoSecondDerivative, explain
from cockpit_lite.curvature.own_graph import OwnGraph
from cockpit_lite.curvature.quietly import quietly
from cockpit_lite.curvature.second_forward import ForwardCall, SecondForward
from cockpit_lite.errors import NotMeasured

_Result = TypeVar("_Result")


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
        scale: float | Tensor | None = None,
        forward: ForwardCall | None = None,
    ):
        """Look at ``loss`` just before its backward.

        Args:
            loss: The mini-batch loss with its graph.
            parameters: By name. Those the loss does not depend on count as zero, those that are frozen are left out.
            generator: For random vectors.
            model: Where backward hooks are looked for and buffers are kept safe.
            scale: What a gradient scaler multiplied the loss with, if any; divided out of gradient and products.
            forward: The call of the model that the loss comes from. With it, operations without a second derivative that
                have a twin with one (fused attention) are run a second time, see :class:`SecondForward`.
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
        self._forward = forward
        self._graph: OwnGraph | SecondForward | None = None
        self._failure: str | None = None

    @property
    def dimension(self) -> int:
        """Number of elements of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def note(self) -> str | None:
        """What a reader of the values should know, or None."""
        return "; ".join(self._graph.notes) or None if self._graph is not None else None

    @property
    def gradient(self) -> dict[str, Tensor]:
        """Gradient of the loss by parameter name, detached; zeros for unused parameters.

        Raises:
            NotMeasured: if it cannot be taken beside the user's own backward.
        """
        return dict(zip(self.parameters, self._complete(self._try(lambda graph: graph.slopes)), strict=True))

    def hessian_vector_product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hessian times ``vectors``, one tensor a parameter, in the order of :attr:`parameters`.

        Raises:
            NotMeasured: if an operation of the user's has no second derivative; the message names it.
        """
        products = self._try(lambda graph: graph.multiply(vectors))
        self.products += 1
        return self._complete(products)

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
        self._loss = self._graph = self._forward = None
        self._failure = "the graph of the loss is no longer there"

    def _try(self, use: Callable[[OwnGraph | SecondForward], _Result]) -> _Result:
        """Use the graph, the user's own or else that of a second forward; a failure is final and costs nothing again."""
        if self._failure is not None:
            raise NotMeasured(self._failure)
        try:
            try:
                return self._use(use)
            except NoSecondDerivative:
                if self._forward is None or isinstance(self._graph, SecondForward):
                    raise
                forward, self._forward = self._forward, None
                assert self._loss is not None
                loss, parameters = self._loss, list(self.parameters.values())
                self._graph = self._quietly(lambda: SecondForward(loss, parameters, forward))
                return self._use(use)
        except NotMeasured as obstacle:
            self._failure = str(obstacle)
            raise

    def _use(self, use: Callable[[OwnGraph | SecondForward], _Result]) -> _Result:
        if self._graph is None:
            self._graph = self._quietly(self._open)
        graph = self._graph
        return self._quietly(lambda: use(graph))

    def _open(self) -> OwnGraph:
        assert self._loss is not None
        if not self.parameters:
            raise NotMeasured("no parameter requires a gradient")
        if any(parameter.is_complex() for parameter in self.parameters.values()):
            raise NotMeasured("the model has complex parameters")
        return OwnGraph(self._loss, list(self.parameters.values()), self._model)

    def _quietly(self, work: Callable[[], _Result]) -> _Result:
        buffers = self._model.buffers() if self._model is not None else ()
        try:
            with quietly(self.parameters.values(), buffers):
                return work()
        except RuntimeError as error:
            raise NoSecondDerivative(explain(error)) from error

    def _complete(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        """Write zeros out and divide by the scale of the loss."""
        complete = []
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            tensor = torch.zeros_like(parameter, requires_grad=False) if value is None else value.detach()
            complete.append(tensor if self._scale is None else tensor / self._scale)
        return complete
