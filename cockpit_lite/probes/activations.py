"""What the layers of the model put out on one training step: mean and variance, peaks of units, saturation.

By hooks on all modules at once, which exist only while a tracked step asks for them: nothing is set on the user's model. Of an
output a few small statistics are kept and never the output itself, taken right after the call, before anything can change it in
place. Only layers are looked at (modules without children), and only forwards that a backward pass of the step goes back through:
validation is not training. Activation functions that are called as functions, such as ``F.relu``, cannot be seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger("cockpit_lite")

#: Activation functions that put out exactly zero, and let no gradient through, on all of the negative side.
RELU_LIKE = (nn.ReLU, nn.ReLU6)
#: Layers of torch that pass on, drop or pool what others put out.
_PLUMBING = ("dropout", "flatten", "fold", "padding", "pixelshuffle", "channelshuffle", "pooling", "upsampling", "loss")
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_CHANNELS_FIRST = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
#: Derivatives below this share of their greatest value count as saturated.
SATURATED = 0.01


@dataclass(frozen=True)
class Moments:
    """Of the outputs of one call: number of elements, their mean and their variance (1/count)."""

    count: int
    mean: Tensor
    variance: Tensor


@dataclass
class Activations:
    """The statistics of one step, by module name in the order of the calls; modules that were not called are missing.

    Attributes:
        moments: Of every call of every layer.
        peaks: ReLU-like modules -> the greatest output of each unit over the samples and positions of the step. A module that is
            called behind several layers has several entries, since these are different units.
        saturated: Sigmoid- and tanh-like modules -> of every call, how many outputs lie where the derivative is below 1 % of its
            maximum, and how many there are.
    """

    moments: dict[str, list[Moments]] = field(default_factory=dict)
    peaks: dict[str, list[Tensor]] = field(default_factory=dict)
    saturated: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)


@dataclass
class _Record:
    """What is kept of one call of a layer."""

    name: str
    moments: Moments
    peak: tuple[tuple[int, int], Tensor] | None  # with what tells these units from others behind the same module
    saturated: tuple[Tensor, int] | None


@dataclass
class _Forward:
    """The calls of one forward of the model, and whether a backward pass came back to it."""

    records: list[_Record] = field(default_factory=list)
    reached: bool = False


class ActivationProbe:
    """Watches the layers of a model between :meth:`start` and :meth:`stop`.

    Attributes:
        paused: While set nothing is recorded: for forwards and backwards that are not the user's.
        seconds: What its hooks have cost since :meth:`start`.
        failure: If not empty, why the statistics are not complete.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter):
        self._model = model
        self._clock = clock
        self._handle: RemovableHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self.paused = False
        self.seconds = 0.0
        self.failure = ""
        self._names: dict[int, str] = {}
        self._layer: nn.Module | None = None  # the last layer with parameters that was called
        self._forwards: list[_Forward] = [_Forward()]  # the last one is under way

    def start(self) -> None:
        """Begin to watch a step."""
        self.stop()
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
        found = Activations()
        peaks: dict[str, dict[tuple[int, int], Tensor]] = {}
        for record in (record for forward in self._forwards if forward.reached for record in forward.records):
            found.moments.setdefault(record.name, []).append(record.moments)
            if record.saturated is not None:
                found.saturated.setdefault(record.name, []).append(record.saturated)
            if record.peak is not None:
                units, peak = record.peak
                known = peaks.setdefault(record.name, {})
                known[units] = torch.maximum(known[units], peak) if units in known else peak
        found.peaks.update({name: list(units.values()) for name, units in peaks.items()})
        return found

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
                with torch.no_grad():
                    self._record(name, module, output)
            if module is self._model:
                self._forwards.append(_Forward())
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
            values.grad_fn.register_prehook(self._marker(forward))
        values = values.detach()
        if values.dtype in (torch.float16, torch.bfloat16):  # whose squares overflow beyond 256
            values = values.float()
        mean = values.mean()
        # Ten times as fast as var_mean on a CPU, and more precise than a norm, which is summed up naively.
        variance = (values - mean).square_().mean()
        peak = None
        if isinstance(module, RELU_LIKE) and values.dim() > 1:
            axis = unit_axis(values.shape, self._layer)
            # What it sits behind tells whether it is the same units again (another micro-batch, a loop) or others.
            peak = (
                (id(self._layer), values.shape[axis]),
                values.amax([other for other in range(values.dim()) if other != axis % values.dim()]),
            )
        flat = _saturated(module, values)
        saturated = None if flat is None else (flat.sum(), values.numel())
        forward.records.append(_Record(name, Moments(values.numel(), mean, variance), peak, saturated))
        if next(module.parameters(recurse=True), None) is not None:
            self._layer = module


def worst(shares: Iterable[Tensor]) -> Tensor:
    """Return the largest of scalars by module, which may lie on several devices."""
    values = list(shares)
    return torch.stack([value.to(values[0].device) for value in values]).max()


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


def _saturated(module: nn.Module, values: Tensor) -> Tensor | None:
    """Return where the derivative of a sigmoid- or tanh-like module is below 1 % of its maximum; None for other modules."""
    if isinstance(module, nn.Sigmoid):
        return 4 * values * (1 - values) < SATURATED  # the derivative is s (1 - s), at most 1/4
    if isinstance(module, nn.Tanh):
        return 1 - values.square() < SATURATED  # the derivative is 1 - t^2, at most 1
    if isinstance(module, nn.Hardsigmoid):
        return (values <= 0) | (values >= 1)
    if isinstance(module, nn.Hardtanh) and not isinstance(module, RELU_LIKE):
        return (values <= module.min_val) | (values >= module.max_val)
    return None


def _is_layer(module: nn.Module) -> bool:
    """Whether the outputs of the module are its own: it has no children (attention calls its child as a function)."""
    home = type(module).__module__
    if (home.startswith("torch.nn.modules.") and home.rpartition(".")[2] in _PLUMBING) or isinstance(module, nn.Identity):
        return False
    children = [name for name, _ in module.named_children() if name != "parametrizations"]
    return not children or isinstance(module, nn.MultiheadAttention)
