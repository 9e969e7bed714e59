"""Static graphs: the first backward pass, from which ``DistributedDataParallel(static_graph=True)`` learns, is the training's.

Its first forward pass leaves a node in the graph that, the first time anything goes backward through it, has the gradients of all
processes averaged afterwards. A pass of ours beside the training's would use that up, and the gradients of the first step would
stay those of each process alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as distributed
from torch import Tensor

from cockpit_lite.curvature.obstacles import walk

_TAKEN = "_static_graph_delay_allreduce_enqueued"


@contextmanager
def first_pass_left(roots: Sequence[Tensor]) -> Iterator[None]:
    """Leave it to the training: passes inside go through the graph of ``roots`` as if the first had been made."""
    waiting = list(_waiting(roots)) if distributed.is_available() and distributed.is_initialized() else []
    for wrapper in waiting:
        setattr(wrapper, _TAKEN, True)
    try:
        yield
    finally:
        for wrapper in waiting:
            setattr(wrapper, _TAKEN, False)


def _waiting(roots: Sequence[Tensor]) -> Iterator[Any]:
    """Yield the wrappers in the graph that wait for their first backward pass."""
    seen: set[int] = set()
    for node in walk(roots):
        reference = getattr(node, "ddp_weakref", None)
        wrapper = reference() if callable(reference) else None
        if wrapper is not None and id(wrapper) not in seen and getattr(wrapper, _TAKEN, True) is False:
            seen.add(id(wrapper))
            if getattr(wrapper, "static_graph", False):
                yield wrapper
