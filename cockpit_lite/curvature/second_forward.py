r"""Hessian products where the user's own graph does not allow them: by a second, guarded forward pass.

Fused attention kernels, compiled code, re-entrant checkpoints and PyTorch's weight normalisation cannot be differentiated
twice, or not rightly, but have a twin that can.
Running the user's own forward with the twin would move their weights by rounding, so the model is called once more beside
it, with the same random numbers, on copies of its buffers.

Nothing needs to be known about the loss. The part of the user's graph from the model's outputs y to the loss L gives
``u = dL/dy`` and products with ``L''``; the second forward gives the Jacobian. Both meet in one operation that returns u and
whose derivative is L'': with it the gradient of the second forward is differentiated as if the loss had been made of it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from cockpit_lite.curvature import recurrent as recurrent_twin
from cockpit_lite.curvature.front import front, prediction_front
from cockpit_lite.curvature.loss_graph import LossGraph, Slopes, derivative_along
from cockpit_lite.curvature.obstacles import check_nodes, trust_note
from cockpit_lite.curvature.quietly import forward_hooks, own_hooks_resting, package
from cockpit_lite.curvature.sub_batch import Layout, SubBatch, drawn_for_all
from cockpit_lite.curvature.taylor import sequence
from cockpit_lite.errors import NotMeasured

# How far the second forward may be from the first one, relative: other kernels round differently, autocast much more.
_TOLERANCE = 1e-3
_TOLERANCE_AUTOCAST = 5e-2


class ForwardCall:
    """One call of the model, remembered so that it can be repeated.

    Make it just before the forward pass, and :meth:`finish` it just after.

    Attributes:
        model: The model, or the module in it, that is called.
        output: What it returned: tensors in any nesting of tuples, lists, mappings and dataclasses.
        autocast: Whether it ran under autocast.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.output: Any = None
        kinds = {parameter.device for parameter in model.parameters()}
        self.autocast = any(torch.is_autocast_enabled(kind) for kind in {device.type for device in kinds})
        self._devices = sorted((device for device in kinds if device.type not in ("cpu", "meta")), key=str)
        self._random_states = [torch.get_rng_state(), *(_generator(device).get_rng_state(device) for device in self._devices)]
        self._versions: list[int] = []
        # A forward that counts its calls must find its counter where it was.
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]

    def finish(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Remember what the call was given and what it returned."""
        self.args, self.kwargs, self.output = args, dict(kwargs), output
        self._versions = self._input_versions()

    def inputs(self) -> list[Tensor]:
        """Return the tensors that the model was given, in order."""
        return _tensors((self.args, self.kwargs))

    def _input_versions(self) -> list[int]:
        return [tensor._version for tensor in self.inputs()]

    def outputs(self) -> list[Tensor]:
        """Return the tensors of ``output``, in order."""
        return _tensors(self.output)

    def repeat(self, weights: Mapping[str, Tensor] | None = None, samples: SubBatch | None = None) -> list[Tensor]:
        """Call the model again and return the tensors of its output, in the order of those of ``output``.

        Args:
            weights: Instead of the model's parameters, by name; those that are missing stay.
            samples: Give it these only.

        Raises:
            NotMeasured: if the call cannot be repeated.
        """
        if self._input_versions() != self._versions:
            raise NotMeasured("the inputs of the model were changed in place, so the forward pass cannot be repeated")
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):  # its forward prepares the reduction of the gradients
            model = model.module
            weights = {name.removeprefix("module."): value for name, value in (weights or {}).items()}
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        accelerator = self._devices[0].type if self._devices else "cuda"
        with torch.random.fork_rng(self._devices, device_type=accelerator), _undisturbed(model), _twins(model):
            for module, attributes in self._attributes:
                if module is model or module is not self.model:
                    _set_attributes(module, attributes)
            torch.set_rng_state(self._random_states[0])
            for device, state in zip(self._devices, self._random_states[1:], strict=True):
                _generator(device).set_rng_state(state, device)
            state = {**buffers, **(weights or {})}
            if samples is None:
                return _tensors(torch.func.functional_call(model, state, self.args, self.kwargs))
            with drawn_for_all(model, samples):
                return _tensors(torch.func.functional_call(model, state, samples.cut(self.args), samples.cut(self.kwargs)))


class SecondForward(LossGraph):
    """The derivatives of a loss, through a second forward pass of the model; its gradient equals the user's up to rounding.

    With a sub-batch they are the samples' part of the loss, times what makes it an estimate of the whole.

    Args:
        loss: The root of the user's graph.
        parameters: What is differentiated by.
        forward: The call of the model.
        samples: Call it on these only.

    Raises:
        NotMeasured: if the loss depends on the parameters in another way than through this call, or the call cannot be
            repeated; with a sub-batch also if samples meet, in the model or in the loss.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[nn.Parameter], forward: ForwardCall, samples: SubBatch | None = None):
        self.parameters = parameters
        outputs = forward.outputs()
        used, self.without_outputs = _used(loss, outputs, parameters)
        repeated = forward.repeat(samples=samples)
        if len(repeated) != len(outputs):
            raise NotMeasured("a second forward pass returned something else")
        first, second = [outputs[index] for index in used], [repeated[index] for index in used]
        tolerance = _TOLERANCE_AUTOCAST if forward.autocast else _TOLERANCE
        self.layouts: Sequence[Layout] = ()
        if samples is None:
            _compare(first, second, tolerance)
        else:
            self.layouts = [samples.layout_of(*pair, tolerance) for pair in zip(first, second, strict=True)]
        ends = _Ends(self.layouts, 1.0 if samples is None else samples.factor, [output.new_empty(0) for output in second])
        custom_functions = check_nodes([loss], first) + check_nodes(second)
        slopes = torch.autograd.grad(loss, first, create_graph=True)
        if samples is not None:
            _require_apart(slopes, first, self.layouts)

        def bend(moves: Sequence[Tensor]) -> Sequence[Tensor | None]:
            """Return L'' times what the outputs move by. The graph holds it: if it held the graph, neither would be freed."""
            pulls = derivative_along(slopes, ends.to_first(moves, first), first)
            return [None if pull is None else ends.to_second(index, pull) for index, pull in enumerate(pulls)]

        seeds = [ends.to_second(index, slope.detach()) for index, slope in enumerate(slopes)]
        self.seeds = _Seeds.apply(bend, seeds, *second)
        self.root = second[0]
        self.slopes = torch.autograd.grad(second, parameters, self.seeds, create_graph=True, allow_unused=True)
        self.outputs = () if self.without_outputs else second
        again = "by a second forward pass"
        self.notes = [
            (again if samples is None else f"sub-batch of {samples.size} of {samples.batch_size} samples")
            + (" in full precision" if forward.autocast else ""),
            *trust_note(custom_functions),
        ]

    def multiply_and_push(self, vectors: Sequence[Tensor], positions: Sequence[int]) -> tuple[Slopes, Slopes]:
        """Return the Hessian times ``vectors`` and, from the same pass, how they move the outputs; see :meth:`push`."""
        slopes, parameters = self._restricted(positions)
        bent = [seed for seed in self.seeds if seed.requires_grad]
        found = derivative_along(slopes, vectors, [*parameters, *bent])
        moves = iter(found[len(parameters) :])
        return found[: len(parameters)], [next(moves) if seed.requires_grad else None for seed in self.seeds]

    def by_sample(self, moves: Slopes) -> Tensor:
        """Return what each sample of the sub-batch contributes to the quadratic form of the Gauss-Newton matrix.

        Args:
            moves: How the outputs move along the vector, of :meth:`push`.

        Raises:
            NotMeasured: if the loss is not curved in the outputs.
        """
        if not self.outputs:
            raise NotMeasured(self.without_outputs)
        pulls = self.bend(
            [torch.zeros_like(seed) if move is None else move for seed, move in zip(self.seeds, moves, strict=True)]
        )
        parts = [
            layout.by_sample(move * pull)
            for layout, move, pull in zip(self.layouts, moves, pulls, strict=True)
            if move is not None and pull is not None
        ]
        if not parts:
            raise NotMeasured("the loss is not curved in the outputs")
        return torch.stack(parts).sum(0)


class _Ends(NamedTuple):
    """Between the outputs of the user's pass and those of the second one.

    Attributes:
        layouts: Where the samples of a sub-batch lie; empty: the second pass has all of them.
        factor: What makes the sub-batch an estimate of the whole.
        kinds: Empty tensors of the type and device of the second outputs.
    """

    layouts: Sequence[Layout]
    factor: float
    kinds: Sequence[Tensor]

    def to_first(self, moves: Sequence[Tensor], first: Sequence[Tensor]) -> list[Tensor]:
        """Return moves of the second outputs as moves of the first ones."""
        if not self.layouts:
            return [move.to(output) for move, output in zip(moves, first, strict=True)]
        return [layout.put(move, output) for layout, move, output in zip(self.layouts, moves, first, strict=True)]

    def to_second(self, index: int, value: Tensor) -> Tensor:
        """Return a slope by a first output as one by the second."""
        if not self.layouts:
            return value.to(self.kinds[index])
        return self.layouts[index].take(value).to(self.kinds[index]) * self.factor


def _require_apart(slopes: Sequence[Tensor], first: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
    """Make sure that what the loss sends back into a sample does not depend on the outputs for others.

    Raises:
        NotMeasured: if it does.
    """
    moves = [layout.put(layout.take(output.detach()) + 1, output) for layout, output in zip(layouts, first, strict=True)]
    for layout, pull in zip(layouts, derivative_along(slopes, moves, first), strict=True):
        if pull is not None:
            elsewhere = pull - layout.put(layout.take(pull), pull)
            if bool(torch.linalg.vector_norm(elsewhere) > _TOLERANCE * torch.linalg.vector_norm(pull)):
                raise NotMeasured("samples meet in the loss")


def _used(loss: Tensor, outputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> tuple[list[int], str]:
    """Return which outputs the loss was made of; if they are no predictions, also why there are none."""
    try:
        return prediction_front(loss, outputs, parameters), ""
    except NotMeasured as reason:
        without = f"{reason}, so there is no Gauss-Newton matrix"
    try:
        return front(loss, outputs, parameters), without
    except NotMeasured as reason:
        raise NotMeasured(f"{reason}, so a second forward pass does not give it") from None


class _Seeds(torch.autograd.Function):
    """Returns dL/dy, which is known, as a function of the outputs y, whose derivative is L''."""

    @staticmethod
    def forward(
        ctx: Any, bend: Callable[[Sequence[Tensor]], Sequence[Tensor | None]], slopes: Sequence[Tensor], *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.bend = bend
        return tuple(slopes)

    @staticmethod
    def backward(ctx: Any, *moves: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.bend(moves)


def _compare(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float) -> None:
    for before, after in zip(first, second, strict=True):
        if before.shape != after.shape:
            raise NotMeasured("a second forward pass returned something else")
        wanted = before.detach().to(after.dtype)
        if bool(torch.linalg.vector_norm(after.detach() - wanted) > tolerance * torch.linalg.vector_norm(wanted)):
            raise NotMeasured("a second forward pass returned other values: the model's forward cannot be repeated")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Call the modules of ``model`` without a trace: our own hooks away, their attributes put back afterwards.

    Raises:
        NotMeasured: if the user has placed forward hooks, which would fire a second time.
    """
    for name, module in [("", None), *model.named_modules()]:
        for hook in (hook for hooks in forward_hooks(module) for hook in hooks.values()):
            if package(hook) not in ("cockpit_lite", "torch"):
                where = "every module" if module is None else f"the module {name or type(module).__name__!r}"
                raise NotMeasured(f"{where} has a forward hook that would fire a second time")
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    with own_hooks_resting([None, *model.modules()]):
        try:
            yield
        finally:
            for module, saved_attributes in attributes:
                _set_attributes(module, saved_attributes)


def _set_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    for name in vars(module).keys() - attributes.keys():
        del vars(module)[name]
    vars(module).update(attributes)


@contextmanager
def _twins(model: nn.Module) -> Iterator[None]:
    """Let operations without a second derivative be done by those that have one."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, twin: Callable[..., Any]) -> None:
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, twin)

    def without_reentrance(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # of what has no twin
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            replace(checkpoint.CheckpointFunction, "apply", without_reentrance)
            replace(torch, "_weight_norm", _weight_norm)
            replace(sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", _weight_norm)
            replace(nn.functional, "hardsigmoid", _hardsigmoid)
            if recurrent:
                replace(_VF, "lstm", recurrent_twin.twin(_VF.lstm, sequence))
            yield
        finally:
            for owner, name, original in replaced:
                setattr(owner, name, original)


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    return direction * (length / torch.norm_except_dim(direction, 2, dim))


def _hardsigmoid(inputs: Tensor, inplace: bool = False) -> Tensor:
    return nn.functional.relu6(inputs + 3) / 6


def _generator(device: torch.device) -> Any:
    """Return the module with ``get_rng_state`` for accelerators of this kind."""
    return getattr(torch, device.type)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in any nesting of tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [tensor for field in dataclasses.fields(value) for tensor in _tensors(getattr(value, field.name))]
    return []
