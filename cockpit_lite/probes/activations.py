"""What the layers of the model put out on one training step: mean and variance, peaks of units, saturation.

By hooks on all modules at once, which exist only while a tracked step asks for them: nothing is set on the user's model. Of an
output a few small statistics are kept and never the output itself, taken right after the call, before anything can change it in
place. Only layers are looked at (modules without children), and only calls that a gradient can go back through: validation is
not training. Activation functions that are called as functions, such as ``F.relu``, cannot be seen.
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


class ActivationProbe:
    """Watches the layers of a model between :meth:`start` and :meth:`stop`.

    Attributes:
        paused: While set nothing is recorded: for forwards that are not the user's.
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
        self._moments: dict[str, list[Moments]] = {}
        self._peaks: dict[str, dict[tuple[int, int], Tensor]] = {}
        self._saturated: dict[str, list[tuple[Tensor, int]]] = {}

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
        """Return the statistics of the step so far."""
        peaks = {name: list(found.values()) for name, found in self._peaks.items()}
        return Activations(dict(self._moments), peaks, dict(self._saturated))

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or self.paused or not torch.is_grad_enabled():
            return
        name = self._names.get(id(module))
        # A call under vmap or jvp is not the user's step.
        if name is None or self.failure or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        start = self._clock()
        try:
            with torch.no_grad():
                self._record(name, module, output)
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            self.failure = f"the outputs of {name} could not be read ({type(error).__name__}: {error})"
            logger.debug(self.failure, exc_info=error)
        self.seconds += self._clock() - start

    def _record(self, name: str, module: nn.Module, output: Any) -> None:
        # Recurrent layers and attention return their state or weights behind the output.
        values = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(values, nn.utils.rnn.PackedSequence):
            values = values.data
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() < 1 or not values.numel():
            return
        values = values.detach()
        if values.dtype in (torch.float16, torch.bfloat16):  # whose squares overflow beyond 256
            values = values.float()
        # 1/count, so that calls which checkpointing repeats in the backward pass change nothing
        variance, mean = torch.var_mean(values, correction=0)
        self._moments.setdefault(name, []).append(Moments(values.numel(), mean, variance))
        if isinstance(module, RELU_LIKE) and values.dim() > 1:
            axis = unit_axis(values.shape, self._layer)
            # What it sits behind tells whether it is the same units again (another micro-batch, a loop) or others.
            key = (id(self._layer), values.shape[axis])
            peak = values.movedim(axis, -1).flatten(0, -2).amax(0)
            known = self._peaks.setdefault(name, {})
            known[key] = peak if key not in known else torch.maximum(known[key], peak)
        saturated = _saturated(module, values)
        if saturated is not None:
            self._saturated.setdefault(name, []).append((saturated.sum(), values.numel()))
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
