"""Share of the gradient's elements that are exactly zero."""

import torch

from cockpit_lite.instrument import GRADIENT, Instrument, Readings
from cockpit_lite.step import Step


class GradientZeros(Instrument):
    """Writes ``gradient_zeros``, a share between 0 and 1."""

    name = "gradient_zeros"
    needs = (GRADIENT,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        zeros = torch.stack([(gradient == 0).sum() for gradient in step.gradient.values()]).sum()
        return {"gradient_zeros": zeros / sum(gradient.numel() for gradient in step.gradient.values())}
