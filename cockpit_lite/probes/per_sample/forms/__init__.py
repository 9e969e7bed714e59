"""The forms in which a rule hands over the per-sample gradients of one parameter.

A rule never has to build the N gradients: it says how they factor, and the form knows the cheapest way to squared norms,
inner products, sums of squares and, where somebody really needs them, the gradients themselves.

    OuterProducts    sum over positions t of  d_t a_t'      Linear, convolutions, recurrent weights
    Windows          the same, a_t windows of an image       convolutions
    Chunks           the same, some samples at a time        what Windows is where the gradients themselves are wanted
    Sums             sum over positions t of  d_t            the biases of these layers
    Rows             rows of a table                         Embedding, EmbeddingBag
    Sum              rows of a table and outer products      an embedding that is also the output layer
    Dense            the gradients, one after the other      normalisation layers, anything else
    Condensed        numbers that were measured before       any of these, once it was let go

All forms calculate in float32 at least, also in a half precision training.
"""

from __future__ import annotations

from cockpit_lite.probes.per_sample.forms.addition import add
from cockpit_lite.probes.per_sample.forms.chunks import Chunks
from cockpit_lite.probes.per_sample.forms.condensed import Condensed
from cockpit_lite.probes.per_sample.forms.dense import Dense
from cockpit_lite.probes.per_sample.forms.form import CHUNK, Form, Measured, accurate
from cockpit_lite.probes.per_sample.forms.outer_products import OuterProducts, Side, Sums
from cockpit_lite.probes.per_sample.forms.table import Rows, Sum
from cockpit_lite.probes.per_sample.forms.windows import Windows

__all__ = [
    "CHUNK",
    "Chunks",
    "Condensed",
    "Dense",
    "Form",
    "Measured",
    "OuterProducts",
    "Rows",
    "Side",
    "Sum",
    "Sums",
    "Windows",
    "accurate",
    "add",
]
