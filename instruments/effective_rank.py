"""Effective rank: in how many directions the outputs of a layer vary, as a share of those they could vary in.

    effective_rank/<module> = exp( - sum_i p_i log p_i ) / min(units, rows - 1),   p_i = s_i / sum_j s_j
    effective_rank          = the smallest of them

s_i are the singular values of the outputs, rows (samples and positions) by units, with the mean over the rows taken off. 1: all
directions alike; near 0: the outputs lie on a line whatever the input is, representations have collapsed, and the layers behind
have next to nothing to tell samples apart by. Falling with depth is normal, the more so near the classes; a sudden fall over
time, or a hidden layer that uses a few per cent of its units, is not. Exactly 0: the layer puts out the same for every sample.

Measured for layers with a weight matrix, on at most 128 rows and 32 units, always the same ones: what is left out makes it an
estimate, of the rank and not of the share that it is of these.

Source: Roy, Vetterli, The effective rank: a measure of effective dimensionality, 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATION_SAMPLES, ACTIVATIONS, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.output_sample import MOST_ROWS
from cockpit_lite.step import Step

#: What several layers of sums leave of rounding, in units of the last digit.
_ROUNDING = 10.0


def effective_ranks(outputs: Tensor, rounding: float) -> Tensor:
    """Return the effective rank of each matrix of a stack (layers, rows, units) with the mean over the rows taken off.

    The singular values come from the Gram matrix of the units. Where nothing varies the rank is 0, where an output is not finite
    it is NaN.

    Args:
        outputs: In double precision where the device has it.
        rounding: How far an output may be off, relative to itself, without being counted as varying.
    """
    mean = outputs.mean(-2, keepdim=True)
    centred = outputs - mean
    gram = centred.mT @ centred
    # The decomposition refuses what is not finite; 0 times the mean, which is not finite either, marks it again in the end.
    squares = torch.linalg.eigvalsh(gram.nan_to_num_(0.0, 0.0, 0.0)).clamp_(min=0.0)
    off = mean.square().sum((-2, -1)) * outputs.shape[-2]
    spread = squares.sum(-1)
    varies = spread > (spread + off) * rounding**2
    return exponential_entropy(squares.sqrt_()) * varies + 0.0 * off


def exponential_entropy(values: Tensor) -> Tensor:
    """Return exp(- sum p log p) over the last axis, p the values as shares of their sum: how many of them there are in effect."""
    shares = values / values.sum(-1, keepdim=True).clamp_(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp_()


def shares_of_width(samples: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return the effective rank of each layer as a share of the greatest possible, for layers where more than one is possible."""
    matrices = {
        name: matrix for name, calls in samples.items() if min((matrix := _joined(calls)).shape[0] - 1, matrix.shape[1]) > 1
    }
    if not matrices:
        return {}
    device = next(iter(matrices.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    rounding = _ROUNDING * max(torch.finfo(matrix.dtype).eps for matrix in matrices.values())
    widest = max(matrix.shape[1] for matrix in matrices.values())
    groups: dict[int, list[str]] = {}  # all of as many rows at once: units that are always zero do not count
    for name, matrix in matrices.items():
        groups.setdefault(len(matrix), []).append(name)
    shares: dict[str, Tensor] = {}
    for rows, names in groups.items():
        padded = [F.pad(matrices[name].to(device, dtype), (0, widest - matrices[name].shape[1])) for name in names]
        possible = torch.tensor([min(rows - 1, matrices[name].shape[1]) for name in names], device=device)
        shares.update(zip(names, (effective_ranks(torch.stack(padded), rounding) / possible).unbind(), strict=True))
    return {name: shares[name] for name in matrices}


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
