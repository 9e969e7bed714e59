"""Conflicting samples: the share of the batch whose own loss a step along the gradient would raise.

    conflicting_samples = #{n : g_n'G < 0} / N

About one half is what pure noise gives. Some samples always pull against the others; a share that stays high while the loss
falls points to contradicting labels or to tasks that do not fit together. Read it with the batch size in mind: the sample itself
is part of G, so in a small batch fewer seem to be in conflict.

Source: Sankararaman, De, Xu, Huang, Goldstein, The impact of neural network overparameterization on gradient confusion, 2020.
"""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS, Instrument, Readings
from cockpit_lite.probes.noise import contributions_products, reading
from cockpit_lite.step import Step


def conflicting_share(products: Tensor) -> Tensor:
    """Return the share of samples in conflict from the products ``c_n'G`` (N,)."""
    return (products < 0).to(products.dtype).mean()


class ConflictingSamples(Instrument):
    """Writes ``conflicting_samples``, a share between 0 and 1."""

    name = "conflicting_samples"
    needs = (GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        value = conflicting_share(contributions_products(step.per_sample))
        return {"conflicting_samples": reading(step.per_sample, value)}
