"""Reads the projections of MultiheadAttention off the user's own graph, so that nothing has to be repeated.

The call shows neither what goes into the output projection nor the gradient behind the input projection. Its graph does: both
are ``mm`` or ``addmm`` nodes that lead to the module's weights, keep their input and are told their output gradient. Where the
graph looks otherwise (separate projections, activation checkpointing, another torch) nothing is read and the rule repeats the
attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: No further nodes are looked at: the two projections of one call are close to its output.
NODES = 80
#: Kind of node -> which of its inputs is the transposed weight, and where it keeps the other factor.
KINDS = {"AddmmBackward0": (2, "_saved_mat1"), "MmBackward0": (1, "_saved_self")}


@dataclass(eq=False)
class Projection:
    """One projection of a call: rows are (time, sample), as torch calculates them.

    Attributes:
        inputs: Shape (T * N, I).
        delta: Gradient at its output, shape (T * N, O); ``None`` until it arrives.
    """

    inputs: Tensor
    delta: Tensor | None = None

    def let_go(self) -> None:
        """Keep nothing: the hook on the user's graph lives as long as that does."""
        self.inputs, self.delta = self.inputs.new_empty(0), None


def watch_projections(module: nn.MultiheadAttention, output: Tensor, listening: Callable[[], bool]) -> dict[str, Projection]:
    """Return the two projections of the call that has just returned ``output``, or nothing.

    Args:
        module: The attention.
        output: Its first output.
        listening: Whether a gradient that arrives now counts.
    """
    if module.in_proj_weight is None or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return {}
    wanted = {id(module.in_proj_weight): "in_proj", id(module.out_proj.weight): "out_proj"}
    found: dict[str, Any] = {}
    seen: set[Any] = set()
    open_nodes = [output.grad_fn]
    while open_nodes and len(seen) < NODES and len(found) < 2:
        node: Any = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = _projection(node, wanted)
        if name is not None:
            if name in found:
                return {}
            found[name] = node
            if name == "in_proj":
                continue
        open_nodes.extend(following for following, _ in node.next_functions)
    if len(found) < 2:
        return {}
    projections = {name: Projection(getattr(node, KINDS[type(node).__name__][1]).detach()) for name, node in found.items()}
    for name, node in found.items():
        node.register_prehook(_recorder(projections[name], listening))
    return projections


def _projection(node: Any, wanted: dict[int, str]) -> str | None:
    """Return which weight the node multiplies with, if it is a projection."""
    kind = KINDS.get(type(node).__name__)
    if kind is None or len(node.next_functions) <= kind[0]:
        return None
    transposed = node.next_functions[kind[0]][0]
    if transposed is None or not transposed.next_functions:
        return None
    return wanted.get(id(getattr(transposed.next_functions[0][0], "variable", None)))


def _recorder(projection: Projection, listening: Callable[[], bool]) -> Callable[[tuple[Tensor, ...]], None]:
    def record(deltas: tuple[Tensor, ...]) -> None:
        if listening() and deltas[0] is not None:
            known, arrived = projection.delta, deltas[0].detach()
            projection.delta = arrived if known is None else known + arrived

    return record
