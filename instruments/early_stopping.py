"""Evidence-based early stopping: is there still a signal in the gradient, or is it what sampling noise alone would give?

    early_stopping = 1 - N/D sum_j G_j^2 / (s_j + 1e-5),   s_j = 1/(N-1) sum_n (g_nj - G_j)^2

If the gradient of the whole training distribution were zero, N G_j^2 / s_j would be about 1, and the criterion about 0. Below
zero: there is a signal, go on. Above zero, at several steps in a row: the gradients are smaller than their noise explains, and
what is learnt from now on is the training sample: stop. It needs no validation set. The constant in
the denominator pushes the criterion towards 1 where the gradients are small, of the order of 1e-3 and less.

Source: Mahsereci, Balles, Lassner, Hennig, Early stopping without a validation set, 2017, (7).
"""

from __future__ import annotations

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES, Instrument, Readings
from cockpit_lite.probes.noise import reading, signal_to_noise
from cockpit_lite.step import Step


class EarlyStopping(Instrument):
    """Writes ``early_stopping``, without unit."""

    name = "early_stopping"
    needs = (GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        found = signal_to_noise(step)
        mean = found.total.sample / sum(found.elements.values())
        return {"early_stopping": reading(step.per_sample, 1 - step.per_sample.batch_size * mean)}
