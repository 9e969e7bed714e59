"""Draws random gradients whose covariance is the Gauss-Newton matrix, with the samples told apart, on the user's own graph.

Only a first derivative is taken: it works where a second one does not exist (fused attention, lookups that sum).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.forward_probe import has_compiled_parts
from cockpit_lite.curvature.obstacles import check_loss, explain
from cockpit_lite.curvature.quietly import quietly
from cockpit_lite.curvature.sample import GaussNewtonSample
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head import LossHead, find_loss_heads, without_autocast
from cockpit_lite.probes.per_sample import PerSampleProbe


class SampledCurvature:
    """Watches one forward pass with a per-sample probe of its own, and sends one random gradient back.

    Args:
        model: The model.
        parameters: The trainable parameters by name, tied ones once.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._parameters = model, parameters
        self._probe = PerSampleProbe(model, parameters)
        self._watching, self._squares = False, True

    def start(self, squares: bool = True) -> None:
        """Watch the forward pass of a step.

        Args:
            squares: Whether the diagonal will be asked for, too: it costs about as much again as the trace.
        """
        self.stop()
        if not has_compiled_parts(self._model):
            self._probe.start(products=False, squares=squares)
            self._squares = squares
            self._watching = True

    def stop(self) -> None:
        """Stop watching. May be called twice."""
        self._probe.stop()
        self._watching = False

    def draw(
        self, loss: Tensor, forward: ForwardCall, generator: torch.Generator, scale: float | Tensor | None = None
    ) -> GaussNewtonSample:
        """Send one random gradient back through the user's graph; once a step, before their backward.

        Args:
            loss: The objective with its graph.
            forward: The call of the model that it came from.
            generator: For the random numbers, on the device of the outputs.
            scale: What a gradient scaler multiplied the loss with.

        Raises:
            NotMeasured: if the loss is not known as a function of the model's outputs.
        """
        check_loss(loss, self._model)
        outputs = forward.outputs()
        heads = find_loss_heads(loss, outputs, check=loss.device.type == "cpu")
        with without_autocast(loss):
            seeds = _seeds(heads, outputs, generator)
        parameters = list(self._parameters.values())
        try:
            with quietly(parameters, self._model.buffers()):
                return self._send(outputs, seeds, 1.0 if scale is None else scale)
        except RuntimeError as error:
            raise NotMeasured(explain(error)) from error

    def _send(self, outputs: Sequence[Tensor], seeds: Mapping[int, Tensor], scale: float | Tensor) -> GaussNewtonSample:
        if self._watching:
            self._probe.backward_begins()
        try:
            slopes = torch.autograd.grad(
                [outputs[position] for position in seeds],
                list(self._parameters.values()),
                list(seeds.values()),
                retain_graph=True,
                allow_unused=True,
            )
        finally:
            self._probe.backward_ends()
        gradient = {
            name: slope.to_dense() if slope.is_sparse else slope
            for name, slope in zip(self._parameters, slopes, strict=True)
            if slope is not None
        }
        squared_norms: dict[str, Tensor] = {}
        sum_of_squares: dict[str, Tensor] | None = {} if self._squares else None
        if self._watching:
            found = self._probe.statistics(False, None, gradient, squares=self._squares)
            # Where batch normalisation couples the samples, u_n sends something through all of them.
            covered = [name for name in found.squared_norms if name not in found.conditional]
            squared_norms = {name: found.squared_norms[name] / scale for name in covered}
            if self._squares:
                sum_of_squares = {name: found.sum_of_squares[name] / scale for name in covered}
        root = scale**0.5
        whole = {
            name: torch.zeros_like(parameter, requires_grad=False) if name not in gradient else gradient[name] / root
            for name, parameter in self._parameters.items()
        }
        return GaussNewtonSample(whole, squared_norms, sum_of_squares)


def _seeds(heads: Sequence[LossHead], outputs: Sequence[Tensor], generator: torch.Generator) -> dict[int, Tensor]:
    """Return random numbers by position of the output: mean 0, and L'' as their covariance."""
    seeds: dict[int, Tensor] = {}
    for head in heads:
        position = head.position
        output = outputs[position].detach().requires_grad_()
        root = head.random_root(generator)
        with torch.enable_grad():
            (seed,) = torch.autograd.grad(head.from_output(output), output, root)
        seeds[position] = seeds[position] + seed if position in seeds else seed
    return seeds
