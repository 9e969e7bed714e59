"""Effective rank: in how many directions the outputs of a layer vary, as a share of those they could vary in.

    effective_rank/<module> = exp( - sum_i p_i log p_i ) / min(units, rows - 1),   p_i = s_i / sum_j s_j
    effective_rank          = the smallest of them

s_i are the singular values of the outputs, rows (samples and positions) by units, with the mean over the rows taken off. 1: all
directions alike; near 0: the outputs lie on a line whatever the input is, representations have collapsed, and the layers behind
have next to nothing to tell samples apart by. Falling with depth is normal, the more so near the classes; a sudden fall over
time, or a hidden layer that uses a few per cent of its units, is not. Exactly 0: the layer puts out the same for every sample.

Measured for layers with a weight matrix, on at most 128 rows and 64 units, always the same ones: what is left out makes it an
estimate, of the rank and not of the share that it is of these.

Source: Roy, Vetterli, The effective rank: a measure of effective dimensionality, 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATION_SAMPLES, ACTIVATIONS, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.output_sample import MOST_ROWS
from cockpit_lite.step import Step

#: What several layers of sums leave of rounding, in units of the last digit.
_ROUNDING = 10.0


class Spectrum(NamedTuple):
    """Of a stack of matrices (layers, rows, units) with the mean over the rows taken off.

    Attributes:
        singular_values: In any order, shape (layers, values).
        varies: Whether anything varies beyond rounding, as 0 or 1; NaN where an output is not finite. Shape (layers,).
    """

    singular_values: Tensor
    varies: Tensor


def spectrum(outputs: Tensor) -> Spectrum:
    """Return the spectrum of each matrix of a stack, shape (layers, rows, units).

    The singular values come from the smaller of the two Gram matrices, in double precision where the device has it.
    """
    values = outputs if outputs.device.type == "mps" else outputs.double()
    mean = values.mean(-2, keepdim=True)
    centred = values - mean
    gram = centred.mT @ centred if values.shape[-2] >= values.shape[-1] else centred @ centred.mT
    spread = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    rounding = _ROUNDING * torch.finfo(outputs.dtype).eps
    varies = spread > (mean.square().sum((-2, -1)) * values.shape[-2] + spread) * rounding**2
    # The decomposition refuses what is not finite; 0 times that is NaN.
    squared = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0)).clamp_(min=0.0)
    return Spectrum(squared.sqrt_(), varies + 0.0 * spread)


def effective_ranks(spectra: Sequence[Spectrum]) -> Tensor:
    """Return the effective rank of each matrix, shape (layers,): 0 where nothing varies, NaN where an output is not finite."""
    if len(spectra) == 1:
        return exponential_entropy(spectra[0].singular_values) * spectra[0].varies
    most = max(values.shape[1] for values, _ in spectra)
    values = torch.cat([F.pad(values, (0, most - values.shape[1])) for values, _ in spectra])  # zeros do not count
    return exponential_entropy(values) * torch.cat([varies for _, varies in spectra])


def exponential_entropy(values: Tensor) -> Tensor:
    """Return exp(- sum p log p) over the last axis, p the values as shares of their sum: how many of them there are in effect."""
    shares = values / values.sum(-1, keepdim=True).clamp_(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp_()


def shares_of_width(samples: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return the effective rank of each layer as a share of the greatest possible, for layers where more than one is possible."""
    matrices = {name: _joined(calls) for name, calls in samples.items()}
    groups: dict[tuple[torch.Size, torch.device, torch.dtype], list[str]] = {}  # all of one shape at once
    for name, matrix in matrices.items():
        if min(matrix.shape[0] - 1, matrix.shape[1]) > 1:
            groups.setdefault((matrix.shape, matrix.device, matrix.dtype), []).append(name)
    if not groups:
        return {}
    names = [name for group in groups.values() for name in group]
    found = [spectrum(torch.stack([matrices[name] for name in group])) for group in groups.values()]
    device = found[0].varies.device
    ranks = effective_ranks([Spectrum(*(part.to(device) for part in each)) for each in found])
    possible = [min(matrices[name].shape[0] - 1, matrices[name].shape[1]) for name in names]
    shares = dict(zip(names, (ranks / torch.tensor(possible, device=device)).unbind(), strict=True))
    return {name: shares[name] for name in samples if name in shares}


def _joined(calls: Sequence[Tensor]) -> Tensor:
    """Return the rows of all calls with as many units as the first, spread evenly and not more than of one call."""
    rows = [call.to(calls[0].device) for call in calls if call.shape[1] == calls[0].shape[1]]
    return rows[0] if len(rows) == 1 else torch.cat(rows)[:: -(-sum(map(len, rows)) // MOST_ROWS)]


class EffectiveRank(Instrument):
    """Writes ``effective_rank`` and ``effective_rank/<module>``, shares between 0 and 1."""

    name = "effective_rank"
    needs = (ACTIVATIONS, ACTIVATION_SAMPLES)
    preset = "full"

    def measure(self, step: Step) -> Readings:
        shares = shares_of_width(step.activations.samples)
        if not shares:
            raise NotMeasured("no layer with a weight matrix put out several units for several samples on this step")
        note = "of a sample of outputs and units"
        return {
            "effective_rank": Reading(torch.stack(list(shares.values())).min(), kind="estimated", note=note),
            **layerwise("effective_rank", shares),
        }
