"""Ranks apart: on how many processes of a distributed training the weights are others than here.

    ranks_apart = #{other ranks whose hash of the weights at the same step differs}

Data-parallel training keeps the same weights everywhere: each process starts from the same and takes the same steps. 0 is sound;
anything else does not come back to 0. A parameter outside of the wrapper, a different seed without the broadcast of the start, or
a step that one of them skipped.

Hashes go through the store of the process group, so nobody waits for anybody: the steps 0, 1, 2, 4, 8 and so on are compared, as
soon as all ranks have come by. Sharded parameters are different everywhere, and are not compared.

Source: Li and others, PyTorch distributed: experiences on accelerating data parallel training, 2020.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, Instrument, Reading, Readings
from cockpit_lite.probes.hashes import tensors_hash
from cockpit_lite.step import Step

#: Steps of which the others may not have been heard yet.
MOST_WAITING = 4

_cockpits = itertools.count()


class Exchange:
    """Compares numbers between ranks through a store, without waiting.

    Args:
        store: With ``set``, ``get`` and ``check``, as those of ``torch.distributed``.
        rank: Of this process.
        ranks: How many there are.
        name: The same on all ranks, and of nobody else.
    """

    def __init__(self, store: Any, rank: int, ranks: int, name: str):
        self._store, self._rank, self._ranks, self._name = store, rank, ranks, name
        self._waiting: list[tuple[int, str]] = []

    def compare(self, step: int, value: float) -> float:
        """Tell the others this rank's number of a step; return how many had another one at the last step that all have told.

        Raises:
            NotMeasured: if there is no such step.
        """
        text = f"{value:.0f}"
        self._store.set(self._key(step, self._rank), text)
        self._waiting = [*self._waiting, (step, text)][-MOST_WAITING:]
        found: int | None = None
        others = [rank for rank in range(self._ranks) if rank != self._rank]
        for told in tuple(self._waiting):
            keys = [self._key(told[0], rank) for rank in others]
            if self._store.check(keys):
                found = sum(self._store.get(key).decode() != told[1] for key in keys)
                self._waiting.remove(told)
        if found is None:
            raise NotMeasured("the other ranks have not come so far")
        return float(found)

    def _key(self, step: int, rank: int) -> str:
        return f"cockpit-lite/{self._name}/{step}/{rank}"


class RanksApart(Instrument):
    """Writes ``ranks_apart``, a count, at the steps 0, 1, 2, 4, 8 and so on."""

    name = "ranks_apart"
    needs = (GRADIENT,)
    preset = "light"

    def __init__(self) -> None:
        self._exchange: Exchange | None = None
        self._obstacle = ""

    def start(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
            self._obstacle = "the training is not distributed"
        elif any(hasattr(p, "full_tensor") or "_flat_param" in name or p.is_meta for name, p in parameters.items()):
            self._obstacle = "the parameters are sharded, and different everywhere"
        else:
            shapes = [(name, tuple(parameter.shape)) for name, parameter in parameters.items()]
            name = f"{next(_cockpits)}/{weights_name(shapes)}"
            store = distributed.distributed_c10d._get_default_store()
            self._exchange = Exchange(store, distributed.get_rank(), distributed.get_world_size(), name)

    def measure(self, step: Step) -> Readings:
        if self._exchange is None:
            raise NotMeasured(self._obstacle or "the training is not distributed")
        if step.index & (step.index - 1):
            return {}
        here = tensors_hash(step.parameters.values())
        return {"ranks_apart": Reading(here, on_host=partial(self._exchange.compare, step.index))}


def weights_name(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """Return a short name for parameters: models of several parts differ between ranks, and are not compared."""
    return f"{zlib.crc32(repr(shapes).encode()):x}"
