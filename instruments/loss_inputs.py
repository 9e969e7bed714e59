"""Loss inputs: whether the loss function was given what it expects. Exact checks of one batch.

    softmax_twice         1 if the logits of a cross entropy went through a softmax already (a sigmoid for the binary one), else 0
    nll_log_sum           mean |log sum_c exp(input_c)| of an NLL loss: 0 for log-probabilities
    targets_out_of_reach  share of the targets that the last activation (ReLU, sigmoid, tanh) can never put out
    loss_over_uniform     mean cross entropy over ln C, what a guess among C classes costs: about 1 at the first step
    loss_over_mean        the objective over the mean loss of its rows: 1 for a mean, loss_rows for a sum
    loss_rows             how many rows (elements of a regression) count
    targets_equal_inputs  share of the target tokens that are the input token at the same place
    logit_log_sum         mean |log sum_c exp(logit_c)| of the outputs of a classifier
    padding_share         share of the rows that count whose target is padding

Source: what the documentation of torch.nn.functional asks of the inputs of its losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import DATA, LOSS, Instrument, Readings
from cockpit_lite.probes.data import Data, LossInputs, rows_and_classes, uniform_loss
from cockpit_lite.step import Step

#: Activations that a value cannot get out of, and how far a target is beyond their range.
_RANGES = {"Relu": (0.0, torch.inf), "Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Softplus": (0.0, torch.inf)}
_NOT_OF_THIS_LOSS = "the loss function, or what the model is given, is of another kind"
_TWICE = {("cross_entropy", "Softmax"), ("binary_cross_entropy_with_logits", "Sigmoid")}


def log_sum(log_probabilities: Tensor) -> Tensor:
    """Return the mean over the rows of ``|log sum exp|``, 0 for log-probabilities."""
    return log_probabilities.float().logsumexp(-1).abs().mean()


def share_out_of_range(targets: Tensor, low: float, high: float) -> Tensor:
    """Return the share of the targets below ``low`` or above ``high``."""
    return ((targets < low) | (targets > high)).float().mean()


def share_of_padding(inputs: Tensor, targets: Tensor, index: int | None) -> Tensor:
    """Return the share of target tokens that are padding.

    Args:
        inputs: Tokens (N, T).
        targets: Tokens (N, T).
        index: The token for padding. ``None``: the one that most sequences end with, in inputs and targets, if there is one.
    """
    if index is not None:
        return (targets == index).float().mean()
    last = targets[:, -1].mode().values
    ends = ((targets[:, -1] == last) & (inputs[:, -1] == last)).float().mean()
    return torch.where(ends > 0.5, (targets == last).float().mean(), torch.zeros_like(ends))


class LossInputsCheck(Instrument):
    """Writes checks of what the loss function was given; see the module."""

    name = "loss_inputs"
    needs = (DATA, LOSS)
    readings = (
        "softmax_twice",
        "nll_log_sum",
        "targets_out_of_reach",
        "loss_over_uniform",
        "loss_over_mean",
        "loss_rows",
        "targets_equal_inputs",
        "padding_share",
        "logit_log_sum",
    )
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        data = step.data
        found = data.loss_inputs
        if found is None:
            raise NotMeasured("the loss does not end in a loss function of torch that keeps its prediction and target")
        readings: dict[str, Any] = {name: NotMeasured(_NOT_OF_THIS_LOSS) for name in self.readings}
        readings["softmax_twice"] = float((found.kind, found.made_by) in _TWICE)
        if found.kind in ("cross_entropy", "nll"):
            self._classification(readings, step.loss, found, data)
        elif found.kind in ("mse", "smooth_l1", "huber"):
            if found.made_by in _RANGES:
                readings["targets_out_of_reach"] = share_out_of_range(found.target, *_RANGES[found.made_by])
            if found.kind == "mse" and found.target.shape == found.prediction.shape:
                errors = (found.prediction - found.target).square()
                readings.update(loss_over_mean=step.loss / errors.mean(), loss_rows=float(errors.numel()))
        return readings

    @staticmethod
    def _classification(readings: dict[str, Any], loss: Tensor, found: LossInputs, data: Data) -> None:
        rows, targets = rows_and_classes(found)
        if found.kind == "nll":
            readings["nll_log_sum"] = log_sum(rows)
        counts = (targets != found.ignore_index).to(rows.dtype)
        losses = -rows.gather(1, targets.clamp(0, rows.shape[1] - 1)[:, None])[:, 0]
        mean = torch.where(counts > 0, losses, torch.zeros_like(losses)).sum() / counts.sum()
        readings.update(loss_over_mean=loss / mean, loss_rows=counts.sum())
        if rows.shape[1] > 1:
            readings["loss_over_uniform"] = mean / uniform_loss(rows.shape[1])
        output = data.output
        if output is not None and output.is_floating_point() and output.dim() > 1 and output.shape[-1] == rows.shape[1]:
            readings["logit_log_sum"] = log_sum(output)
        inputs = data.inputs
        tokens = inputs is not None and not inputs.is_floating_point() and inputs.dim() == 2 and inputs.numel() == targets.numel()
        if inputs is None or not tokens:
            return
        targets = targets.reshape(inputs.shape) if found.target.dim() < 2 else found.target
        if targets.shape != inputs.shape:
            return
        same = (targets == inputs) & (targets != found.ignore_index)
        readings["targets_equal_inputs"] = same.sum() / counts.sum()
        if data.padding_index is None or data.padding_index != found.ignore_index:
            readings["padding_share"] = share_of_padding(inputs, targets, data.padding_index)
