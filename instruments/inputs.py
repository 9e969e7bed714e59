"""Inputs: the scale of what the model is given, and whether it is ever anything else.

    input_scale       root mean square of the inputs
    input_std_ratio   standard deviation over the batch, by feature: that of the widest over that of the narrowest features
                      (90 % and 10 % quantiles of the features that vary at all)
    input_mean_ratio  median over the features of |mean| / standard deviation
    batch_repeated    1 if this batch is that of the measured step before, else 0: told by some thousand of its elements

The scales are those of the data: they are looked at on the first measured steps, and now and then after that.

Features are the last axis of tables and sequences, the channels of images. Inputs of one scale, about 1, centred at 0 give a well
conditioned first layer; a hundredfold difference of scales shows up squared in the condition number of the Hessian.

Source: LeCun, Bottou, Orr, Mueller, Efficient BackProp, 1998, section 4.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import DATA, Instrument, Readings
from cockpit_lite.step import Step

#: Elements of a batch that are compared.
MOST_ELEMENTS = 5_000
#: Elements that are gone through in one go: in float64 they are half a megabyte.
ELEMENTS_AT_ONCE = 2**16


def by_feature(inputs: Tensor) -> Tensor:
    """Return the inputs as (rows, features)."""
    axis = 1 if inputs.dim() > 3 else inputs.dim() - 1
    return inputs.movedim(axis, -1).reshape(-1, inputs.shape[axis])


class FeatureMoments(NamedTuple):
    """Of each feature."""

    mean: Tensor
    deviation: Tensor
    largest: Tensor

    @property
    def scale(self) -> Tensor:
        """The root mean square of all features."""
        return (self.mean.square() + self.deviation.square()).mean().sqrt()


def moments(rows: Tensor) -> FeatureMoments:
    """Return the moments of (rows, features) in float64, which is twice as large: so some features at a time."""
    found = [_moments(some) for some in rows.split(max(ELEMENTS_AT_ONCE // max(len(rows), 1), 1), dim=1)]
    return FeatureMoments(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _moments(rows: Tensor) -> FeatureMoments:
    rows = rows if rows.device.type == "mps" else rows.double()
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    return FeatureMoments(mean, deviation, torch.maximum(rows.amax(0), -rows.amin(0)))


def feature_ratios(features: FeatureMoments) -> tuple[Tensor, Tensor]:
    """Return the ratio of standard deviations and the median ratio of mean to standard deviation."""
    mean, deviation, largest = features
    varies = deviation > 1e-12 * largest.clamp(min=1e-300)
    nothing = torch.full_like(deviation, torch.nan)
    spread = torch.where(varies, deviation, nothing)
    return spread.nanquantile(0.9) / spread.nanquantile(0.1), torch.where(varies, mean.abs() / deviation, nothing).nanmedian()


def fingerprint(inputs: Tensor) -> Tensor:
    """Return two sums over evenly spread elements, (2,), that are equal for equal tensors and hardly ever for others."""
    values = inputs.reshape(-1)[:: -(-inputs.numel() // MOST_ELEMENTS) or 1].double()
    places = torch.linspace(1, 2, values.numel(), dtype=values.dtype, device=values.device)
    return torch.stack([values @ places.sin(), values.square() @ places])


class Inputs(Instrument):
    """Writes scales, without unit but ``input_scale``, which has that of the inputs."""

    name = "inputs"
    needs = (DATA,)
    readings = ("input_scale", "input_std_ratio", "input_mean_ratio", "batch_repeated")
    preset = "standard"

    def __init__(self) -> None:
        self._last: tuple[torch.Size, Tensor] | None = None
        self._measured = 0

    def measure(self, step: Step) -> Readings:
        inputs = step.data.inputs
        if inputs is None or not inputs.numel() or inputs.is_complex():
            raise NotMeasured("no call of the model with a tensor was seen on this step")
        readings: dict[str, Any] = {}
        mark, last = fingerprint(inputs), self._last
        self._last = (inputs.shape, mark)
        if last is not None:
            same = last[0] == inputs.shape and last[1].device == mark.device
            readings["batch_repeated"] = (last[1] == mark).all().double() if same else 0.0
        self._measured += 1
        scales = self._measured <= 5 or self._measured % 50 == 0
        if not inputs.is_floating_point() or inputs.dim() < 2:
            readings["input_scale"] = NotMeasured("the inputs are no features but tokens or single numbers")
        elif scales:
            rows = by_feature(inputs)
            features = moments(rows)
            readings["input_scale"] = features.scale
            if len(rows) > 7:
                readings["input_std_ratio"], readings["input_mean_ratio"] = feature_ratios(features)
        return readings
