"""What of a data-parallel training is of all processes (reduced), and what of this one's part of the batch (local)."""

from __future__ import annotations

from torch import nn

from cockpit_lite.sharded import any_is_sharded

_OF_ALL = ("gradient", "clipped gradient", "update", "weights")
_OF_THE_BATCH = ("loss", "samples", "curvature")
_OF_ONE = ("data", "outputs of layers")


def reduced_and_local(model: nn.Module, together: bool) -> dict[str, list[str]]:
    """Return what is reduced and what is local, as ``run.json`` says it; empty where nothing is known to be reduced.

    Args:
        model: As it was handed over: ``DistributedDataParallel``, or with sharded parameters.
        together: Whether the processes measure together.
    """
    if together:
        return {"reduced": [*_OF_ALL, *_OF_THE_BATCH], "local": [*_OF_ONE]}
    if isinstance(model, nn.parallel.DistributedDataParallel) or any_is_sharded(model.parameters()):
        return {"reduced": [*_OF_ALL], "local": [*_OF_THE_BATCH, *_OF_ONE]}
    return {}
