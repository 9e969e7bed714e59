"""Which outputs of the model a loss was made of, read off its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cockpit_lite.errors import NotMeasured

_Edge = tuple[Any, int]  # a node of the graph and which of its outputs


def front(loss: Tensor, outputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[int]:
    """Return the positions of the outputs that the loss was made of, not counting those that other outputs were made of.

    Raises:
        NotMeasured: if the loss depends on a parameter in another way than through the outputs, or on an output both
            directly and through another one: what the loss makes of each output could not be told apart.
    """
    edges = {_edge(output): index for index, output in enumerate(outputs) if output.grad_fn is not None}
    found, leaves = _search([_edge(loss)], edges)
    if leaves & {id(parameter) for parameter in parameters}:
        raise NotMeasured("the loss uses parameters beside the model's output")
    if not found:
        raise NotMeasured("the loss does not come from the model's last forward pass")
    behind, _ = _search([edge for node, _ in found for edge in node.next_functions], {})
    if found & behind:
        raise NotMeasured("the loss uses outputs of the model of which one is made of another")
    return sorted(edges[edge] for edge in found)


def prediction_front(loss: Tensor, outputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[int]:
    """Return what :func:`front` does, of the outputs that are no loss themselves.

    A model that returns its own loss beside the logits is told from one that returns predictions by the number of axes.

    Raises:
        NotMeasured: as :func:`front` does, and if the model returns nothing but its own loss.
    """
    predictions = [index for index, output in enumerate(outputs) if output.dim()]
    if not predictions:
        raise NotMeasured("the model returns its own loss and no prediction")
    return [predictions[index] for index in front(loss, [outputs[index] for index in predictions], parameters)]


def _edge(tensor: Tensor) -> _Edge:
    return tensor.grad_fn, tensor.output_nr


def _search(start: Sequence[_Edge], stops: Mapping[_Edge, int]) -> tuple[set[_Edge], set[int]]:
    """Walk the graph from ``start``, not beyond ``stops``.

    Returns:
        The stops that were met (every edge that was met, if there are no stops), and the ids of the leaves.
    """
    met: set[_Edge] = set()
    leaves: set[int] = set()
    pending = list(start)
    seen = set(pending)
    while pending:
        edge = pending.pop()
        if not stops or edge in stops:
            met.add(edge)
        if edge in stops or edge[0] is None:
            continue
        leaves.add(id(getattr(edge[0], "variable", None)))
        for following in edge[0].next_functions:
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return met, leaves
