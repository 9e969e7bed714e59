"""Several processes that train one model together: from each one's part of the batch to the statistics of all of it.

Data-parallel training averages the gradients of P processes: G = (1/P) sum_p g_p, g_p the gradient of process p's own loss. So
what sample n of process p adds to G is c_n / P, c_n what it adds to g_p. Norms and inner products are gathered, sums of squares
are added up; the inner products are taken with G, the contributions are checked against g_p, noted before it is averaged.
Where parameters are sharded, squares of each part are added up to norms, and nobody ever holds the whole. Under FSDP the samples'
norms are known all the same, from inputs and output gradients; there the contributions are checked along a direction of rank one,
which they and the parts of the gradient are projected on.

On a tracked step the processes first agree on what all of them have, so that nobody waits for what another one failed to
measure; on curvature (see shared_curvature.py) before the backward pass, whose own communication must find all of them there.
All of it goes through a group of our own: one that fails, or ends, leaves it, which closes its connections, and the
others find out at once and go on by themselves.

Communication of a tracked step with N samples in all, K parameter tensors, D elements: 2 P + 3 K + 16 numbers to agree, (2 K +
2) N numbers are gathered for norms, inner products, slopes and losses, up to 320 N for histograms, D are added up if sums of
squares are wanted; of sharded parameters 9 K numbers are added up. For C instruments of curvature C + 16 numbers to agree, and
for the gradient and each product with a matrix of curvature D + 8. Nothing on other steps.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import remove_hooks
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import (
    CURVATURE,
    LAST_STEP,
    PER_SAMPLE_ELEMENTS,
    PER_SAMPLE_GRADIENTS,
    PER_SAMPLE_NORMS,
    PER_SAMPLE_PRODUCTS,
    PER_SAMPLE_SQUARES,
    PROBE_BATCH,
    REPLAY,
    SAMPLE_LOSSES,
    SAMPLED_CURVATURE,
    SAMPLED_DIAGONAL,
)
from cockpit_lite.isolation import warn
from cockpit_lite.probes.hashes import tensors_hash
from cockpit_lite.probes.per_sample import PerSampleStatistics
from cockpit_lite.probes.per_sample.drawing import SAMPLES, Drawn

#: What of a step is not offered there: it would need passes in which all processes take part.
OF_ONE_PROCESS = frozenset({PER_SAMPLE_GRADIENTS, PROBE_BATCH, REPLAY})

#: And what not where parameters are sharded, since it needs their elements.
OF_WHOLE_PARAMETERS = frozenset(
    {
        CURVATURE,
        LAST_STEP,
        PER_SAMPLE_ELEMENTS,
        PER_SAMPLE_NORMS,
        PER_SAMPLE_PRODUCTS,
        PER_SAMPLE_SQUARES,
        SAMPLED_CURVATURE,
        SAMPLED_DIAGONAL,
        SAMPLE_LOSSES,
    }
)

#: But not where they are whole while a module is called.
OF_CALLS = frozenset({PER_SAMPLE_NORMS, SAMPLE_LOSSES})

#: Deviation of the mean gradient of all processes from the one that the optimizer sees, relative.
TOLERANCE = 1e-2

#: Squared norms of a parameter's contributions, as a share of those of all, that rounding makes where they are zero.
NEGLIGIBLE = 1e-10

#: For so long a process waits for another one that neither comes nor says that it has gone. Training has just brought them
#: together, when it averaged the gradient, so they are not far apart.
TIMEOUT = datetime.timedelta(seconds=120)

#: Where processes meet, told first: so that two that are at different places notice before they wait for each other.
_GRADIENT, _UPDATE, _CURVATURE, _PRODUCT, _CURVATURE_ENDS = range(1, 6)

#: What of sharded tensors is added up, of all parameters in the order of their names.
SQUARES = ("gradient", "applied_gradient", "weights_before")

_GONE = "the processes do not measure together any more: "

Result = TypeVar("Result")


@dataclass
class Own:
    """What this process has at the end of its backward passes.

    Attributes:
        loss: Its objective, a scalar.
        statistics: Of its samples, products with the mean gradient; None if there are none.
        sample_losses: What its samples contribute to its loss, shape (N,).
        squares: Squared norms of its parts of sharded tensors, by what they are of: some of :data:`SQUARES`.
        projections: What its parts of the gradient add to the inner product with the direction that contributions are checked
            along, in the order of the names; ``None`` if the parameters are not sharded.
    """

    loss: Tensor | None = None
    statistics: PerSampleStatistics | None = None
    sample_losses: Tensor | None = None
    squares: Mapping[str, Tensor] = field(default_factory=dict)
    projections: Tensor | None = None


@dataclass
class Shared:
    """The same of all processes together.

    Attributes:
        loss: The mean.
        statistics: Of all samples, those of the first process first.
        sample_losses: Of all samples, in that order; None where a process has none.
        squares: The sums, of what all of them have.
        reasons: Why something is not there, by the names of ``Own``.
    """

    loss: Tensor | None = None
    statistics: PerSampleStatistics | None = None
    sample_losses: Tensor | None = None
    squares: dict[str, Tensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What the processes have told each other where they met; the same in all of them.

    Attributes:
        places: Where the first and the last of them are.
        ready: Whether all are.
        alike: Whether they are about the same.
    """

    places: tuple[int, int]
    ready: bool
    alike: bool


class Processes:
    """The processes that train together.

    Args:
        group: A group of ``torch.distributed``; every process of it opens a cockpit and measures at the same steps.

    Attributes:
        rank: Number of this process in the group.
        size: How many there are.
        gone: Why they do not measure together any more; empty while they do.
        curvature: Names of the instruments of curvature, in the same order everywhere: those of the first process.

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
        self.gone = ""
        self.curvature: list[str] = []
        self._own: Any = None
        self._names: list[str] = []

    def open(self, parameters: Iterable[str], curvature: Iterable[str] = ()) -> None:
        """Make the group of our own, with all the others.

        Args:
            parameters: Their names, which must be the same everywhere.
            curvature: Names of the instruments of curvature.

        Raises:
            SetupError: if the others do not come, or train something else.
        """
        self._names = sorted(parameters)
        try:
            ranks = distributed.get_process_group_ranks(self.group)
            # Of a part of all processes only the members come here.
            alone = len(ranks) < distributed.get_world_size()
            self._own = distributed.new_group(ranks, TIMEOUT, backend="gloo", use_local_synchronization=alone)
            alike = self.same(self._names) == self._names
            self.curvature = self.same(sorted(curvature))
            agree = torch.tensor([float(alike)])
            distributed.all_reduce(agree, group=self._own)
        except Exception as error:
            self._close()
            raise SetupError(
                f"The {self.size} processes of process_group= did not open their cockpits together ({error})."
            ) from error
        if agree.item() != self.size:
            self._close()
            raise SetupError("The processes of process_group= train models with other parameters: leave process_group= out.")

    def same(self, value: Any) -> Any:
        """Return the first process's value."""
        box = [value]
        distributed.broadcast_object_list(box, group=self._own, group_src=0)
        return box[0]

    def leave(self, reason: str, error: BaseException | None = None) -> None:
        """Take part no more; the others notice at once. With one warning, the first time."""
        if self.gone or self._own is None:
            return
        self.gone = _GONE + reason
        self._close()
        warn(f"The readings of process {self.rank} are its own from here on: {reason}.", error)

    def end(self) -> None:
        """The training is over here. Nobody waits: the others may be at another step, or may never come to their end."""
        self.gone = self.gone or _GONE + "the training of this process has ended"
        self._close()

    def _close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            try:
                distributed.destroy_process_group(own)
            except Exception as error:
                warn("A process group of the cockpit could not be closed.", error)

    # On tracked steps

    def share(self, step: int, own: Own, gradient: Mapping[str, Tensor]) -> Shared:
        """Return what all processes have together; where they have parted, a reason for everything.

        Args:
            step: Its number.
            own: What this process has.
            gradient: The mean gradient, which the optimizer sees.
        """
        return self._together(lambda: self._share(step, own, gradient)) or self._alone()

    def add_up(self, step: int, squares: Tensor | None) -> Tensor | None:
        """Return the sums over all processes when the weights have changed; None where one has none, or they have parted."""

        def add() -> Tensor | None:
            everywhere = self._meet(_UPDATE, step, squares is not None)
            return self._sum(squares) if everywhere and squares is not None else None

        return self._together(add)

    def _together(self, work: Callable[[], Result]) -> Result | None:
        if not self.gone:
            try:
                return work()
            except Exception as error:
                self.leave("another process has gone, or this one has failed in telling it what it measured", error)
        return None

    def _alone(self) -> Shared:
        names = ("loss", "statistics", "sample_losses", *SQUARES)
        return Shared(reasons=dict.fromkeys(names, self.gone))

    # Curvature, before the backward pass

    def begin_curvature(self, step: int, due: Collection[str]) -> list[str] | None:
        """Return which of the instruments all processes want to have measure now; None where they have parted."""

        def begin() -> list[str]:
            self._meet(_CURVATURE, step)
            wanted = torch.tensor([name in due for name in self.curvature], dtype=torch.int64)
            distributed.all_reduce(wanted, distributed.ReduceOp.MIN, group=self._own)
            return [name for name, everywhere in zip(self.curvature, wanted.tolist(), strict=True) if everywhere]

        return self._together(begin) if self.curvature else []

    def agree(self, step: int, ready: bool, about: int) -> Told | None:
        """Tell the others whether this process has its part of a product; return what all have told, None where they have parted.

        Args:
            step: Its number.
            ready: Whether it has.
            about: A number of 53 bits at most, equal if the products are of the same matrix and vector.
        """
        return self._together(lambda: self._ask(_PRODUCT, step, (_PRODUCT, _CURVATURE_ENDS), ready, about))

    def mean(self, value: Tensor) -> Tensor | None:
        """Return the mean over the processes, directly after all have agreed on it; None where they have parted."""
        return self._together(lambda: self._sum(value) / self.size)

    def end_curvature(self, step: int) -> bool:
        """Wait until nobody asks for a product; return whether nobody did. Who asks is told that this one is through."""

        def end() -> bool:
            for again in (False, True):  # who was told does not ask again
                told = self._ask(_CURVATURE_ENDS, step, (_PRODUCT, _CURVATURE_ENDS), False)
                if told.places[0] == _CURVATURE_ENDS:
                    return not again
            raise RuntimeError("a process goes on asking for curvature")

        return bool(self._together(end))

    # The meetings

    def _ask(self, place: int, step: int, allowed: Collection[int], ready: bool, about: int = 0) -> Told:
        """Tell the others where this process is.

        Raises:
            RuntimeError: in all of them, if they are at other steps, or not all at ``allowed`` places; or if one has gone.
        """
        mine = torch.tensor([place, step, about, int(ready)])
        both = torch.cat([mine, -mine])
        distributed.all_reduce(both, distributed.ReduceOp.MAX, group=self._own)
        most, least = both[:4].tolist(), (-both[4:]).tolist()
        if most[1] != least[1] or not {most[0], least[0]} <= set(allowed):
            raise RuntimeError("the processes do not measure at the same steps")
        return Told((least[0], most[0]), bool(least[3]), most[2] == least[2])

    def _meet(self, place: int, step: int, ready: bool = True) -> bool:
        """Make sure that all are at the same place of the same step; return whether all are ready.

        Raises:
            RuntimeError: if they are not, or one has gone.
        """
        return self._ask(place, step, (place,), ready).ready

    def _share(self, step: int, own: Own, gradient: Mapping[str, Tensor]) -> Shared:
        local = own.statistics or PerSampleStatistics()
        same_elements = self._ask(_GRADIENT, step, (_GRADIENT,), True, _drawn(local)).alike
        kinds: Sequence[Mapping[str, Tensor]] = (local.squared_norms, local.products, local.sum_of_squares)
        has = [float(name in kind) for kind in kinds for name in self._names]
        slopes = _slopes(local)
        others = (own.loss, own.statistics, slopes, own.sample_losses, own.projections, *map(own.squares.get, SQUARES))
        has += [float(value is not None) for value in others]
        sizes, looked_at = [0.0] * self.size, [0.0] * self.size
        sizes[self.rank] = float(local.batch_size)
        looked_at[self.rank] = max((float(len(drawn.values)) for drawn in local.elements.values()), default=0.0)
        plan = torch.tensor([*has, *sizes, *looked_at], dtype=torch.float64)
        distributed.all_reduce(plan, group=self._own)
        counts = [int(count) for count in plan.tolist()]
        everywhere = [count == self.size for count in counts[: len(has)]]
        numbers, looked = counts[len(has) : len(has) + self.size], counts[len(has) + self.size :]
        of_kind = [
            [name for name, known in zip(self._names, everywhere[place * len(self._names) :], strict=False) if known]
            for place in range(3)
        ]
        has_loss, has_statistics, has_slopes, has_losses, has_projections, *has_squares = everywhere[3 * len(self._names) :]
        found = Shared()
        if has_loss and own.loss is not None:
            found.loss = self._sum(own.loss) / self.size
        else:
            found.reasons["loss"] = "no backward() was seen on this step in one of the processes"
        summed = [kind for kind, known in zip(SQUARES, has_squares, strict=True) if known]
        if summed:
            found.squares = dict(zip(summed, self._sum(torch.stack([own.squares[kind] for kind in summed])), strict=True))
        found.reasons.update({kind: "one of the processes does not have it" for kind in SQUARES if kind not in summed})
        rows = [local.squared_norms[name] for name in of_kind[0]] + [local.products[name] for name in of_kind[1]]
        rows += [slopes] if has_slopes and slopes is not None else []
        rows += [own.sample_losses] if has_losses and own.sample_losses is not None else []
        gathered = self._gather(rows, numbers)
        if has_losses:
            found.sample_losses = gathered.pop() / self.size
        else:
            found.reasons["sample_losses"] = "one of the processes does not know them"
        if has_statistics:
            found.statistics = self._merge(local, gathered, of_kind, numbers, has_slopes)
            if same_elements and local.elements:
                found.statistics.elements, found.statistics.drawing = self._elements(local.elements, looked), local.drawing
            if has_projections and own.projections is not None:
                self._check_parts(found.statistics, local, own.projections, found.squares["gradient"])
            elif own.projections is None and not local.to_check:
                self._check(found.statistics, gradient)
            else:
                found.statistics = None
                found.reasons["statistics"] = "one of the processes has not got its part of the gradient before clipping"
        else:
            found.reasons["statistics"] = "one of the processes has no per-sample statistics on this step"
        return found

    def _merge(
        self,
        local: PerSampleStatistics,
        gathered: Sequence[Tensor],
        of_kind: Sequence[Sequence[str]],
        numbers: Sequence[int],
        has_slopes: bool,
    ) -> PerSampleStatistics:
        rows = iter(gathered)
        found = PerSampleStatistics(batch_size=sum(numbers), conditional=dict(local.conditional), note=local.note)
        found.squared_norms = {name: next(rows) / self.size**2 for name in of_kind[0]}
        found.products = {name: next(rows) / self.size for name in of_kind[1]}
        if has_slopes:
            found.along["last_step"] = {"": next(rows) / self.size}
        for name in of_kind[2]:
            found.sum_of_squares[name] = self._sum(local.sum_of_squares[name]) / self.size**2
        found.not_covered.update(local.not_covered)
        for name in set(local.squared_norms) - set(of_kind[0]) - set(found.not_covered):
            found.not_covered[name] = "it has no gradient, or is not covered, in another process"
        return found

    def _elements(self, elements: Mapping[str, Drawn], looked_at: Sequence[int]) -> dict[str, Drawn]:
        """Return what was drawn with the samples of the other processes below; they have drawn the same elements."""
        values = torch.cat([drawn.values.to(torch.float32) for drawn in elements.values()], 1)
        whole = torch.stack(self._gather(list(values.T), looked_at), 1) / self.size
        parts = whole.split([drawn.values.shape[1] for drawn in elements.values()], 1)
        return {name: drawn._replace(values=part) for (name, drawn), part in zip(elements.items(), parts, strict=True)}

    def _sum(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        distributed.all_reduce(total, group=self._group(total))
        return total

    def _gather(self, rows: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
        """Return each row with those of the other processes behind it; they are as long as ``numbers`` says."""
        if not rows or not max(numbers):
            return list(rows)
        mine = torch.stack([row.to(rows[0].device, torch.promote_types(row.dtype, torch.float32)) for row in rows])
        padded = mine.new_zeros(len(rows), max(numbers))
        padded[:, : mine.shape[1]] = mine
        parts = [torch.empty_like(padded) for _ in numbers]
        distributed.all_gather(parts, padded, group=self._group(padded))
        return list(torch.cat([part[:, :number] for part, number in zip(parts, numbers, strict=True)], dim=1))

    def _group(self, value: Tensor) -> Any:
        # What lies on an accelerator stays there, as the training's own gradients do.
        return self._own if value.device.type == "cpu" else self.group

    def _check(self, found: PerSampleStatistics, gradient: Mapping[str, Tensor]) -> None:
        """The contributions of all samples must sum to the gradient: seen by their inner products with it."""
        sizes = {name: row.sum() for name, row in found.squared_norms.items()}
        negligible = NEGLIGIBLE * sum(sizes.values(), torch.zeros(()))
        for name, products in tuple(found.products.items()):
            wanted = gradient[name].square().sum()
            # Rounding is in proportion to what is added up; of gradients that are zero but for rounding nothing else is left.
            allowed = TOLERANCE * torch.maximum(wanted, products.abs().sum())
            is_nothing = torch.maximum(wanted, sizes[name].to(wanted)) <= negligible.to(wanted)
            if not bool(((products.sum() - wanted).abs() <= allowed) | is_nothing):
                found.drop(name)
                found.not_covered[name] = "the gradient is not the mean of those of the processes"

    def _check_parts(
        self, found: PerSampleStatistics, local: PerSampleStatistics, projections: Tensor, squared_gradient_norms: Tensor
    ) -> None:
        """The same of sharded parameters, of which each process knows what its samples and its part of the gradient say."""
        nothing = projections.new_zeros(())
        along = [local.to_check.get(name, nothing).to(projections) for name in self._names]
        own = [torch.stack([values.sum() for values in along]), torch.stack([values.abs().sum() for values in along])]
        tolerance = projections.new_full((), local.tolerance).expand(len(along))
        sums = self._sum(torch.stack([*(value / self.size for value in own), projections, tolerance / self.size]))
        sizes = torch.stack([found.squared_norms.get(name, nothing).sum().to(projections) for name in self._names])
        allowed = sums[3] * torch.maximum(sums[1], sums[2].abs())
        is_nothing = torch.maximum(squared_gradient_norms.to(sizes), sizes) <= NEGLIGIBLE * sizes.sum()
        right = ((sums[0] - sums[2]).abs() <= allowed) | is_nothing | ~sums[2].isfinite()
        for name, agrees in zip(self._names, right.tolist(), strict=True):
            if name in found.squared_norms and not agrees:
                found.drop(name)
                found.not_covered[name] = "the gradient is not the mean of what the samples of the processes contribute"


def _slopes(statistics: PerSampleStatistics) -> Tensor | None:
    """Return the samples' slopes along the last step, over all parameters, where those are known."""
    along = statistics.along.get("last_step")
    return None if not along or statistics.not_covered else torch.stack(list(along.values())).sum(0)


def _drawn(statistics: PerSampleStatistics) -> int:
    """Return a number that is equal where the same elements were drawn and as great a share of the samples is looked at."""
    elements = statistics.elements
    if not elements:
        return 0
    share = max(1, statistics.batch_size // SAMPLES)
    return 1 + zlib.crc32(repr((list(elements), share)).encode()) + int(tensors_hash(d.positions for d in elements.values()))


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
