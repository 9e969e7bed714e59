"""Histogram of the elements of the per-sample gradients, of the whole model and of every parameter.

    grad_hist_1d[b] = elements g_nj in bin b, of a million,   n over the samples, j over the elements of the parameters

g_n is N times what sample n contributes to the mini-batch gradient. The bins are symmetric and logarithmic: two a decade from
1e-10 to 1e4 in either sign, one for everything nearer to zero in the middle, one beyond each end, 59 in all. They are the same
at every step, in every layer and in every run, so that any two histograms compare. (A linear range would have to follow the
gradients: it grows with the first outlier, and from then on shows a single peak.) ``grad_hist_1d_bins`` says the three numbers.
NaN is in no bin, so a sum below a million tells of it.

In a healthy network the gradients make two hills, one a sign, a few decades wide, which drift slowly to smaller magnitudes as
training goes on. Bad: hills that reach far outwards (inputs that are not scaled, exploding gradients); hills that lie decades
apart from layer to layer, smallest at the input (vanishing gradients); much in the middle bin (dead units, layers that are cut
off, underflow in half precision, which knows nothing below 6e-8).

From a random sample of elements and of the batch, new at every step: unbiased for the whole model and for every parameter.
``exact=True`` looks at all of them. Two parameters at a time have a histogram of their own, which takes half a kilobyte; they
take turns: of sixty each has one at about every thirtieth measurement.

Source: F. Schneider, F. Dangel, P. Hennig, "Cockpit" (NeurIPS 2021), section 2.2 and figure 3.
"""

from __future__ import annotations

from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import PER_SAMPLE_ELEMENTS, PER_SAMPLE_GRADIENTS, Instrument, Readings, layerwise
from cockpit_lite.probes.bins import SymmetricBins
from cockpit_lite.probes.per_sample.histogram import Binning, element_histograms
from cockpit_lite.step import Step

BINS = SymmetricBins(low=-10, high=4, per_decade=2)
BINNING = Binning((BINS.count,), lambda sample: BINS.index(sample.gradients, sample.logarithms))
#: The numbers that the edges follow from, as a reading.
DESCRIPTION = BINS.describe()


class GradHist1d(Instrument):
    """Writes ``grad_hist_1d``, its bins, and in turn ``grad_hist_1d/<parameter>``.

    Args:
        elements: How many elements of the model to draw at a measurement, beside 32 of each parameter whose turn it is.
        exact: Whether to look at every element of every sample instead: slow, from one training step's time for a transformer
            to hundreds for an MLP.
        layers: Whether to write the histograms of the parameters.
    """

    name = "grad_hist_1d"
    needs = (PER_SAMPLE_ELEMENTS,)
    readings = ("grad_hist_1d", "grad_hist_1d_bins")
    preset = "standard"

    def __init__(self, elements: int = 256, exact: bool = False, layers: bool = True):
        if elements < 1:
            raise SetupError(f"GradHist1d(elements={elements}): at least 1 is needed.")
        self.drawn_elements, self.exact = elements, exact
        if exact:
            self.needs = (PER_SAMPLE_GRADIENTS,)
        self.layers = layers

    def measure(self, step: Step) -> Readings:
        found = element_histograms(step, BINNING, self.exact)
        return {
            "grad_hist_1d": found.model,
            "grad_hist_1d_bins": DESCRIPTION,
            **layerwise("grad_hist_1d", found.by_parameter if self.layers else {}),
        }
