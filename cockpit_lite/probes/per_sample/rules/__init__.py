"""Which module has which rule. A new rule is one file and one line here."""

from __future__ import annotations

from torch import nn

from cockpit_lite.probes.per_sample.rules.attention import PerSampleAttention
from cockpit_lite.probes.per_sample.rules.convolution import PerSampleConvolution, PerSampleTransposedConvolution
from cockpit_lite.probes.per_sample.rules.embedding import PerSampleEmbedding, PerSampleEmbeddingBag
from cockpit_lite.probes.per_sample.rules.linear import PerSampleLinear
from cockpit_lite.probes.per_sample.rules.normalization import (
    PerSampleBatchNorm,
    PerSampleGroupNorm,
    PerSampleInstanceNorm,
    PerSampleLayerNorm,
    PerSampleRMSNorm,
)
from cockpit_lite.probes.per_sample.rules.recurrent import PerSampleRecurrent
from cockpit_lite.probes.per_sample.rules.rule import NoRule, Rule
from cockpit_lite.sharded import unsharded_class

#: Exact classes, as in BackPACK: a subclass may calculate something else, and goes to the generic rule.
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: PerSampleLinear(),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), PerSampleConvolution()),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), PerSampleTransposedConvolution()),
    nn.Embedding: PerSampleEmbedding(),
    nn.EmbeddingBag: PerSampleEmbeddingBag(),
    nn.LayerNorm: PerSampleLayerNorm(),
    nn.RMSNorm: PerSampleRMSNorm(),
    nn.GroupNorm: PerSampleGroupNorm(),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), PerSampleInstanceNorm()),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), PerSampleBatchNorm()),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), PerSampleRecurrent()),
    nn.MultiheadAttention: PerSampleAttention(),
}


def rule_of(module: nn.Module) -> Rule | None:
    """Return the rule of a module, ``None`` if its class has none."""
    return RULES.get(type(module)) or RULES.get(unsharded_class(module))


__all__ = ["RULES", "NoRule", "Rule", "rule_of"]
