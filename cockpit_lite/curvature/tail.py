"""The end of a network: its last layers, where products cost little and much of the sharpest directions shows already.

A product with the block of the Hessian that belongs to the last layers goes no further down the graph than these. Which
combination of classes or outputs a mini-batch bends most along is decided there, and it may be another one for every
mini-batch: so a search in this block, which costs about as much as one product with the whole matrix, says more of the
eigenvector of this step than the eigenvector of the last one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.obstacles import MOST_NODES

#: The last layers hold no more than this share of the elements, tables that are only looked up in not counted, ...
SHARE = 0.25

#: ... and were used in no more than this last part of the forward pass: a recurrent network uses small biases from its start on.
LATEST = 0.7

#: What is added to the diagonal of the fit in :func:`complete`, relative: remembered directions nearly depend on each other.
_RIDGE = 1e-3


def last_layers(root: Tensor, parameters: Sequence[nn.Parameter]) -> list[int]:
    """Return the positions of the parameters that the forward pass used last, in the order of ``parameters``.

    Empty where they are all of them, or where already the last one holds more than :data:`SHARE` of the elements or was used
    early.
    """
    first_use, tables = _first_uses(root)
    used = [index for index, parameter in enumerate(parameters) if id(parameter) in first_use]
    used.sort(key=lambda index: first_use[id(parameters[index])], reverse=True)
    total = sum(parameters[index].numel() for index in used if id(parameters[index]) not in tables)
    latest = max(first_use.values(), default=0)
    earliest = latest - LATEST * (latest - min(first_use.values(), default=0))
    chosen, elements = [], 0
    for index in used:
        elements += parameters[index].numel()
        if elements > SHARE * total or first_use[id(parameters[index])] < earliest:
            break
        chosen.append(index)
    whole = len(chosen) == len(used)
    return [] if whole or all(parameters[index].dim() < 2 for index in chosen) else sorted(chosen)  # a bias is no layer


def _first_uses(root: Tensor) -> tuple[dict[int, int], set[int]]:
    """Return by the id of each parameter when the forward pass first used it, and which ones are looked up in."""
    first: dict[int, int] = {}
    tables: set[int] = set()
    pending: list[Any] = [root.grad_fn]
    seen = set(pending)
    while pending and len(seen) < MOST_NODES:
        node = pending.pop()
        if node is None:
            continue
        for following, _ in node.next_functions:
            variable = getattr(following, "variable", None)
            if variable is not None:
                number = node._sequence_nr()
                first[id(variable)] = min(number, first.get(id(variable), number))
                if node.name().startswith("Embedding"):
                    tables.add(id(variable))
            elif following not in seen:
                seen.add(following)
                pending.append(following)
    return first, tables


def complete(pieces: Tensor, given: Tensor) -> Tensor:
    """Return with which weights known directions go best with what was found in the last layers.

    Args:
        pieces: What was found, as rows.
        given: What the known directions are there, as rows.

    Returns:
        A row of weights for each piece: the combination of the known that is nearest to it in the last layers.
    """
    inner = given @ given.T
    ridge = _RIDGE * inner.diagonal().mean().clamp_min(1e-30)
    weights, _ = torch.linalg.solve_ex(inner + ridge * torch.eye(len(inner)).to(inner), given @ pieces.T)
    return weights.T
