"""Attention: how sharp the heads are, and how large the products of queries and keys have become.

    attention_entropy  mean entropy of the attention weights over the queries, relative to that of equal weights, of the sharpest
                       layer
    attention_logit    largest |q'k| / sqrt(d) of all layers; where the attention is fused and keeps its queries and keys

and both by module. An entropy near 1 attends to everything alike, near 0 to a single key. Heads that are sharp and stable are
fine. Logits that grow without end while the entropy falls to 0: attention has collapsed, its gradient is gone or explodes.

Source: Zhai and others, Stabilizing transformer training by preventing attention entropy collapse, 2023; Dehghani and others,
Scaling vision transformers to 22 billion parameters, 2023.
"""

from __future__ import annotations

import torch

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ATTENTION, Instrument, Readings, layerwise
from cockpit_lite.step import Step


class AttentionCheck(Instrument):
    """Writes ``attention_entropy`` (0 to 1) and ``attention_logit``, also by module."""

    name = "attention"
    needs = (ATTENTION,)
    readings = ("attention_entropy", "attention_logit")
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        found = step.attention
        if not found.entropy:
            raise NotMeasured("no attention was seen in the graph of the loss")
        readings: dict[str, object] = {
            "attention_entropy": torch.stack(list(found.entropy.values())).amin(),
            **layerwise("attention_entropy", found.entropy),
            **layerwise("attention_logit", found.logit),
            "attention_logit": NotMeasured("the attention is written out and does not keep its queries and keys"),
        }
        if found.logit:
            readings["attention_logit"] = torch.stack(list(found.logit.values())).amax()
        return readings  # type: ignore[return-value]
