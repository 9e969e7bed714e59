"""From a tensor back through reshapes to what the model returned, and the same way forward again.

What the loss sees is seldom the model's output itself: logits are flattened, transposed, cast, shifted by one position, scaled by
a temperature. Such steps are read off the graph and can be taken again with another output, or with the number of the sample in
every element, which tells whose rows they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.nodes import Edge, edge_of, inputs_of, is_parameter, saved, saved_axis, shape_of, signed

_Operation = Callable[[Tensor], Tensor]


def _reshape(node: Any, number: int, shape: torch.Size) -> _Operation:
    return lambda tensor: tensor.reshape(shape)


def _expand(node: Any, number: int, shape: torch.Size) -> _Operation:
    return lambda tensor: tensor.expand(shape)


def _transpose(node: Any, number: int, shape: torch.Size) -> _Operation:
    first, second = saved_axis(node, "dim0"), saved_axis(node, "dim1")
    return lambda tensor: tensor.transpose(first, second)


def _permute(node: Any, number: int, shape: torch.Size) -> _Operation:
    axes = [signed(axis) for axis in saved(node, "dims")]
    return lambda tensor: tensor.permute(axes)


def _select(node: Any, number: int, shape: torch.Size) -> _Operation:
    axis, index = saved_axis(node), saved_axis(node, "index")
    return lambda tensor: tensor.select(axis, index)


def _slice(node: Any, number: int, shape: torch.Size) -> _Operation:
    axis, start, step = saved_axis(node), saved_axis(node, "start"), saved_axis(node, "step")
    cut = slice(start, saved_axis(node, "end"), step)
    return lambda tensor: tensor.movedim(axis, 0)[cut].movedim(0, axis)


def _split(node: Any, number: int, shape: torch.Size) -> _Operation:
    axis, size = saved_axis(node), saved(node, "split_size")
    return lambda tensor: tensor.split(size, axis)[number]


def _split_with_sizes(node: Any, number: int, shape: torch.Size) -> _Operation:
    axis, sizes = saved_axis(node), list(saved(node, "split_sizes"))
    return lambda tensor: tensor.split(sizes, axis)[number]


def _unbind(node: Any, number: int, shape: torch.Size) -> _Operation:
    axis = saved_axis(node)
    return lambda tensor: tensor.unbind(axis)[number]


def _index(node: Any, number: int, shape: torch.Size) -> _Operation:
    indices = tuple(slice(None) if index is None else index for index in saved(node, "indices"))
    return lambda tensor: tensor[indices]


def _index_select(node: Any, number: int, shape: torch.Size) -> _Operation:
    axis, index = saved_axis(node), saved(node, "index")
    return lambda tensor: tensor.index_select(axis, index)


#: What moves elements and leaves them as they are: operation -> how to do it again.
MOVES: Mapping[str, Callable[[Any, int, torch.Size], _Operation]] = {
    "ViewBackward0": _reshape,
    "UnsafeViewBackward0": _reshape,
    "ReshapeAliasBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "SqueezeBackward2": _reshape,
    "UnsqueezeBackward0": _reshape,
    "ExpandBackward0": _expand,
    "TransposeBackward0": _transpose,
    "TBackward0": lambda node, number, shape: lambda tensor: tensor.t(),
    "PermuteBackward0": _permute,
    "SelectBackward0": _select,
    "SliceBackward0": _slice,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split_with_sizes,
    "UnbindBackward0": _unbind,
    "IndexBackward0": _index,
    "IndexSelectBackward0": _index_select,
}

#: What leaves elements where and as they are, up to their type.
KEEPS = frozenset({"CloneBackward0", "AliasBackward0", "ToCopyBackward0"})

#: What adds a constant, which the graph does not know but the values tell.
SHIFTS = frozenset({"AddBackward0", "AddBackward1", "SubBackward0", "SubBackward1", "RsubBackward1"})


@dataclass(frozen=True)
class _Step:
    """One operation of a route; ``moves`` where it is not done element by element."""

    forward: _Operation
    moves: bool


class Route:
    """How a tensor was made of a model's output.

    Args:
        edge: Where the tensor comes from.
        outputs: The model's outputs.

    Attributes:
        start: Where the tensor comes from.
        position: Which output it was made of; None: of none.
        shape: Of the tensor at the beginning of the route: that output, or as far back as the route could be followed.
    """

    def __init__(self, edge: Edge, outputs: Sequence[Tensor]):
        ends = {edge_of(output): position for position, output in enumerate(outputs) if output.grad_fn is not None}
        self.start = edge
        self.position: int | None = None
        self.shape = shape_of(edge)
        self._steps: list[_Step] = []
        self._shifted = False
        self._output: Tensor | None = None
        following: Edge | None = edge
        while following is not None:
            if following in ends:
                self.position = ends[following]
                self._output = outputs[self.position].detach()
                return
            following = self._follow(following)

    @property
    def moved(self) -> bool:
        """Whether elements were moved on the way."""
        return any(step.moves for step in self._steps)

    @property
    def is_direct(self) -> bool:
        """Whether the tensor is the model's output itself, but for its type."""
        return self._output is not None and not self._steps

    @property
    def output(self) -> Tensor | None:
        """The model's output that the route begins with, without its graph; None where it begins elsewhere."""
        return self._output

    def tensor(self, dtype: torch.dtype) -> Tensor | None:
        """Return the tensor itself, if the output and the route are all it takes."""
        return None if self._output is None or self._shifted else self._forward(self._output, dtype)

    def without_output(self) -> Route:
        """Return the route without its beginning: it still says whose elements are whose, but keeps no tensor of the model."""
        route = copy.copy(self)
        route._output, route.start = None, (None, 0)
        return route

    def again(self, output: Tensor, value: Tensor) -> Tensor:
        """Return what the tensor, whose value was ``value``, would be with another output of the model.

        Raises:
            NotMeasured: if it was not made of a model's output in a way that can be taken again.
        """
        if self._output is None:
            raise NotMeasured("what the loss function was given is not one of the model's outputs")
        result = self._forward(output, value.dtype)
        if self._shifted:
            result = result + (value - self._forward(self._output, value.dtype))
        return result

    def owners(self, batch_size: int, axis: int, device: torch.device) -> Tensor | int:
        """Return the sample that every element of the tensor belongs to; where they were never moved, just their axis.

        Args:
            batch_size: Number of samples.
            axis: The axis of the model's input that holds them.
            device: Where the answer is to be.

        Raises:
            NotMeasured: if the samples cannot be told apart.
        """
        shape = self.shape
        if axis and len(shape) > axis and shape[axis] == batch_size and shape[0] != batch_size:
            found = axis
        elif not axis and len(shape) and shape[0] == batch_size:
            found = 0
        elif axis and len(shape) and shape[0] == batch_size and self.position is not None and shape[axis:][:1] != (batch_size,):
            found = 0  # time-first data, and an output without a time
        else:
            raise NotMeasured(f"it is not known which of the {batch_size} samples the rows that the loss was made of belong to")
        if not self.moved:
            return found
        samples = torch.arange(batch_size, device=device).reshape(-1, *[1] * (len(shape) - found - 1)).expand(shape)
        for step in self._steps:
            if step.moves:
                samples = step.forward(samples)
        return samples

    def _forward(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        tensor = tensor.to(dtype)
        for step in self._steps:
            tensor = step.forward(tensor)
        return tensor

    def _follow(self, edge: Edge) -> Edge | None:
        """Take one step back; None where the route ends."""
        node, number = edge
        name, shape = node.name(), shape_of(edge)
        inputs = [source for source in inputs_of(node) if source is not None]
        if len(inputs) != 1 or is_parameter(inputs[0]):
            return None
        before = shape_of(inputs[0])
        if name in MOVES:
            self._take(MOVES[name](node, number, shape), True)
        elif name in KEEPS:
            pass
        elif name in SHIFTS or name in ("NegBackward0", "MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1"):
            scaling = _scaling(node, name)
            if scaling is None:
                return None
            self._take(scaling, False)
            if before != shape:
                self._take(lambda tensor: tensor.expand(shape), True)
            self._shifted |= name in SHIFTS
        else:
            return None
        self.shape = before
        return inputs[0]

    def _take(self, forward: _Operation, moves: bool) -> None:
        self._steps.insert(0, _Step(forward, moves))


def _scaling(node: Any, name: str) -> _Operation | None:
    """Return what a node does to its one input, up to what it adds."""
    first = inputs_of(node)[0]
    if name == "NegBackward0" or name.startswith("Rsub"):
        return torch.neg
    if name.startswith("Add"):
        factor = 1 if first is not None or name == "AddBackward1" else saved(node, "alpha")
    elif name.startswith("Sub"):
        factor = 1 if first is not None or name == "SubBackward1" else -saved(node, "alpha")
    elif name.startswith("Mul"):
        factor = saved(node, "self" if first is None else "other")
    elif first is None:  # a constant divided by the tensor
        return None
    else:
        factor = saved(node, "other")
        return lambda tensor: tensor / factor
    return lambda tensor: tensor * factor
