"""The shape of a rule: a BackPACK module extension with one method a parameter.

A rule answers in what form the per-sample gradients of a parameter come (:mod:`cockpit_lite.probes.per_sample.forms`). Axis 0 of
``module.input0`` and of ``g_out[0]`` is the batch. All methods have BackPACK's signature::

    class PerSampleScale(Rule):
        parameters = ("scale",)

        def scale(self, ext, module, g_inp, g_out, bpQuantities):
            return ext.measure(Dense((module.input0 * g_out[0]).flatten(1).sum(1)), module.scale)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn

from cockpit_lite.probes.per_sample.forms import Dense
from cockpit_lite.sharded import any_is_sharded


class NoRule(Exception):  # noqa: N818  # a rule's way to say no, not an error
    """Raised by a rule for a configuration it does not cover; the message is the reason."""


class Rule(FirstOrderModuleExtension):
    """Base class of all rules.

    Attributes:
        parameters: Names of the parameters, each with a method of that name.
        repeats: Whether it repeats the call, and so needs what the user's returned.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    repeats: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(params=list(self.parameters))

    def names(self, module: Any) -> tuple[str, ...]:
        """Return the names of the module's parameters that the rule covers."""
        return self.parameters

    def measure_all(self, ext: Any, module: Any, names: Iterable[str], g_inp: Any, g_out: Any) -> dict[str, Any]:
        """Return the measurements of several parameters; a rule whose parameters share work does them at once."""
        return {name: getattr(self, name)(ext, module, g_inp, g_out, None) for name in names}

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save the measurement on every parameter: what BackPACK calls."""
        parameters = {name: module.get_parameter(name) for name in self.names(module) if _exists(module, name)}
        trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
        for name, value in self.measure_all(extension, module, trainable, g_inp, g_out).items():
            setattr(parameters[name], extension.savefield, value)

    def trailing_axes(self, module: nn.Module) -> tuple[int, int] | None:
        """Return how many last axes of input and output are special, if all axes before them are alike; otherwise None.

        The batch may then be any of the leading axes, or be spread over them.
        """
        return None

    def batch_axis(self, module: nn.Module) -> int:
        """Return the axis of input and output that holds the samples."""
        return 0


def _exists(module: nn.Module, name: str) -> bool:
    *path, last = name.split(".")
    return module.get_submodule(".".join(path))._parameters.get(last) is not None


def require_whole(module: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Say no to a repetition of a call for which only a part of the weights is there."""
    if any_is_sharded(parameters):
        raise NoRule(f"the weights of {type(module).__name__} are sharded, and its call would have to be repeated")


def agrees(repeated: Tensor, output: Tensor | None) -> bool:
    """Whether a repeated call gave what the user's call returned; the user's may have been changed in place since (None)."""
    if output is None:
        return True
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(output.dtype, 5e-2)
    return bool((repeated.detach() - output).abs().max() <= tolerance * output.abs().max()) or not bool(output.isfinite().all())


@contextmanager
def random_numbers_of(module: Any) -> Iterator[None]:
    """Draw the random numbers that the user's call drew, then go on as if nothing had been drawn.

    The probe leaves the state of the generators before the call in ``module.random_state``: one for the CPU, one for the device.
    """
    states = module.__dict__.get("random_state")
    if states is None:
        if module.training and getattr(module, "dropout", 0):
            raise NoRule(f"the random numbers of {type(module).__name__} are not known")
        yield
        return
    device = module.input0.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        set_random_state(states, device)
        yield


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the state of the generators that a call on this device draws from."""
    return (torch.get_rng_state(), torch.cuda.get_rng_state(device)) if device.type == "cuda" else (torch.get_rng_state(),)


def set_random_state(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Put the generators into what :func:`random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def channel_sums(values: Tensor) -> Dense:
    """Return (N, C) from (N, C, *): the sum over everything behind the channels."""
    return Dense(values.flatten(2).sum(2) if values.dim() > 2 else values)


def trailing_sums(values: Tensor, shape: Any) -> Dense:
    """Return (N, *shape) from (N, *, *shape): the sum over everything between the batch and the trailing axes."""
    between = tuple(range(1, values.dim() - len(shape)))
    return Dense(values.sum(between) if between else values)
