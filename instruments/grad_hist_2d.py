"""Joint histogram of the parameters and the elements of the per-sample gradients.

    grad_hist_2d[a, b] = pairs (theta_j, g_nj) with theta_j in bin a and g_nj in bin b, of a million

over all samples n and elements j. Both axes have symmetric logarithmic bins, one a decade: parameters from 1e-4 to 10 (13 bins,
the rows), gradients from 1e-8 to 1e3 (25 bins, the columns), with a bin around zero in the middle and one beyond each end.
``grad_hist_2d_bins`` says the three numbers of each axis.

In a healthy network the two know little of each other: every row spreads over the same few columns, so small parameters and
large ones get gradients of the same magnitude. Bad: rows that spread far to both sides (inputs that are not scaled, exploding
gradients); rows at different columns (layers of different scale that get very different gradients); mass in the middle column
(dead units, vanishing gradients); large parameters whose gradients all have the sign that makes them larger still.

From a random sample of elements, the same as that of ``grad_hist_1d``; ``exact=True`` looks at all of them. About a kilobyte a
measured step.

Source: F. Schneider, F. Dangel, P. Hennig, "Cockpit" (NeurIPS 2021), section 2.2 and figure 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import PER_SAMPLE_ELEMENTS, PER_SAMPLE_GRADIENTS, Instrument, Readings, layerwise
from cockpit_lite.probes.bins import SymmetricBins
from cockpit_lite.probes.per_sample.histogram import Binning, element_histograms
from cockpit_lite.probes.per_sample.sampled import SampledElements
from cockpit_lite.step import Step

PARAMETER_BINS = SymmetricBins(low=-4, high=1, per_decade=1)
GRADIENT_BINS = SymmetricBins(low=-8, high=3, per_decade=1)


def joint_index(sample: SampledElements) -> Tensor:
    """Return row times number of columns plus column, where one more row and one more column hold what is NaN."""
    rows = PARAMETER_BINS.index(sample.parameters) * (GRADIENT_BINS.count + 1)
    return GRADIENT_BINS.index(sample.gradients, sample.logarithms).add_(rows)


BINNING = Binning((PARAMETER_BINS.count, GRADIENT_BINS.count), joint_index)
#: The numbers that the edges follow from, as a reading.
DESCRIPTION = torch.stack([PARAMETER_BINS.describe(), GRADIENT_BINS.describe()])


class GradHist2d(Instrument):
    """Writes ``grad_hist_2d`` of the whole model, and its bins.

    Args:
        elements: How many elements of the model to draw at a measurement, beside 32 of each parameter whose turn it is.
        exact: Whether to look at every element of every sample instead: slow, from one training step's time for a transformer
            to hundreds for an MLP.
        layers: Whether to write ``grad_hist_2d/<parameter>``, too, of two parameters at a time: a kilobyte each.
    """

    name = "grad_hist_2d"
    needs = (PER_SAMPLE_ELEMENTS,)
    readings = ("grad_hist_2d", "grad_hist_2d_bins")
    preset = "full"

    def __init__(self, elements: int = 256, exact: bool = False, layers: bool = False):
        if elements < 1:
            raise SetupError(f"GradHist2d(elements={elements}): at least 1 is needed.")
        self.drawn_elements, self.exact = elements, exact
        if exact:
            self.needs = (PER_SAMPLE_GRADIENTS,)
        self.layers = layers

    def measure(self, step: Step) -> Readings:
        found = element_histograms(step, BINNING, self.exact)
        return {
            "grad_hist_2d": found.model,
            "grad_hist_2d_bins": DESCRIPTION,
            **layerwise("grad_hist_2d", found.by_parameter if self.layers else {}),
        }
