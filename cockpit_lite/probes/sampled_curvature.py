"""Draws random gradients whose covariance is the Gauss-Newton matrix, with the samples told apart, on the user's own graph.

Only a first derivative is taken: it works where a second one does not exist (fused attention, lookups that sum). Of what the
rules for per-sample gradients know the gradients of the parameters are not calculated, see :mod:`shortcut`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

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
from cockpit_lite.probes.shortcut import Shortcut, Shortcuts


class SampledCurvature:
    """Watches one forward pass with a per-sample probe of its own, and sends one random gradient back.

    Args:
        model: The model.
        parameters: The trainable parameters by name, tied ones once.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._parameters = model, parameters
        self._probe = PerSampleProbe(model, parameters)
        self._shortcuts = Shortcuts(self._parameters)
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
            roots = [head.random_root(generator) for head in heads]
            seeds = _seeds(heads, roots, outputs)
        parameters = list(self._parameters.values())
        try:
            with quietly(parameters, self._model.buffers()):
                sample = self._send(outputs, seeds, 1.0 if scale is None else scale)
        except RuntimeError as error:
            raise NotMeasured(explain(error)) from error
        if len(heads) > 1 or not sample.squared_norms:
            return sample
        with suppress(NotMeasured):  # it is as right without, and only spread more
            size, axis = self._probe.batch
            controls = None if size is None else heads[0].controls(roots[0], size, axis)
            if controls is not None and len(controls.values) == len(next(iter(sample.squared_norms.values()))):
                return replace(sample, controls=controls)
        return sample

    def _send(self, outputs: Sequence[Tensor], seeds: Mapping[int, Tensor], scale: float | Tensor) -> GaussNewtonSample:
        ends = [outputs[position] for position in seeds]
        if not self._watching:
            slopes = self._slopes(ends, seeds, self._parameters)
            return GaussNewtonSample(frozenset(self._parameters), _over_root(slopes, self._parameters, scale), {}, None)
        shortcut = self._shortcuts.of(self._probe, ends)
        if shortcut is not None and shortcut.told_apart:
            sample = self._measured(self._go(shortcut, ends, seeds), scale)
            if shortcut.told_apart <= sample.squared_norms.keys():
                return sample
            self._shortcuts.forget(shortcut)  # something of it needs the whole pass
            self._probe.forget_backwards()
        self._probe.backward_begins()
        try:
            slopes = self._slopes(ends, seeds, self._parameters)
        finally:
            self._probe.backward_ends()
        sample = self._measured(slopes, scale)
        if shortcut is not None:
            shortcut.told_apart = self._probe.told_apart(shortcut.structure) & sample.squared_norms.keys()
        return sample

    def _go(self, shortcut: Shortcut, ends: Sequence[Tensor], seeds: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Send the random numbers back no further than the rules need it; return the gradients of the other parameters."""
        stops = shortcut.stops(self._probe.ends())
        others = [name for name in self._parameters if name not in shortcut.told_apart]
        inputs: list[Any] = [*(stop.edge for stop in stops), *(self._parameters[name] for name in others)]
        self._probe.backward_begins()
        try:
            found = torch.autograd.grad(ends, inputs, list(seeds.values()), retain_graph=True, allow_unused=True)
            shortcut.take(self._probe, stops, found[: len(stops)])
        finally:
            self._probe.backward_ends()
        return _dense(dict(zip(others, found[len(stops) :], strict=True)))

    def _slopes(self, ends: Sequence[Tensor], seeds: Mapping[int, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        parameters = [self._parameters[name] for name in names]
        slopes = torch.autograd.grad(ends, parameters, list(seeds.values()), retain_graph=True, allow_unused=True)
        return _dense(dict(zip(names, slopes, strict=True)))

    def _measured(self, slopes: Mapping[str, Tensor], scale: float | Tensor) -> GaussNewtonSample:
        """Return what the probe has seen; the contributions to a parameter whose gradient is known are checked against that."""
        found = self._probe.statistics(False, None, slopes, squares=self._squares)
        self._probe.forget_backwards()  # as large as the activations
        # Where batch normalisation couples the samples, u_n sends something through all of them.
        covered = [name for name in found.squared_norms if name not in found.conditional]
        left = {name: parameter for name, parameter in self._parameters.items() if name not in covered}
        return GaussNewtonSample(
            frozenset(self._parameters),
            _over_root(slopes, left, scale),
            {name: _over(found.squared_norms[name], scale) for name in covered},
            {name: _over(found.sum_of_squares[name], scale) for name in covered} if self._squares else None,
        )


def _over_root(slopes: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], scale: float | Tensor) -> dict[str, Tensor]:
    root = scale**0.5
    return {
        name: _over(slopes[name], root) if name in slopes else torch.zeros_like(parameter, requires_grad=False)
        for name, parameter in parameters.items()
    }


def _over(value: Tensor, scale: float | Tensor) -> Tensor:
    return value / scale if isinstance(scale, Tensor) or scale != 1 else value


def _dense(slopes: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: slope.to_dense() if slope.is_sparse else slope for name, slope in slopes.items() if slope is not None}


def _seeds(heads: Sequence[LossHead], roots: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return random numbers by position of the output: mean 0, and L'' as their covariance."""
    seeds: dict[int, Tensor] = {}
    for head, root in zip(heads, roots, strict=True):
        position = head.position
        seed, output = root, outputs[position].detach()
        if not head.route.is_direct or output.dtype != root.dtype:
            with torch.enable_grad():
                (seed,) = torch.autograd.grad(head.from_output(output.requires_grad_()), output, root)
        seeds[position] = seeds[position] + seed if position in seeds else seed
    return seeds
