"""What the layers of the model put out on one training step: moments, peaks of units, saturation, samples.

By hooks on all modules at once, which exist only while a tracked step asks for them: nothing is set on the user's model. Of an
output a few small statistics are kept, at most a small sample, and never the output itself; they are taken right after the call,
before anything can change it in place. Only layers are looked at (modules without children), and only forwards that a backward
pass of the step goes back through: validation is not training. Activation functions that are called as functions, such as
``F.relu``, cannot be seen.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from cockpit_lite.probes.moments import Moments, moments, pooled, stacked
from cockpit_lite.probes.output_sample import Sampler

logger = logging.getLogger("cockpit_lite")

#: Activation functions that put out exactly zero, and let no gradient through, on all of the negative side.
RELU_LIKE = (nn.ReLU, nn.ReLU6)
#: Layers of torch that pass on, drop or pool what others put out.
_PLUMBING = ("dropout", "flatten", "fold", "padding", "pixelshuffle", "channelshuffle", "pooling", "upsampling", "loss")
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_CHANNELS_FIRST = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
#: Derivatives below this share of their greatest value count as saturated.
SATURATED = 0.01
#: The derivative of the sigmoid is s (1 - s), at most 1/4; that of tanh 1 - t^2, at most 1.
_FLAT_SIGMOID = 0.5 - 0.5 * math.sqrt(1 - SATURATED)
_FLAT_TANH = math.sqrt(1 - SATURATED)


@dataclass
class Activations:
    """The statistics of one step, by module in the order of the calls; modules that were not called are missing.

    Attributes:
        modules: Names of the layers that were called.
        counts: How many numbers each of them put out, in all calls.
        means: Mean of each, a tensor with one element a layer.
        variances: Variance (1/count) of each, a tensor with one element a layer.
        peaks: ReLU-like modules -> the greatest output of each unit over the samples and positions of the step. A module that is
            called behind several layers has several entries, since these are different units.
        saturated: Sigmoid- and tanh-like modules -> of every call, how many outputs lie where the derivative is below 1 % of its
            maximum, and how many there are.
        samples: Layers with a weight matrix -> of every call some of its outputs, rows by units, if the step asked for them.
    """

    modules: list[str]
    counts: list[int]
    means: Tensor
    variances: Tensor
    peaks: dict[str, list[Tensor]] = field(default_factory=dict)
    saturated: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)
    samples: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass
class _Record:
    """What is kept of one call of a layer."""

    name: str
    moments: Moments
    peak: tuple[tuple[int, int], Tensor] | None  # with what tells these units from others behind the same module
    saturated: tuple[Tensor, int] | None
    sample: Tensor | None


@dataclass
class _Forward:
    """The calls of one forward of the model, and whether a backward pass came back to it."""

    records: list[_Record] = field(default_factory=list)
    reached: bool = False


class ActivationProbe:
    """Watches the layers of a model between :meth:`start` and :meth:`stop`.

    Attributes:
        paused: While set nothing is recorded: for forwards and backwards that are not the user's.
        seconds: What its hooks have cost since :meth:`start`, samples left out.
        sampling_seconds: What taking samples of the outputs has cost.
        failure: If not empty, why the statistics are not complete.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter):
        self._model = model
        self._clock = clock
        self._handle: RemovableHandle | None = None
        self._sampler = Sampler()
        self._reset()

    def _reset(self) -> None:
        self.paused = False
        self.seconds = self.sampling_seconds = 0.0
        self.failure = ""
        self._sampling = False
        self._names: dict[int, str] = {}
        self._layer: nn.Module | None = None  # the last layer with parameters that was called
        self._forwards: list[_Forward] = [_Forward()]  # the last one is under way
        self._mark = self._marker(self._forwards[-1])

    def start(self, samples: bool = False) -> None:
        """Begin to watch a step; with ``samples`` some outputs of every layer are kept."""
        self.stop()
        self._sampling = samples
        self._names = {
            id(module): name or type(module).__name__ for name, module in self._model.named_modules() if _is_layer(module)
        }
        self._handle = register_module_forward_hook(self._after_call)

    def stop(self) -> None:
        """Take the hook away and forget what was seen. May be called twice."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._reset()

    def activations(self) -> Activations:
        """Return the statistics of the step so far; after its last backward."""
        calls: dict[str, list[Moments]] = {}
        peaks: dict[str, dict[tuple[int, int], Tensor]] = {}
        saturated: dict[str, list[tuple[Tensor, int]]] = {}
        samples: dict[str, list[Tensor]] = {}
        for record in (record for forward in self._forwards if forward.reached for record in forward.records):
            calls.setdefault(record.name, []).append(record.moments)
            if record.saturated is not None:
                saturated.setdefault(record.name, []).append(record.saturated)
            if record.sample is not None:
                samples.setdefault(record.name, []).append(record.sample)
            if record.peak is not None:
                units, peak = record.peak
                known = peaks.setdefault(record.name, {})
                known[units] = torch.maximum(known[units], peak) if units in known else peak
        modules = {name: pooled(several) for name, several in calls.items()}
        return Activations(
            list(modules),
            [module.count for module in modules.values()],
            stacked([module.mean for module in modules.values()]),
            stacked([module.variance for module in modules.values()]),
            {name: list(units.values()) for name, units in peaks.items()},
            saturated,
            samples,
        )

    def forget_backwards(self) -> None:
        """Forget the backward passes so far: the user has thrown their gradient away. The forwards to come back to stay."""
        self._forwards = [forward for forward in self._forwards[:-1] if not forward.reached] + self._forwards[-1:]

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or self.paused or not torch.is_grad_enabled():
            return
        # A call under vmap or jvp is not the user's step.
        if self.failure or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        start = self._clock()
        try:
            name = self._names.get(id(module))
            if name is not None:
                self._record(name, module, output)
            if module is self._model:
                self._forwards.append(_Forward())
                self._mark = self._marker(self._forwards[-1])
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            self.failure = f"the outputs of {type(module).__name__} could not be read ({type(error).__name__}: {error})"
            logger.debug(self.failure, exc_info=error)
        self.seconds += self._clock() - start

    def _marker(self, forward: _Forward) -> Callable[[Any], None]:
        def mark(gradients: Any) -> None:
            if not self.paused:
                forward.reached = True

        return mark

    def _record(self, name: str, module: nn.Module, output: Any) -> None:
        # Recurrent layers and attention return their state or weights behind the output.
        values = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(values, nn.utils.rnn.PackedSequence):
            values = values.data
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() < 1 or not values.numel():
            return
        forward = self._forwards[-1]
        if values.grad_fn is not None:
            values.grad_fn.register_prehook(self._mark)
        values = values.detach()  # from here on nothing is recorded by autograd
        if values.dtype in (torch.float16, torch.bfloat16):  # whose squares overflow beyond 256
            values = values.float()
        record = _Record(name, moments(values), None, _saturated(module, values), None)
        if isinstance(module, RELU_LIKE) and values.dim() > 1:
            axis = unit_axis(values.shape, self._layer)
            # What it sits behind tells whether it is the same units again (another micro-batch, a loop) or others.
            record.peak = (
                (id(self._layer), values.shape[axis]),
                values.amax([other for other in range(values.dim()) if other != axis % values.dim()]),
            )
        forward.records.append(record)
        if _has_parameters(module):
            self._layer = module
            if self._sampling and values.dim() > 1:
                self._take_sample(record, module, values)

    def _take_sample(self, record: _Record, module: nn.Module, values: Tensor) -> None:
        start = self._clock()
        if any(parameter.dim() > 1 for parameter in module.parameters()):
            record.sample = self._sampler.take(values, unit_axis(values.shape, module))
        elapsed = self._clock() - start
        self.sampling_seconds += elapsed
        self.seconds -= elapsed


def unit_axis(shape: torch.Size, layer: nn.Module | None) -> int:
    """Return which axis of an output holds the units: the features or channels that ``layer``, called before, has made."""
    if len(shape) == 2:
        return 1
    preferred = -1
    if isinstance(layer, _CONVOLUTIONS):
        preferred = -1 - len(layer.kernel_size)
    elif isinstance(layer, _CHANNELS_FIRST) or (layer is None and len(shape) > 3):
        preferred = 1
    features = _features(layer)
    for axis in (preferred, -1, 1):
        if -len(shape) <= axis < len(shape) and shape[axis] == features:
            return axis
    return preferred if -len(shape) <= preferred else -1


def _features(layer: nn.Module | None) -> int | None:
    """Return how many features or channels a layer puts out, if it says so."""
    for name in ("out_channels", "out_features", "num_features", "num_channels", "embedding_dim"):
        size = getattr(layer, name, None)
        if isinstance(size, int):
            return size
    shape = getattr(layer, "normalized_shape", None)
    return shape[-1] if isinstance(shape, (tuple, list)) and shape else None


def _saturated(module: nn.Module, values: Tensor) -> tuple[Tensor, int] | None:
    """Return at how many outputs of a sigmoid- or tanh-like module the derivative is below 1 % of its maximum, and of how many.

    None for other modules.
    """
    if isinstance(module, nn.Sigmoid):
        return _outside(values, _FLAT_SIGMOID, 1 - _FLAT_SIGMOID)
    if isinstance(module, nn.Tanh):
        return _outside(values, -_FLAT_TANH, _FLAT_TANH)
    if isinstance(module, nn.Hardsigmoid):
        return _outside(values, 0.0, 1.0, or_on=True)
    if isinstance(module, nn.Hardtanh) and not isinstance(module, RELU_LIKE):
        return _outside(values, module.min_val, module.max_val, or_on=True)
    return None


def _outside(values: Tensor, low: float, high: float, or_on: bool = False) -> tuple[Tensor, int]:
    """Return how many values lie outside of the range (or on its ends), and how many there are; NaN lies nowhere."""
    below, above = (values <= low, values >= high) if or_on else (values < low, values > high)
    return torch.count_nonzero(below.logical_or_(above)), values.numel()


def _has_parameters(module: nn.Module) -> bool:
    if any(parameter is not None for parameter in module._parameters.values()):
        return True
    return bool(module._modules) and next(module.parameters(), None) is not None


def _is_layer(module: nn.Module) -> bool:
    """Whether the outputs of the module are its own: it has no children (attention calls its child as a function)."""
    home = type(module).__module__
    if (home.startswith("torch.nn.modules.") and home.rpartition(".")[2] in _PLUMBING) or isinstance(module, nn.Identity):
        return False
    children = [name for name, _ in module.named_children() if name != "parametrizations"]
    return not children or isinstance(module, nn.MultiheadAttention)
