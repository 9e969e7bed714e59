"""Gradient signal-to-noise ratio: how much the samples agree on each element of the gradient, in the mean and by parameter.

    gsnr = 1/D sum_j G_j^2 / (var_j + 1e-5),   var_j = 1/N sum_n g_nj^2 - G_j^2

The samples of the batch agree on an element that is far above 1, and cancel in one near 1/N, which is what noise alone gives.
High early in training is a good sign for generalisation; a layer at 1/N learns nothing that holds for all samples. The constant
in the denominator, of the source, damps the ratio where gradients are small: compare values along one run rather than
between models.

Source: Liu, Bai, Jiang, Chen, Wang, Understanding why neural networks generalize well through GSNR of parameters, 2020.
"""

from __future__ import annotations

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES, Instrument, Readings, layerwise
from cockpit_lite.probes.noise import reading, signal_to_noise
from cockpit_lite.step import Step


class GradientSignalToNoise(Instrument):
    """Writes ``gsnr`` and ``gsnr/<parameter>``, without unit."""

    name = "gsnr"
    needs = (GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        found, statistics = signal_to_noise(step), step.per_sample
        mean = found.total.population / sum(found.elements.values())
        by_parameter = {name: reading(statistics, part / found.elements[name]) for name, part in found.by_parameter.items()}
        return {"gsnr": reading(statistics, mean), **layerwise("gsnr", by_parameter)}
