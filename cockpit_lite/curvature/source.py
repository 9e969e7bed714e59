"""Where products come from: the user's graph if it can be differentiated twice, else that of a second forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.loss_graph import LossGraph, Slopes
from cockpit_lite.curvature.obstacles import NoSecondDerivative, check_loss, explain
from cockpit_lite.curvature.own_graph import OwnGraph
from cockpit_lite.curvature.quietly import Undisturbed
from cockpit_lite.curvature.recurrent import has_slow_nodes
from cockpit_lite.curvature.second_forward import ForwardCall, SecondForward
from cockpit_lite.curvature.sub_batch import SubBatch, choose
from cockpit_lite.curvature.tail import last_layers
from cockpit_lite.curvature.together import Together
from cockpit_lite.errors import NotMeasured

_Result = TypeVar("_Result")


class Source:
    """The graph of one loss, opened on first use; a failure is final and costs nothing again.

    Args:
        loss: With its graph.
        parameters: What is differentiated by.
        model: Where backward hooks are looked for and buffers are kept safe.
        scale: What the loss was multiplied with; divided out of everything.
        forward: The call of the model, for the outputs and for a second forward.
        together: With the other processes, whose parts of the batch count as much; None: there are none.

    Attributes:
        hessian_products: How many products were spent with the Hessian.
        block_products: And with diagonal blocks of it, which cost less.
        gauss_newton_products: And with the Gauss-Newton matrix.
        samples: Which samples of the batch it is estimated from; None: it is that of all.
        undisturbed: What every pass is made in; enter it around many of them to save time.
    """

    def __init__(
        self,
        loss: Tensor,
        parameters: Sequence[nn.Parameter],
        model: nn.Module | None,
        scale: float | Tensor | None,
        forward: ForwardCall | None,
        together: Together | None = None,
    ):
        self.parameters = parameters
        self.hessian_products = self.block_products = self.gauss_newton_products = 0
        self.samples: SubBatch | None = None
        self._loss: Tensor | None = loss
        self.undisturbed = Undisturbed(parameters, model)
        self._model = model
        self._scale = scale
        self._forward = self._call = forward
        self._graph: LossGraph | None = None
        self._failure: str | None = None
        self._together = together

    @property
    def is_open(self) -> bool:
        """Whether there is a graph to take products from."""
        return self._graph is not None

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the values should know."""
        return self._graph.notes if self._graph is not None else ()

    def gradient(self, positions: Sequence[int]) -> list[Tensor]:
        """Return the gradient by these parameters."""

        def take(graph: LossGraph) -> Slopes:
            return [graph.slopes[position] for position in positions]

        return self._of_all(lambda: self._complete(self._try(take), positions), (), positions, "gradient")

    def hessian_product(self, vectors: Sequence[Tensor], positions: Sequence[int]) -> list[Tensor]:
        """Return the block of the Hessian that belongs to these parameters, times ``vectors``."""

        def multiply() -> list[Tensor]:
            products = self._try(lambda graph: graph.multiply(vectors, positions))
            if len(positions) == len(self.parameters):
                self.hessian_products += 1
            else:
                self.block_products += 1
            return self._complete(products, positions)

        return self._of_all(multiply, vectors, positions, "Hessian")

    def gauss_newton_product(self, vectors: Sequence[Tensor], positions: Sequence[int]) -> list[Tensor]:
        """Return the block of the Gauss-Newton matrix that belongs to these parameters, times ``vectors``."""

        def multiply(graph: LossGraph) -> tuple[str, Slopes]:
            # That there are no outputs is no obstacle for the Hessian, so it is no failure of the graph.
            return ("", graph.multiply_gauss_newton(vectors, positions)) if graph.outputs else (graph.without_outputs, ())

        def product() -> list[Tensor]:
            obstacle, products = self._try(multiply)
            if obstacle:
                raise NotMeasured(obstacle)
            self.gauss_newton_products += 1
            return self._complete(products, positions)

        return self._of_all(product, vectors, positions, "Gauss-Newton")

    def of_samples(self, size: float, generator: torch.Generator) -> Source:
        """Return the source of an estimate from some samples, by a forward pass of their own; itself if the batch has no more.

        Args:
            size: Number of samples, or their share of the batch if below 1.
            generator: Decides which ones.

        Raises:
            NotMeasured: if samples meet, or the call of the model is not known or cannot be repeated.
        """
        loss, forward = self._loss, self._call
        if self._failure is not None or loss is None:
            raise NotMeasured(self._failure or "the graph of the loss is no longer there")
        if self._together is not None:
            raise NotMeasured("several processes take all of their samples")
        if forward is None:
            raise NotMeasured("the call of the model was not seen")
        check_loss(loss, self._model)
        reason: NotMeasured | None = None
        for samples in choose(forward.inputs(), size, generator):
            part = copy.copy(self)
            part._failure = None
            part.hessian_products = part.block_products = part.gauss_newton_products = 0
            try:
                part._graph = self._quietly(partial(SecondForward, loss, self.parameters, forward, samples))
            except NotMeasured as obstacle:
                reason = reason or obstacle  # of the likelier axis
            else:
                part.samples = samples
                return part
        if reason is None:
            return self
        raise reason

    def spread(self, vectors: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
        """Return the variance that taking a sub-batch brings into ``v'Hv``, from the samples' parts in the Gauss-Newton matrix.

        Raises:
            NotMeasured: if these are not known.
        """
        graph = self._graph
        assert isinstance(graph, SecondForward)
        return self._variance(self._quietly(lambda: graph.by_sample(graph.push(vectors, positions)).detach()))

    def product_and_spread(self, vectors: Sequence[Tensor], positions: Sequence[int]) -> tuple[list[Tensor], Tensor | None]:
        """Return the Hessian times ``vectors`` and, from the same pass, :meth:`spread`, None where that is not known."""
        graph = self._graph
        assert isinstance(graph, SecondForward)
        products, moves = self._quietly(lambda: graph.multiply_and_push(vectors, positions))
        self.hessian_products += 1
        try:
            variance = self._variance(self._quietly(lambda: graph.by_sample(moves).detach()))
        except NotMeasured:
            variance = None
        return self._complete(products, positions), variance

    def _variance(self, parts: Tensor) -> Tensor:
        assert self.samples is not None
        parts = parts if self._scale is None else parts / self._scale
        return (1 - 1 / self.samples.factor) * self.samples.size * parts.var()

    def last_layers(self, positions: Sequence[int]) -> list[int]:
        """Return those of the parameters at ``positions`` that the forward pass used last; see :mod:`tail`."""
        found = self._try(lambda graph: last_layers(graph.root, [self.parameters[position] for position in positions]))
        return [positions[index] for index in found]

    def release(self) -> None:
        """Let go of the graph."""
        self._loss = self._graph = self._forward = self._call = None
        self._failure = "the graph of the loss is no longer there"

    def _of_all(
        self, work: Callable[[], list[Tensor]], vectors: Sequence[Tensor], positions: Sequence[int], kind: str
    ) -> list[Tensor]:
        """Return what ``work`` returns; where several processes train together, the mean over them."""
        if self._together is None:
            return work()
        return self._together.mean(self._together.everywhere(work, vectors, f"{kind}{list(positions)}"))

    def _try(self, use: Callable[[LossGraph], _Result]) -> _Result:
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
                loss = self._loss
                self._graph = self._quietly(lambda: SecondForward(loss, self.parameters, forward))
                return self._use(use)
        except NotMeasured as obstacle:
            self._failure = str(obstacle)
            raise

    def _use(self, use: Callable[[LossGraph], _Result]) -> _Result:
        if self._graph is None:
            self._graph = self._quietly(self._open)
        graph = self._graph
        return self._quietly(lambda: use(graph))

    def _open(self) -> LossGraph:
        assert self._loss is not None
        if not self.parameters:
            raise NotMeasured("no parameter requires a gradient")
        if any(parameter.is_complex() for parameter in self.parameters):
            raise NotMeasured("the model has complex parameters")
        if self._forward is not None and has_slow_nodes(self._loss, self._forward.model):
            forward, self._forward = self._forward, None
            try:
                return SecondForward(self._loss, self.parameters, forward)
            except NotMeasured:  # then the slow way
                self._forward = forward
        outputs = None if self._forward is None else self._forward.outputs()
        return OwnGraph(self._loss, self.parameters, self._model, outputs)

    def _quietly(self, work: Callable[[], _Result]) -> _Result:
        try:
            with self.undisturbed():
                return work()
        except RuntimeError as error:
            raise NoSecondDerivative(explain(error)) from error

    def _complete(self, values: Slopes, positions: Sequence[int]) -> list[Tensor]:
        """Write zeros out and divide by the scale of the loss."""
        complete = []
        for position, value in zip(positions, values, strict=True):
            tensor = torch.zeros_like(self.parameters[position], requires_grad=False) if value is None else value.detach()
            complete.append(tensor if self._scale is None else tensor / self._scale)
        return complete
