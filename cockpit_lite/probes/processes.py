"""Several processes that train one model together: from each one's part of the batch to the statistics of all of it.

Data-parallel training averages the gradients of P processes: G = (1/P) sum_p g_p, g_p the gradient of process p's own loss. So
what sample n of process p adds to G is c_n / P, c_n what it adds to g_p. Norms and inner products are gathered, sums of squares
are added up; the inner products are taken with G, the contributions are checked against g_p, noted before it is averaged.

Communication of a tracked step with N samples in all, K parameter tensors, D elements: 2 N K numbers are gathered for norms and
inner products, D are added up if sums of squares are wanted, and the names of the tensors are told; nothing on other steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import remove_hooks
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import (
    CURVATURE,
    LAST_STEP,
    PER_SAMPLE_GRADIENTS,
    PROBE_BATCH,
    REPLAY,
    SAMPLE_LOSSES,
    SAMPLED_CURVATURE,
)
from cockpit_lite.probes.per_sample import PerSampleStatistics

#: What of a step is not offered there: it would need passes in which all processes take part.
OF_ONE_PROCESS = frozenset(
    {CURVATURE, LAST_STEP, PER_SAMPLE_GRADIENTS, PROBE_BATCH, REPLAY, SAMPLE_LOSSES, SAMPLED_CURVATURE},
)

#: Deviation of the mean gradient of all processes from the one that the optimizer sees, relative.
TOLERANCE = 1e-2


class Processes:
    """The processes that train together.

    Args:
        group: A group of ``torch.distributed``; every process of it opens a cockpit and measures at the same steps.

    Raises:
        SetupError: if it is none.
    """

    def __init__(self, group: Any):
        self.group = group
        if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
            raise SetupError(
                f"process_group= takes a group of torch.distributed, such as torch.distributed.group.WORLD, not {group!r}."
            )
        self.rank: int = distributed.get_rank(group)
        self.size: int = distributed.get_world_size(group)

    def same(self, value: Any) -> Any:
        """Return the first process's value."""
        box = [value]
        distributed.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes."""
        total = value.detach().clone()
        distributed.all_reduce(total, group=self.group)
        return total / self.size

    def merge(self, local: PerSampleStatistics, gradient: Mapping[str, Tensor]) -> PerSampleStatistics:
        """Return the statistics of all samples, those of the first process first.

        Args:
            local: Of this process's samples, products with ``gradient``.
            gradient: The mean gradient, which the optimizer sees.
        """
        told: list[Any] = [None] * self.size
        mine = (
            sorted(local.squared_norms),
            sorted(local.products),
            sorted(local.sum_of_squares),
            local.batch_size,
            local.not_covered,
        )
        distributed.all_gather_object(told, mine, group=self.group)
        covered = [sorted(set.intersection(*(set(theirs[kind]) for theirs in told))) for kind in range(3)]
        sizes = [theirs[3] for theirs in told]
        found = PerSampleStatistics(batch_size=sum(sizes), conditional=dict(local.conditional))
        found.squared_norms = {
            name: row / self.size**2 for name, row in self._gather(local.squared_norms, covered[0], sizes).items()
        }
        found.products = {name: row / self.size for name, row in self._gather(local.products, covered[1], sizes).items()}
        for name in covered[2]:
            squares = local.sum_of_squares[name].clone()
            distributed.all_reduce(squares, group=self.group)
            found.sum_of_squares[name] = squares / self.size**2
        for theirs in told:
            found.not_covered.update(theirs[4])
        for name in (set(local.squared_norms) | set(local.not_covered)) - set(covered[0]) - set(found.not_covered):
            found.not_covered[name] = "it has no gradient in one of the processes"
        self._check(found, gradient)
        return found

    def _gather(self, values: Mapping[str, Tensor], names: list[str], sizes: list[int]) -> dict[str, Tensor]:
        if not names or not max(sizes):
            return {}
        mine = torch.stack([values[name] for name in names])
        padded = mine.new_zeros(len(names), max(sizes))
        padded[:, : mine.shape[1]] = mine
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded, group=self.group)
        rows = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
        return dict(zip(names, rows, strict=True))

    def _check(self, found: PerSampleStatistics, gradient: Mapping[str, Tensor]) -> None:
        """The contributions of all samples must sum to the gradient: seen by their inner products with it."""
        for name, products in tuple(found.products.items()):
            wanted = gradient[name].square().sum()
            # Rounding is in proportion to what is added up.
            if not bool((products.sum() - wanted).abs() <= TOLERANCE * torch.maximum(wanted, products.abs().sum())):
                found.drop(name)
                found.not_covered[name] = "the gradient is not the mean of those of the processes"


class LocalGradient:
    """The gradients of this process, noted as each is complete, before they are averaged."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self._parameters = parameters
        self._handles: list[RemovableHandle] = []
        self.gradient: dict[str, Tensor] = {}

    def start(self) -> None:
        """Begin to note them."""
        self.stop()
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and parameter.is_leaf:

                def note(parameter: Tensor, name: str = name) -> None:
                    if (gradient := parameter.grad) is not None:
                        self.gradient[name] = gradient.to_dense() if gradient.is_sparse else gradient.detach().clone()

                self._handles.append(parameter.register_post_accumulate_grad_hook(note))

    def stop(self) -> None:
        """Stop, and forget them; idempotent."""
        remove_hooks(self._handles)
        self._handles = []
        self.gradient = {}
