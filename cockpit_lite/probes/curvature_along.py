r"""``d'Hd`` of a batch whose graph is gone, some samples at a time: what it takes in memory is that of a few samples.

Where samples do not meet in the model and the loss is a sum over rows, the Hessian of the batch is the sum of those of its parts,
exactly. So the model is called on one part after the other, and each part's graph is let go before the next one's is made. That
the parts belong together is seen from the user's own outputs, which each must give again, and from the slope ``d'G``, which must
be that of the user's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from cockpit_lite.curvature.obstacles import check_nodes
from cockpit_lite.curvature.sub_batch import SubBatch
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.replay import Replay

#: A part holds at least so many samples, ...
FEWEST = 4

#: ... and there are no more parts than that: each costs a fixed time, and spares less than the one before.
MOST_PARTS = 4

#: A graph is worth cutting that keeps so many times the size of the weights, since there are vectors like the weights anyway, ...
LARGE = 4

#: ... and so many bytes: of less nobody runs out.
WORTH = 2**23


class Along(NamedTuple):
    """The loss along some directions.

    Attributes:
        slopes: d'G, a scalar tensor for each direction.
        curvatures: d'Hd.
    """

    slopes: list[Tensor]
    curvatures: list[Tensor]


class AlongDirections:
    """Slopes and curvatures of one step after the other; remembers how large the graphs are, and where samples meet."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[object, ...], _Kind] = {}

    def is_small(self, replay: Replay) -> bool:
        """Whether the graph is known to be so small that keeping it costs next to nothing."""
        kind = self._kinds.get(_kind(replay))
        return kind is not None and kind.kept <= WORTH

    def of(self, replay: Replay, weights: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]]) -> Along:
        """Return slopes and curvatures along the directions at the weights of the user's own forward pass.

        Args:
            replay: The forward pass.
            weights: By parameter name.
            directions: Each by parameter name, all of the same parameters; the others do not move.

        Raises:
            NotMeasured: if the call cannot be repeated, or not be differentiated twice.
        """
        kind = self._kinds.get(_kind(replay))
        counted = _Kept() if kind is None else None
        size = sum(value.numel() * value.element_size() for value in directions[0].values())
        if kind is None or (kind.apart and kind.kept > max(LARGE * size, WORTH)):
            for parts in cut(replay):
                try:
                    found = [replay.guarded(partial(_of, replay, weights, directions, parts[0], counted))]
                except NotMeasured:
                    continue  # another axis, or the whole batch
                found += [replay.guarded(partial(_of, replay, weights, directions, part)) for part in parts[1:]]
                if counted is not None:
                    self._kinds[_kind(replay)] = _Kind(True, counted.bytes * parts[0].factor)
                return _sum(found)
            counted = _Kept() if kind is None else None
        found_whole = replay.guarded(partial(_of, replay, weights, directions, None, counted))
        if counted is not None:
            self._kinds[_kind(replay)] = _Kind(False, counted.bytes)
        return found_whole


class _Kind(NamedTuple):
    """What steps of one kind have in common: whether their samples can be told apart, and how many bytes the graph keeps."""

    apart: bool
    kept: float


def _kind(replay: Replay) -> tuple[object, ...]:
    return (id(replay.model), replay.model.training, *(value.shape for value in replay.call.inputs()))


class _Kept:
    """Counts what a graph keeps, each piece of memory once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """The sum."""
        return sum(self.sizes.values())

    def pack(self, tensor: Tensor) -> Tensor:
        """See :class:`torch.autograd.graph.saved_tensors_hooks`."""
        self.sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor


def cut(replay: Replay) -> list[list[SubBatch]]:
    """Return the samples in parts of the same size, more or less, for each axis that may be the batch's."""
    found = []
    for axis in (0, 1):
        size = next((value.shape[axis] for value in replay.call.inputs() if value.dim() > axis), 0)
        count = min(MOST_PARTS, size // FEWEST)
        if count > 1:
            pieces = torch.arange(size, device=replay.call.inputs()[0].device).chunk(count)
            found.append([SubBatch(piece, size, axis) for piece in pieces])
    return found


def _of(
    replay: Replay,
    weights: Mapping[str, Tensor],
    directions: Sequence[Mapping[str, Tensor]],
    part: SubBatch | None = None,
    kept: _Kept | None = None,
) -> Along:
    names = [name for name in directions[0] if weights[name].is_floating_point()]
    points = [weights[name].detach().requires_grad_() for name in names]
    with nullcontext() if kept is None else saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        terms = replay.differentiable_terms({**weights, **dict(zip(names, points, strict=True))}, part)
    check_nodes([term for term in terms if term.requires_grad])
    loss = torch.stack([term.sum() for term in terms]).sum()
    slopes = torch.autograd.grad(loss, points, create_graph=True, materialize_grads=True)
    found = Along([], [])
    for index, direction in enumerate(directions):
        vectors = [direction[name] for name in names]
        slope = _inner(slopes, vectors)
        last = index == len(directions) - 1
        bent = torch.autograd.grad(slope, points, retain_graph=not last, materialize_grads=True) if slope.requires_grad else ()
        found.slopes.append(replay.unscaled(slope.detach()))
        found.curvatures.append(replay.unscaled(_inner(bent, vectors) if bent else torch.zeros_like(slope.detach())))
    return found


def _inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    return torch.stack([(value * vector).sum() for value, vector in zip(first, second, strict=True)]).sum()


def _sum(parts: Sequence[Along]) -> Along:
    return Along(
        [torch.stack(values).sum() for values in zip(*(part.slopes for part in parts), strict=True)],
        [torch.stack(values).sum() for values in zip(*(part.curvatures for part in parts), strict=True)],
    )
