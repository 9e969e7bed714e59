"""Attention as it was computed in a step, read off the graph of the loss: no hook, and no second pass.

A fused attention keeps its queries and keys for the backward pass, one that is written out keeps the result of its softmax. A few
queries of a few samples are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.curvature.forward_probe import nodes_behind
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.nodes import saved, saved_tensors

#: Samples and queries that are looked at.
MOST_SAMPLES, MOST_QUERIES = 4, 64
#: A sum over fewer keys is no attention.
FEWEST_KEYS = 4


@dataclass
class Attention:
    """The attentions of a step, in the order of the forward pass, named for the parameter that their queries come from.

    Attributes:
        entropy: Mean over queries and heads of the entropy of the weights, over that of equal weights; 1: attends to all alike.
        logit: Largest magnitude of q'k / sqrt(d); only of fused attention, which keeps queries and keys.
    """

    entropy: dict[str, Tensor] = field(default_factory=dict)
    logit: dict[str, Tensor] = field(default_factory=dict)


def attentions(loss: Tensor, parameters: Mapping[int, str]) -> Attention:
    """Return what is seen of the attentions that a loss was made of.

    Args:
        loss: With its graph.
        parameters: Identity of a parameter -> its name.
    """
    found = Attention()
    nodes = [node for node in nodes_behind(loss) if "ScaledDotProduct" in node.name() or node.name() == "SoftmaxBackward0"]
    nodes.sort(key=lambda node: node._sequence_nr())
    fused = [node for node in nodes if "ScaledDotProduct" in node.name()]
    with torch.no_grad():
        for number, node in enumerate(nodes):
            try:
                _look(node, _name(node, parameters) or f"attention {number}", found, bool(fused))
            except NotMeasured:
                continue
    return found


def _look(node: Any, name: str, found: Attention, fused: bool) -> None:
    while name in found.entropy:
        name += "'"
    if node.name() == "SoftmaxBackward0":
        weights = saved(node, "result")
        if weights.dim() < 3 or weights.shape[-1] < FEWEST_KEYS or weights.shape[-2] < 2:
            return  # the softmax of a classifier
        rows = _sample(weights.reshape(-1, *weights.shape[-2:])).float()
        # What nobody attends to is masked; a weight may be zero because another one is so much larger.
        found.entropy[name] = _entropy(rows, (rows > 0).any(0))
        return
    names = saved_tensors(node.__class__)
    if not {"query", "key"} <= set(names):
        return
    query, key = saved(node, "query"), saved(node, "key")
    if query.dim() != 4 or key.shape[-2] < FEWEST_KEYS:
        return
    queries = query[:MOST_SAMPLES].float()
    places = torch.arange(0, query.shape[-2], -(-query.shape[-2] // MOST_QUERIES), device=query.device)
    keys = key[:MOST_SAMPLES].float()
    if keys.shape[1] != queries.shape[1]:  # several heads share their keys
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    scale = saved(node, "scale") if hasattr(node, "_saved_scale") else None
    logits = queries[:, :, places] @ keys.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
    found.logit[name] = logits.abs().amax()
    mask = next((saved(node, other) for other in ("attn_mask", "attn_bias") if other in names), None)
    if isinstance(mask, Tensor) and mask.numel():
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])[:MOST_SAMPLES, :, places]
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    if hasattr(node, "_saved_is_causal") and saved(node, "is_causal"):
        behind = torch.arange(key.shape[-2], device=key.device) > places[:, None] + (key.shape[-2] - query.shape[-2])
        logits = logits.masked_fill(behind, -math.inf)
    found.entropy[name] = _entropy(logits.softmax(-1), logits > -math.inf)


def _sample(weights: Tensor) -> Tensor:
    """Return some of the rows of (matrices, queries, keys)."""
    every, queries = -(-len(weights) // (8 * MOST_SAMPLES)), -(-weights.shape[1] // MOST_QUERIES)
    return weights[::every, ::queries]


def _entropy(weights: Tensor, open_keys: Tensor) -> Tensor:
    """Return the mean entropy of distributions over the last axis, relative to equal weights on the keys that are open."""
    keys = open_keys.sum(-1)
    entropy = -torch.special.xlogy(weights, weights).sum(-1) / keys.clamp(min=2).log()
    choice = (keys > 1).expand(entropy.shape)
    return torch.where(choice, entropy, 0.0).sum() / choice.sum()


def _name(node: Any, parameters: Mapping[int, str]) -> str:
    """Return the name of the first parameter met on the way back from the queries."""
    waiting = [following for following, _ in node.next_functions[:1]]
    for _ in range(60):
        if not waiting:
            return ""
        node = waiting.pop(0)
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            name = parameters.get(id(variable), "")
            if name:
                return name.rpartition(".")[0] or name
            continue
        waiting.extend(following for following, _ in node.next_functions)
    return ""
