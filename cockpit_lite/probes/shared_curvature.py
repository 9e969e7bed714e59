"""Shared curvature: products with the matrices of the whole batch, while the graphs of all processes are alive.

Each process multiplies with its own part of the batch, then the parts are averaged. Before anything is sent the processes tell
each other that they have it, and of which vector: one whose product failed, which had an instrument fail, or which is through
already, ends curvature for this step in all of them, and nobody waits.
What they remember from earlier steps is forgotten then, so that
they are in step again at the next one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from torch import Tensor

from cockpit_lite.curvature.matrix import flatten
from cockpit_lite.curvature.together import Result
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.hashes import tensors_hash
from cockpit_lite.probes.processes import Processes


class SharedCurvature:
    """The curvature of one step; see :class:`~cockpit_lite.curvature.together.Together`.

    Args:
        processes: They have agreed to measure it.
        step: Its number.

    Attributes:
        size: How many processes there are.
        parted: Why they do not go on together; empty while they do.
    """

    def __init__(self, processes: Processes, step: int):
        self.size = processes.size
        self.parted = ""
        self._processes = processes
        self._step = step

    def everywhere(self, work: Callable[[], Result], about: Sequence[Tensor] = (), place: str = "") -> Result:
        """See :class:`~cockpit_lite.curvature.together.Together`."""
        if self.parted:
            raise NotMeasured(self.parted)
        failure: Exception | None = None
        try:
            found = work()
        except Exception as error:
            failure = error
        about_what = zlib.crc32(place.encode()) + (int(tensors_hash(about)) if about else 0)
        told = self._processes.agree(self._step, failure is None, about_what)
        if told is None:
            self.parted = self._processes.gone
        elif told.places[0] != told.places[1] or not told.alike:
            self.parted = "the processes were not at the same product"
        elif not told.ready:
            self.parted = "another process could not take part" if failure is None else str(failure)
        if failure is not None:
            raise failure
        if self.parted:
            raise NotMeasured(self.parted)
        return found

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`~cockpit_lite.curvature.together.Together`."""
        total = self._processes.mean(flatten(values))
        if total is None:
            self.parted = self._processes.gone
            raise NotMeasured(self.parted)
        pieces = total.split([value.numel() for value in values])
        return [piece.view_as(value).to(value) for piece, value in zip(pieces, values, strict=True)]

    def end(self) -> None:
        """Wait until all are through, without anybody waiting for a product."""
        if not self._processes.end_curvature(self._step):
            self.parted = self.parted or "the processes were not at the same product"
