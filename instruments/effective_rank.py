"""Effective rank: in how many directions the outputs of a layer vary, as a share of those they could vary in.

    effective_rank/<module> = exp( - sum_i p_i log p_i ) / min(units, rows - 1),   p_i = s_i / sum_j s_j
    effective_rank          = the smallest of them

s_i are the singular values of the outputs, rows (samples and positions) by units, with the mean over the rows taken off. 1: all
directions alike; near 0: the outputs lie on a line whatever the input is, representations have collapsed, and the layers behind
have next to nothing to tell samples apart by. Falling with depth is normal, the more so near the classes; a sudden fall over
time, or a hidden layer that uses a few per cent of its units, is not. Exactly 0: the layer puts out the same for every sample.

Measured for layers with a weight matrix, on at most 200 rows and 100 units, always the same ones: what is left out makes it an
estimate, of the rank and not of the share that it is of these.

Source: Roy, Vetterli, The effective rank: a measure of effective dimensionality, 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATION_SAMPLES, ACTIVATIONS, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.moments import stacked
from cockpit_lite.probes.output_sample import MOST_ROWS
from cockpit_lite.step import Step


def squared_singular_values(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the squared singular values of matrices with the mean over the rows taken off, in ascending order.

    From the smaller of the two Gram matrices, in double precision where the device has it. Where nothing varies beyond rounding
    all are zero; where an output is not finite all are NaN.
    """
    grams: dict[int, list[tuple[int, Tensor]]] = {}
    for index, matrix in enumerate(outputs):
        values = matrix if matrix.device.type == "mps" else matrix.double()
        centred = values - values.mean(0)
        gram = centred.T @ centred if values.shape[0] >= values.shape[1] else centred @ centred.T
        rounding = torch.finfo(matrix.dtype).eps ** 2 * values.square().sum()
        gram = torch.where(gram.diagonal().sum() > rounding, gram, gram * 0)
        grams.setdefault(len(gram), []).append((index, gram))
    found: dict[int, Tensor] = {}
    for group in grams.values():  # one call for all of a size
        device = group[0][1].device
        stack = torch.stack([gram.to(device) for _, gram in group])
        broken = stack.isfinite().all(-1).all(-1, keepdim=True).logical_not()  # which the decomposition would refuse
        values = torch.linalg.eigvalsh(stack.nan_to_num(0.0, 0.0, 0.0)).clamp(min=0.0)
        found.update(zip((index for index, _ in group), values.masked_fill(broken, torch.nan), strict=True))
    return [found[index] for index in range(len(outputs))]


def effective_rank(squared: Tensor) -> Tensor:
    """Return the exponential of the entropy of the singular values, given their squares; 0 if all are zero."""
    values = squared.sqrt()
    total = values.sum()
    shares = values / total
    return torch.where(total == 0, total, torch.exp(-torch.xlogy(shares, shares).sum()))


def shares_of_width(samples: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return the effective rank of each layer as a share of the greatest possible, for layers where more than one is possible."""
    matrices = {name: _joined(calls) for name, calls in samples.items()}
    possible = {name: min(matrix.shape[0] - 1, matrix.shape[1]) for name, matrix in matrices.items()}
    names = [name for name, most in possible.items() if most > 1]
    spectra = squared_singular_values([matrices[name] for name in names])
    return {name: effective_rank(spectrum) / possible[name] for name, spectrum in zip(names, spectra, strict=True)}


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
            "effective_rank": Reading(stacked(list(shares.values())).min(), kind="estimated", note=note),
            **layerwise("effective_rank", shares),
        }
