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
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import has_compiled_parts, remove_hooks
from cockpit_lite.curvature.quietly import quietly
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes import tensor_hooks
from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics
from cockpit_lite.probes.per_sample.calls import first_tensor
from cockpit_lite.probes.per_sample.generic import random_numbers_kept

logger = logging.getLogger("cockpit_lite")

#: Samples that are kept.
SAMPLES = 16


#: Positional and keyword arguments of a call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


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
        self._model = model
        self._probe = PerSampleProbe(model, parameters)
        self._handles: list[RemovableHandle] = []
        self._call: _FirstCall | None = None
        self._kept: Arguments | None = None

    def start(self) -> None:
        """Watch for the first call of the model in a step: all later ones of ours repeat it, with other samples."""
        self.stop()
        if not has_compiled_parts(self._model):
            self._handles = [
                register_module_forward_pre_hook(self._before_call),
                register_module_forward_hook(self._after_call, with_kwargs=True),
            ]

    def stop(self) -> None:
        """Take the hooks away, and forget the step's call. May be called twice."""
        remove_hooks(self._handles)
        self._handles, self._call = [], None

    def _before_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or module is not self._model or not torch.is_grad_enabled():
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # a call under vmap or jvp has no samples that could be kept
        if self._call is not None and self._call.arguments is not None:  # else it raised, and the user has gone on
            return
        try:
            inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
            parameters = {name: parameter for name, parameter in inner.named_parameters() if parameter.requires_grad}
            if list(map(id, parameters.values())) != list(map(id, self._probe.parameters.values())):
                self._probe = PerSampleProbe(inner, parameters)  # kept, since it learns how the samples lie in the model
            self._call = _FirstCall(inner, self._probe)
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            logger.debug("a call of the model is not watched", exc_info=error)

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if module is self._model and self._call is not None and self._call.arguments is None:
            self._call.arguments = (args, dict(kwargs))

    def tangent_kernel(self, projections: int) -> TangentKernel:
        """Return the kernel at the present weights.

        Args:
            projections: On how many random directions the outputs of a sample are projected; always the same ones.

        Raises:
            NotMeasured: if there is no probe batch, or the model cannot be called on it.
        """
        first = self._call
        if first is None or first.arguments is None:
            raise NotMeasured("no call of the whole model was seen, or it is compiled")
        if self._kept is not None:
            return self._again(first, self._kept, projections)
        reason: Exception = NotMeasured("the model was given no tensor")
        for axis in (0, 1):  # the samples may be on the second axis, behind time
            arguments = _cut(*first.arguments, axis, SAMPLES)
            if arguments is None:
                continue
            try:
                kernel, found = first.kernel(arguments, projections)
            except Exception as error:  # whatever a user's forward may raise on a part of its batch
                logger.debug("no probe batch along axis %d", axis, exc_info=error)
                reason = reason if axis else error
                continue
            if found == axis:
                self._kept = arguments
                return kernel
        if isinstance(reason, NotMeasured):
            raise reason
        raise NotMeasured(f"the model could not be called on a part of its batch ({type(reason).__name__}: {reason})")

    def _again(self, first: _FirstCall, arguments: Arguments, projections: int) -> TangentKernel:
        try:
            return first.kernel(arguments, projections)[0]
        except NotMeasured:
            raise
        except Exception as error:  # the user may have changed the model
            raise NotMeasured(f"the model could not be called on the probe batch ({type(error).__name__}: {error})") from error


class _FirstCall:
    """The first call of the model in a step, from just before it: a forward that counts its calls is then repeated as it was.

    Attributes:
        arguments: What it was given, once it has returned.
    """

    def __init__(self, model: nn.Module, probe: PerSampleProbe) -> None:
        self.arguments: Arguments | None = None
        self._model, self._probe, self._parameters = model, probe, probe.parameters
        self._forward = ForwardCall(_Watched(model, self._probe))

    def kernel(self, arguments: Arguments, projections: int) -> tuple[TangentKernel, int]:
        """Return the kernel on some samples, and the axis of the input that the samples turn out to be on."""
        self._check()
        self._forward.finish(*arguments, None)
        device = next(iter(self._parameters.values())).device
        hooks = tensor_hooks.registrations()
        try:
            with random_numbers_kept(device, []), torch.enable_grad():
                outputs = [tensor for tensor in self._forward.repeat() if tensor.requires_grad and tensor.is_floating_point()]
            if tensor_hooks.registrations() != hooks:
                raise NotMeasured("the model's forward hooks its tensors, and the hooks would fire a second time")
            with quietly(self._parameters.values(), self._model.buffers()):
                return self._kernel(outputs, projections)
        finally:
            self._probe.stop()

    def _check(self) -> None:
        if not self._parameters:
            raise NotMeasured("the model has no trainable parameter")
        if any(parameter.is_complex() for parameter in self._parameters.values()):
            raise NotMeasured("the model has complex parameters")
        if module_registry._global_backward_hooks or module_registry._global_backward_pre_hooks:
            raise NotMeasured("all modules have a backward hook that would fire a second time")
        for name, module in self._model.named_modules():
            if module._backward_hooks or module._backward_pre_hooks:
                raise NotMeasured(
                    f"the module {name or type(module).__name__!r} has a backward hook that would fire a second time"
                )

    def _kernel(self, outputs: Sequence[Tensor], projections: int) -> tuple[TangentKernel, int]:
        probe, parameters = self._probe, self._parameters
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


def _cut(args: tuple[Any, ...], kwargs: dict[str, Any], axis: int, samples: int) -> Arguments | None:
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
