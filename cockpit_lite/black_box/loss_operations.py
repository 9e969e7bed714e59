"""What the loss was made of behind the model, read off its graph while that is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.nodes import saved, saved_tensors

#: No further operations are looked at: a loss function is short.
MOST_OPERATIONS = 60


def loss_operations(loss: Tensor, outputs: set[int]) -> list[dict[str, Any]]:
    """Return the operations between the model's outputs and the loss, from the outputs on, with the ranges of what they keep.

    Args:
        loss: The root, with its graph.
        outputs: Numbers of the nodes of the graph that made the outputs.
    """
    found: list[Any] = []
    waiting: list[Any] = [loss.grad_fn]
    while waiting and len(found) < MOST_OPERATIONS:
        node = waiting.pop(0)
        if node is None or node in found or node._sequence_nr() in outputs or node.name().endswith("AccumulateGrad"):
            continue
        found.append(node)
        waiting.extend(following for following, _ in node.next_functions)
    found.sort(key=lambda node: node._sequence_nr())  # in the order in which they were done
    return [{"name": node.name().removeprefix("torch::autograd::"), "keeps": kept_by(node)} for node in found]


def kept_by(node: Any) -> dict[str, dict[str, float]]:
    """Return the ranges of the tensors that an operation keeps for its derivative: mostly its input, or its result."""
    ranges = {}
    for name in saved_tensors(node.__class__):
        try:
            value = saved(node, name)
        except NotMeasured:  # it was changed in place, is gone, or would be computed again by a checkpoint
            continue
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            ranges[name] = describe(value)
    return ranges


def describe(tensor: Tensor) -> dict[str, float]:
    """Return the range of the finite elements, and how many are zero, NaN and infinite."""
    values = tensor.detach()
    finite = values[torch.isfinite(values)].double()
    return {
        "smallest": float(finite.min()) if len(finite) else float("nan"),
        "largest": float(finite.max()) if len(finite) else float("nan"),
        "zeros": int((values == 0).sum()),
        "nan": int(values.isnan().sum()),
        "infinite": int(values.isinf().sum()),
        "elements": values.numel(),
    }
