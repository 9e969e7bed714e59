"""The probe batch: a few samples of the first watched step, kept for the run, and the tangent kernel on them.

The model is called on the same samples again and again as its weights change, in the mode that it is in. That leaves no trace:
on copies of the buffers, without anybody's hooks, with random numbers of its own. These begin at the same seed each time, so
dropout makes the same masks, and what is measured changes because the weights do. Batch normalisation in train mode uses the
statistics of the probe batch: samples meet there, and the kernel is conditional on them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_registry
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import is_compiled
from cockpit_lite.curvature.quietly import quietly
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics
from cockpit_lite.probes.per_sample.calls import first_tensor
from cockpit_lite.probes.per_sample.generic import random_numbers_kept

logger = logging.getLogger("cockpit_lite")

#: Samples that are kept.
SAMPLES = 16


@dataclass(frozen=True)
class TangentKernel:
    """The empirical tangent kernel of the model's outputs on the probe batch.

    Attributes:
        gram: Inner products between the samples of the gradients of their outputs by the parameters, shape (N, N): in the mean
            over the directions r that the outputs are projected on, ``K_nm = <d(r'y_n)/dtheta, d(r'y_m)/dtheta>``.
        parameters: Names of the parameters that it is taken by.
        conditional: Whether batch normalisation couples the samples.
    """

    gram: Tensor
    parameters: frozenset[str]
    conditional: bool


class ProbeBatch:
    """Keeps the probe batch, and measures on it.

    Args:
        model: The model.
        parameters: The trainable parameters by name.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._parameters = model, parameters
        self._handle: RemovableHandle | None = None
        self._seen: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # arguments of the step's first call, whole
        self._kept: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # and of the probe batch

    def start(self) -> None:
        """Watch for the first call of the model, if there is no probe batch yet."""
        self.stop()
        if self._kept is None and not any(map(is_compiled, self._model.modules())):
            self._handle = register_module_forward_hook(self._after_call, with_kwargs=True)

    def stop(self) -> None:
        """Take the hook away. May be called twice."""
        if self._handle is not None:
            self._handle.remove()
            # PyTorch forgets to (seen in 2.15), and then warns of hooks that are no longer there.
            module_registry._global_forward_hooks_with_kwargs.pop(self._handle.id, None)
            self._handle = None
        self._seen = None

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if module is self._model and self._seen is None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._seen = (args, dict(kwargs))

    def tangent_kernel(self, projections: int) -> TangentKernel:
        """Return the kernel at the present weights.

        Args:
            projections: On how many random directions the outputs of a sample are projected; always the same ones.

        Raises:
            NotMeasured: if there is no probe batch, or the model cannot be called on it.
        """
        if self._kept is not None:
            return self._again(self._kept, projections)
        if not self._parameters:
            raise NotMeasured("the model has no trainable parameter")
        if any(map(is_compiled, self._model.modules())):
            raise NotMeasured("the model is compiled, and what happens inside compiled code cannot be seen")
        if self._seen is None:
            raise NotMeasured("no call of the whole model was seen that could be kept as the probe batch")
        reason: Exception = NotMeasured("the model was given no tensor")
        for axis in (0, 1):  # the samples may be on the second axis, behind time
            call = _cut(*self._seen, axis, SAMPLES)
            if call is None:
                continue
            try:
                kernel, found = self._measured(call, projections)
            except Exception as error:  # whatever a user's forward may raise on a part of its batch
                logger.debug("no probe batch along axis %d", axis, exc_info=error)
                reason = reason if axis else error
                continue
            if found == axis:
                self._kept = call
                return kernel
        if isinstance(reason, NotMeasured):
            raise reason
        raise NotMeasured(f"the model could not be called on a part of its batch ({type(reason).__name__}: {reason})")

    def _again(self, call: tuple[tuple[Any, ...], dict[str, Any]], projections: int) -> TangentKernel:
        try:
            return self._measured(call, projections)[0]
        except NotMeasured:
            raise
        except Exception as error:  # the user may have changed the model
            raise NotMeasured(f"the model could not be called on the probe batch ({type(error).__name__}: {error})") from error

    def _measured(self, call: tuple[tuple[Any, ...], dict[str, Any]], projections: int) -> tuple[TangentKernel, int]:
        """Return the kernel, and the axis of the input that the samples turn out to be on."""
        model = self._model.module if isinstance(self._model, nn.parallel.DistributedDataParallel) else self._model
        device = next(iter(self._parameters.values())).device
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        probe = PerSampleProbe(model, trainable)
        forward = ForwardCall(_Watched(model, probe))
        forward.finish(*call, None)
        try:
            with random_numbers_kept(device, []), torch.enable_grad():
                outputs = [tensor for tensor in forward.repeat() if tensor.requires_grad and tensor.is_floating_point()]
            with quietly(trainable.values(), model.buffers()):
                return self._kernel(probe, trainable, outputs, projections)
        finally:
            probe.stop()

    def _kernel(
        self, probe: PerSampleProbe, parameters: Mapping[str, nn.Parameter], outputs: Sequence[Tensor], projections: int
    ) -> tuple[TangentKernel, int]:
        generator = torch.Generator().manual_seed(0)
        gram: Tensor | None = None
        statistics = PerSampleStatistics()
        for number in range(projections):
            probe.forget_backwards()
            probe.backward_begins()
            by_sample = [values for output in outputs if (values := _by_sample(output, *probe.batch)) is not None]
            if not by_sample:
                raise NotMeasured("the model returned no tensor that depends on the weights and has an axis for the samples")
            projected = torch.stack([_projected(values, generator) for values in by_sample]).sum()
            slopes = torch.autograd.grad(
                projected, list(parameters.values()), allow_unused=True, retain_graph=number < projections - 1
            )
            probe.backward_ends()
            gradient = {
                name: torch.zeros_like(parameter) if slope is None else slope
                for (name, parameter), slope in zip(parameters.items(), slopes, strict=True)
            }
            with torch.no_grad():
                statistics = probe.statistics(False, None, gradient)
                for _, layer in probe.gradients(statistics):
                    part = layer.gram().to(device=outputs[0].device, dtype=torch.float32) / projections
                    gram = part if gram is None else gram + part
        if gram is None:
            raise NotMeasured(next(iter(statistics.not_covered.values()), "no per-sample gradient was seen"))
        kernel = TangentKernel(gram, frozenset(statistics.squared_norms), bool(statistics.conditional))
        return kernel, probe.batch[1]


class _Watched(nn.Module):
    """Calls the model with fixed random numbers, and under a probe: inside the second forward all other hooks of ours rest."""

    def __init__(self, model: nn.Module, probe: PerSampleProbe) -> None:
        super().__init__()
        self.model, self.probe = model, probe
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        for device in {parameter.device for parameter in self.model.parameters()}:
            if device.type not in ("cpu", "meta"):
                getattr(torch, device.type).set_rng_state(torch.Generator(device).manual_seed(0).get_state(), device)
        self.probe.start(products=False, squares=False, gradients=True)
        return self.model(*args, **kwargs)


def _by_sample(output: Tensor, size: int | None, axis: int) -> Tensor | None:
    """Return the output with the samples on axis 0, or None if it has no such axis."""
    if size and output.dim():
        if output.shape[0] == size:
            return output
        if axis == 1 and output.dim() > 1 and output.shape[1] == size:
            return output.transpose(0, 1)
        if output.shape[0] and output.shape[0] % size == 0:  # several rows a sample
            return output.unflatten(0, (size, -1))
    return None


def _projected(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sum over the samples of their values along a random direction of signs, the same for all samples."""
    signs = torch.randint(2, values.shape[1:], generator=generator) * 2 - 1
    return (values * signs.to(values.device, values.dtype)).sum()


def _cut(args: tuple[Any, ...], kwargs: dict[str, Any], axis: int, samples: int) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return copies of the arguments with the first samples only, if what is on that axis may be samples; else None."""
    data = first_tensor(args, kwargs)
    if data is None or data.dim() <= axis:
        return None
    cut = partial(_first_samples, axis=axis, size=data.shape[axis], samples=samples)
    return tree_map(cut, args), tree_map(cut, kwargs)


def _first_samples(value: Any, axis: int, size: int, samples: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    carries_samples = value.dim() > axis and value.shape[axis] == size
    return (value.narrow(axis, 0, min(size, samples)) if carries_samples else value).detach().clone()
