r"""The step's own batch once more, at other weights: what a step was expected to gain, and what it gained.

Some things can only be said when the step d = theta_{t+1} - theta_t is known, and by then the user's graph is gone. So the
remembered call of the model is repeated on the same inputs with the same random numbers, and what the user made of its output is
read off their graph beforehand (see :mod:`cockpit_lite.probes.loss_head`). The loss at theta_t + d costs a forward pass; the
expansion around theta_t one with its first and second derivative along d.

Why d is not predicted from the optimizer instead, while the user's graph is still there: it would save the second forward and
backward pass, but would need a copy of every optimizer's arithmetic (momentum, preconditioner, decay, clipping, loss scaling,
line search) and be wrong in silence for each one that is not known or was subclassed. And whatever d is, what was really gained
can only be seen at the weights it led to.

The expansion is made in forward mode (see :mod:`cockpit_lite.curvature.taylor`): at most five products for each of the forward
pass, where a backward pass and a Hessian-vector product by the graph take eight more, and no memory but that of a layer. Where
the model does something of which it is not known how it moves, it is made by the graph, from then on for this model.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from cockpit_lite.curvature.obstacles import check_loss, check_nodes, explain, walk
from cockpit_lite.curvature.quietly import quietly
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.curvature.taylor import NoForwardMode, Taken, TaylorMode, moves_of, with_moves
from cockpit_lite.errors import NotMeasured
from cockpit_lite.norms import total_norm
from cockpit_lite.probes.last_step import inner_product
from cockpit_lite.probes.loss_head import Contributions, LossHead, find_loss_heads
from cockpit_lite.probes.per_sample.probe import MicroBatch

if TYPE_CHECKING:
    from cockpit_lite.step import Step

Result = TypeVar("Result")

#: How far the repeated loss may be from the one that the user saw, relative to the sum of its terms' magnitudes.
_TOLERANCE = 1e-3
_TOLERANCE_HALF_PRECISION = 5e-2

#: Why a model's expansions are not made in forward mode; empty: they are.
_obstacles: MutableMapping[nn.Module, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Expansion:
    """The loss around some weights theta, along a direction d: L(theta + d) = loss + slope + curvature / 2 + ...

    Attributes:
        terms: What every row (or element) of the prediction contributes to the loss, for each term of the loss.
        slope: d'G, a scalar tensor.
        curvature: d'Hd, a scalar tensor.
        gauss_newton: What every element of the prediction contributes to d'(J'L''J)d, for each term of the loss.
    """

    terms: Sequence[Tensor]
    slope: Tensor
    curvature: Tensor
    gauss_newton: Sequence[Tensor]


#: Models that need some activations twice, so that memory cannot be given on.
_wasteful: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Seen(NamedTuple):
    """What the user's own gradient G says of a direction d.

    Attributes:
        slope: d'G, a scalar tensor.
        size: ‖d‖ ‖G‖.
    """

    slope: Tensor
    size: Tensor


class Replay:
    """One forward pass of the user's, that can be repeated with other weights.

    Make it before the user's backward, use it after the update. It holds the inputs of the model and what the loss needs of
    its targets, no graph. Parameters, buffers, gradients, hooks and random numbers of the user stay as they are.

    Args:
        loss: The objective with its graph.
        call: The call of the model that it came from.
        scale: What a gradient scaler multiplied the loss with, if anything; divided out.

    Attributes:
        heads: The terms of the loss as functions of the model's outputs.
        model: The one that is called.
        call: The call, without its output, which would hold the graph.
        note: What a reader of the values should know.
        tolerance: How far what is repeated may be from what the user saw, relative.

    Raises:
        NotMeasured: if the loss is not known as a function of the model's output.
    """

    def __init__(self, loss: Tensor, call: ForwardCall, scale: Tensor | None = None):
        check_loss(loss, call.model)
        if any(value.grad_fn is not None for value in call.inputs()):
            raise NotMeasured("the model was given something that was computed with a graph, which cannot be repeated by itself")
        self.heads: Sequence[LossHead] = [_precise(head) for head in find_loss_heads(loss, call.outputs())]
        for head in self.heads:
            head.position  # noqa: B018  # raises where a prediction was not made of an output
        self.model: nn.Module = call.model
        self.note = "by a second forward pass" + (" in full precision" if call.autocast else "")
        self.call = copy.copy(call)
        self.call.output = None
        self._value = loss.detach()
        half = call.autocast or any(head.prediction.dtype in (torch.float16, torch.bfloat16) for head in self.heads)
        self.tolerance = _TOLERANCE_HALF_PRECISION if half else _TOLERANCE
        self._scale = scale
        if self.model not in _obstacles:  # the graph will be gone
            _obstacles[self.model] = _obstacle(loss)

    @property
    def forward_mode_obstacle(self) -> str:
        """Why expansions of this model are not made in forward mode; empty: they are, as far as is known."""
        return _obstacles[self.model]

    def terms(self, weights: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Return what the rows of the predictions contribute to the loss at other weights.

        Raises:
            NotMeasured: if the call cannot be repeated.
        """
        with self._quietly(), torch.no_grad():
            predictions = self._predict(weights)
            return [self.unscaled(head.terms(value)) for head, value in zip(self.heads, predictions, strict=True)]

    def expand(self, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor], seen: Seen | None = None) -> Expansion:
        """Return the loss, its slope and its curvature along ``direction`` at the weights of the user's own forward pass.

        Args:
            weights: By parameter name.
            direction: By parameter name; parameters that are missing do not move.
            seen: What the user's own gradient says of the slope, if it is known.

        Raises:
            NotMeasured: if the call cannot be repeated, or not be differentiated twice.
        """
        found = self._try_forwards(weights, direction, seen)
        return self._guarded(lambda: self._expand_by_graph(weights, direction)) if found is None else found

    def _try_forwards(
        self, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor], seen: Seen | None = None
    ) -> Expansion | None:
        """Return what :meth:`expand` does, or None where it is not known how this model moves.

        Raises:
            NotMeasured: if the call cannot be repeated.
        """
        if self.forward_mode_obstacle:
            return None
        try:
            with _precisely({value.device.type for value in weights.values()}):
                try:
                    found = self._expand_forwards(weights, direction)
                except Taken:
                    _wasteful.add(self.model)
                    found = self._expand_forwards(weights, direction)
            if seen is not None and bool((found.slope - seen.slope).abs() > self.tolerance * seen.size):
                # As with straight-through estimators, or where hooks change gradients.
                raise NoForwardMode("the user's backward pass is not the derivative of the forward pass")
        except NoForwardMode as obstacle:
            _obstacles[self.model] = str(obstacle)
            return None
        except RuntimeError as error:
            raise NotMeasured(explain(error)) from error
        return found

    def _guarded(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns, which takes passes over the model that the user's training cannot tell.

        Raises:
            NotMeasured: instead of what PyTorch raises where something cannot be differentiated.
        """
        try:
            with self._quietly():
                return work()
        except RuntimeError as error:
            raise NotMeasured(explain(error)) from error

    def by_sample(self, values: Sequence[Tensor], micro_batch: MicroBatch) -> Tensor:
        """Return the sums of ``values``, one tensor like the prediction for each term of the loss, over what belongs to a sample.

        Raises:
            NotMeasured: if it is not known which elements are whose.
        """
        parts = [
            Contributions(value, head.route).by_sample(micro_batch.batch_size, micro_batch.axis)
            for head, value in zip(self.heads, values, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def _expand_forwards(self, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Expansion:
        moving = {
            name: with_moves(weights[name].detach(), move.to(weights[name]))
            for name, move in direction.items()
            if weights[name].is_floating_point()
        }
        with TaylorMode(is_frugal=self.model not in _wasteful) as mode:
            predictions = self._predict({**weights, **moving})
        mode.check()
        terms, gauss_newton, slopes, curvatures = [], [], [], []
        for head, prediction in zip(self.heads, predictions, strict=True):
            point = prediction.detach().requires_grad_()
            term = head.terms(point)
            (seed,) = torch.autograd.grad(term.sum(), point, create_graph=True)
            moves = moves_of(prediction)
            terms.append(term.detach())
            gauss_newton.append(torch.zeros_like(prediction))
            if moves is None:
                continue
            slopes.append((seed.detach() * moves.first).sum())
            if moves.second is not None:
                curvatures.append((seed.detach() * moves.second).sum())
            if seed.requires_grad:
                (pull,) = torch.autograd.grad(seed, point, moves.first)
                gauss_newton[-1] = moves.first * pull
                curvatures.append(gauss_newton[-1].sum())
        self._compare(terms)
        nothing = self._value.new_zeros(())
        return Expansion(
            [self.unscaled(term) for term in terms],
            self.unscaled(sum(slopes, nothing)),
            self.unscaled(sum(curvatures, nothing)),
            [self.unscaled(part) for part in gauss_newton],
        )

    def _expand_by_graph(self, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Expansion:
        names = [name for name in direction if weights[name].is_floating_point()]
        points = [weights[name].detach().requires_grad_() for name in names]
        vectors = [direction[name] for name in names]
        predictions = self._predict({**weights, **dict(zip(names, points, strict=True))})
        terms = [head.terms(value) for head, value in zip(self.heads, predictions, strict=True)]
        check_nodes([term for term in terms if term.requires_grad])
        self._compare(terms)
        loss = torch.stack([term.sum() for term in terms]).sum()
        # In two parts, so that what the loss sends back can be differentiated by, too: that gives how the predictions move.
        seeds = torch.autograd.grad(loss, predictions, create_graph=True, materialize_grads=True)
        slopes = torch.autograd.grad(predictions, points, seeds, create_graph=True, materialize_grads=True)
        slope = torch.stack([(value * vector).sum() for value, vector in zip(slopes, vectors, strict=True)]).sum()
        moved, bent = [torch.zeros_like(value) for value in predictions], list(map(torch.zeros_like, points))
        curved = [index for index, seed in enumerate(seeds) if seed.requires_grad]
        if slope.requires_grad:
            inputs = [*(seeds[index] for index in curved), *points]
            found = torch.autograd.grad(slope, inputs, retain_graph=True, materialize_grads=True)
            bent = list(found[len(curved) :])
            for index, move in zip(curved, found, strict=False):
                moved[index] = move
        curvature = torch.stack([(value * vector).sum() for value, vector in zip(bent, vectors, strict=True)]).sum()
        gauss_newton = [torch.zeros_like(value) for value in predictions]
        if curved:
            pulls = torch.autograd.grad(
                [seeds[index] for index in curved], predictions, [moved[index] for index in curved], materialize_grads=True
            )
            gauss_newton = [self.unscaled(move * pull) for move, pull in zip(moved, pulls, strict=True)]
        return Expansion(
            [self.unscaled(term.detach()) for term in terms],
            self.unscaled(slope.detach()),
            self.unscaled(curvature.detach()),
            gauss_newton,
        )

    def _predict(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        outputs = self._repeat(weights)
        return [head.from_output(outputs[head.position]) for head in self.heads]

    def _repeat(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        try:
            return self.call.repeat(weights)
        except (NotMeasured, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the user's own forward, which need not be made for this
            raise NotMeasured(f"the model's forward cannot be repeated ({type(error).__name__}: {error})") from error

    def _compare(self, terms: Sequence[Tensor]) -> None:
        """Make sure that the call was repeated faithfully; this waits for the device, as a wrong number would be worse."""
        value = torch.stack([term.detach().double().sum() for term in terms]).sum()
        size = torch.stack([term.detach().double().abs().sum() for term in terms]).sum()
        if bool((value - self._value).abs() > self.tolerance * size):
            raise NotMeasured("a second forward pass gave another loss: the model's forward cannot be repeated")

    def unscaled(self, value: Tensor) -> Tensor:
        """Divide by what a gradient scaler multiplied the loss with."""
        return value if self._scale is None else value / self._scale

    def _quietly(self) -> AbstractContextManager[None]:
        return quietly(self.model.parameters(), self.model.buffers())


@contextmanager
def _precisely(devices: Iterable[str]) -> Iterator[None]:
    """Compute in full precision, and with gradients: a block without them is where a model makes constants."""
    with ExitStack() as stack:
        for device in devices:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.enable_grad())
        yield


def _obstacle(loss: Tensor) -> str:
    """Return what in the graph of the loss need not have the derivative that its forward pass shows; empty: nothing."""
    for node in walk([loss]):
        if isinstance(node, BackwardCFunction):
            function = getattr(node, "_forward_cls", type(node))
            if not function.__module__.startswith("torch."):  # those are derivatives of what they do
                return f"the custom autograd function {function.__name__} has a derivative of its own"
    return ""


def expansion_along_update(step: Step) -> Expansion:
    """Return the loss around the weights before the step, along the step that was taken; use it by ``step.once``.

    Raises:
        NotMeasured: if it cannot be repeated.
    """
    known = dict(step.replay.model.named_parameters())
    strangers = [name for name in step.update if name not in known]
    if strangers:
        raise NotMeasured(f"{strangers[0]} was trained as well, which is no parameter of the model")
    seen = None
    if "gradient" in step.observed:
        size = total_norm(step.gradient_norms) * total_norm(step.update_norms)
        seen = Seen(inner_product(step.update, step.gradient), size)
    return step.replay.expand(step.weights_before, step.update, seen)


def _precise(head: LossHead) -> LossHead:
    """Return the head with a prediction of at least single precision: half of it cannot resolve what a step changes."""
    if head.prediction.dtype not in (torch.float16, torch.bfloat16):
        return head
    head = copy.copy(head)
    head.prediction = head.prediction.float()
    return head
