"""The black box: keeps the first step that goes wrong, while everything it was made of is still there.

Loss and gradient are looked at just after the backward pass, before the optimizer uses the gradient: so the weights are those
that the step began with, and nothing has to be copied on a step that is fine. What is held meanwhile is what the step holds
anyway: its inputs, and what the loss has sent back to the model's outputs.

A training with steps so short that this would cost more than a fifth of a percent of its time has only some of them looked at
closely. On the others the inputs are held and the loss is looked at: a step that goes wrong there is kept, too, but for the state
of the random numbers, and a gradient that goes wrong under a sound loss is seen at the next step.

Of the gradient a few small parameters are looked at, the first ones of the network among them, which nearly every NaN on its way
back arrives at; on measured steps all are. On an accelerator nothing waits for the numbers: see
:mod:`cockpit_lite.black_box.latch`.
"""

from __future__ import annotations

import cmath
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite.black_box.calls import Call, CallWatch
from cockpit_lite.black_box.containers import plain, plain_tensor, size
from cockpit_lite.black_box.kept_step import FOLDER, kept_steps, write
from cockpit_lite.black_box.latch import MOST_MEMORY, Latch
from cockpit_lite.black_box.loss_operations import loss_operations
from cockpit_lite.black_box.random_state import to_file
from cockpit_lite.isolation import warn
from cockpit_lite.probes import loss_scale
from cockpit_lite.probes.backward import objective
from cockpit_lite.probes.data import loss_inputs

#: What all kept steps of a run may take on disk, if the user does not say.
DEFAULT_LIMIT = 2**30
#: At most so many steps are kept without being asked for.
MOST_STEPS = 3
#: A parameter that is looked at on every step has at most so many elements.
_SMALL = 4096

NOT_FINITE_LOSS = "the loss is not finite"
NOT_FINITE_GRADIENT = "the gradient is not finite"
ASKED_FOR = "it was asked for"


class BlackBox:
    """Watches loss and gradient of every step. Implements BackwardListener.

    Args:
        model: The model.
        parameters: All watched parameters by name.
        optimizers: That train them.
        run: The run folder.
        limit: Bytes that the kept steps of the run may take.
        step: Returns the number of the step under way.
        measuring: Returns whether a call of the model that is made now is one of ours.
        measured: Returns whether the step under way is a measured one.
        kept: Called with the number of a step that was kept.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[Optimizer],
        run: Path,
        limit: int,
        step: Callable[[], int],
        measuring: Callable[[], bool],
        measured: Callable[[], bool],
        kept: Callable[[int], None],
    ):
        self._model = model
        self._parameters = parameters
        self._optimizers = optimizers
        self._run = run
        self._limit = limit
        self._step = step
        self._measured = measured
        self._kept = kept
        self._watch = CallWatch(model, measuring)
        self._active = False
        self._asked = False
        self._faults = 0
        self._was_bad = self._was_bad_there = False
        self._sound = False  # of the backward pass under way: its loss is finite, and no closer look is due
        self._spent = 0.0
        self._scale_uses = loss_scale.uses
        self._scaled = False
        self._loss: float | None = None
        self._target: dict[str, Any] | None = None
        self._operations: list[dict[str, Any]] = []
        trainable = [parameter for parameter in parameters.values() if parameter.requires_grad]
        small = [parameter for parameter in trainable if parameter.numel() <= _SMALL]
        self._sentinels = [*small[:1], *small[len(small) // 2 :][:1]]
        self._latch = _latch(parameters, limit)

    def start(self) -> None:
        """Begin to watch."""
        self._watch.start()
        self._active = True

    def stop(self) -> None:
        """Keep what is still on its way and leave no trace; idempotent."""
        if self._active and self._latch is not None:
            self._collect(self._latch, wait=True)
        self._active = False
        self._watch.stop()

    def ask(self) -> None:
        """Keep the next step whose backward pass is seen."""
        self._asked = self._watch.closely = True

    def before_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~cockpit_lite.probes.backward.BackwardListener`."""
        if not self._active:
            return
        watch, self._sound = self._watch, False
        # Nearly all steps of a training whose steps are short, and in one piece: every function more costs a microsecond.
        if not (watch.closely or watch.held) and self._latch is None and len(tensors) == 1 and gradients[0] is None:
            root = tensors[0]
            if root.is_cpu and not root.dim() and loss_scale.uses == self._scale_uses and not self._measured():
                self._loss = root.item()
                if math.isfinite(self._loss):
                    self._sound = watch.resting = True
                    if watch.forget():
                        self._was_bad = False
                    return
        start = time.perf_counter()
        watch.listen(True)
        self._scaled, self._scale_uses = loss_scale.uses != self._scale_uses, loss_scale.uses
        self._loss, self._target, self._operations = None, None, []
        if len(tensors) != 1:
            return
        root = tensors[0]
        if root.is_cpu and gradients[:1] in ((), (None,)) and root.numel() == 1:
            self._loss = float(root.item())
        elif root.is_cpu:
            self._loss = float(objective(tensors, gradients).item())
        scale = loss_scale.last_scale() if self._scaled else None
        if self._loss is not None and scale is not None:
            self._loss /= float(scale)
        if self._asked or self._lost():
            self._read_loss(root)
        self._spent = time.perf_counter() - start

    def after_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~cockpit_lite.probes.backward.BackwardListener`."""
        if not self._active:
            return
        if self._sound:
            self._watch.resting = False
            return
        start = time.perf_counter()
        self._watch.listen(False)
        calls = self._watch.take()
        if calls:  # else it is somebody else's loss
            self._look(calls, tensors)
        self._watch.step_ends(self._spent + time.perf_counter() - start)
        if self._asked:
            self._watch.closely = True

    def _look(self, calls: Sequence[Call], tensors: Sequence[Tensor]) -> None:
        if self._latch is not None:
            self._note(self._latch, calls, tensors)
        reason = self._fault()
        first = reason is not None and not self._was_bad and self._faults < MOST_STEPS
        self._was_bad = reason is not None
        if first or self._asked:
            self._faults += first
            self._asked = False
            if not self._operations and len(tensors) == 1:  # what its operations have kept is gone, their names are not
                self._operations = loss_operations(tensors[0], {number for call in calls for number in call.nodes})
            self._keep(reason or ASKED_FOR, calls)

    def give_up(self, error: Exception) -> None:
        """Our own failure: keep nothing any more; training goes on."""
        self.stop()
        warn("The black box failed and was switched off: no step is kept any more; training goes on.", error)

    def _read_loss(self, root: Tensor) -> None:
        if root.grad_fn is None:
            return
        found = loss_inputs(root)
        if found is not None:
            self._target = {"kind": found.kind, "target": plain_tensor(found.target)}
        self._operations = loss_operations(root, self._watch.output_nodes)

    def _lost(self) -> bool:
        if self._loss is None or math.isfinite(self._loss):
            return False
        return math.isnan(self._loss) or not self._scaled  # a large scale alone makes it infinite

    def _fault(self) -> str | None:
        if self._lost():
            return NOT_FINITE_LOSS
        # A gradient scaler looks for a scale that is just small enough, and skips the steps where it is not.
        if not self._scaled and (self._watch.closely or self._measured()) and not self._finite_gradient():
            return NOT_FINITE_GRADIENT
        return None

    def _note(self, latch: Latch, calls: Sequence[Call], roots: Sequence[Tensor]) -> None:
        """On an accelerator: have the device look at the step, and keep what has turned out to be bad meanwhile."""
        found = [] if self._scaled else [parameter.grad for parameter in self._sentinels]
        gradients = [gradient for gradient in found if gradient is not None and gradient.layout == torch.strided]
        latch.note(self._step(), calls, roots[0] if len(roots) == 1 else None, gradients)
        self._collect(latch)

    def _collect(self, latch: Latch, wait: bool = False) -> None:
        for pending, bad in latch.arrived(wait):
            if bad and not self._was_bad_there and self._faults < MOST_STEPS:
                self._faults += 1
                self._loss = None if pending.loss is None else float(pending.loss.sum().item())
                lost = self._loss is not None and not math.isfinite(self._loss)
                weights = latch.weights() if latch.keeps_weights else None
                self._keep(NOT_FINITE_LOSS if lost else NOT_FINITE_GRADIENT, pending.calls, pending.step, weights)
            if self._was_bad_there and not bad:
                latch.release()
            self._was_bad_there = bad

    def _finite_gradient(self) -> bool:
        looked_at = self._parameters.values() if self._measured() else self._sentinels
        for parameter in looked_at:
            gradient = parameter.grad
            if gradient is None or not gradient.is_cpu or gradient.layout != torch.strided:
                continue
            # The sum is fast and almost always enough; that of finite numbers can overflow.
            if not cmath.isfinite(gradient.sum().item()) and not bool(gradient.isfinite().all()):
                return False
        return True

    # Writing

    def _keep(
        self, reason: str, calls: Sequence[Call], step: int | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        late, step = step is not None, self._step() if step is None else step
        path = self._run / FOLDER / f"step-{step:06d}.pt"
        if path.exists():
            return  # a micro-batch of the same step
        try:
            with torch.no_grad():
                contents, left_out = self._contents(step, reason, calls, weights, late)
                write(contents, path)
        except Exception as error:  # a full disk, or a tensor that cannot be saved
            warn(f"Step {step} could not be kept in {path.parent}; training goes on.", error)
            return
        if left_out:
            warn(f"Of step {step} {left_out} not kept: black_box={self._limit} is the limit of this run in bytes.")
        self._kept(step)

    def _contents(
        self, step: int, reason: str, calls: Sequence[Call], held: Mapping[str, Tensor] | None, late: bool
    ) -> tuple[dict[str, Any], str]:
        room = self._limit - sum(path.stat().st_size for path in kept_steps(self._run))
        notes = _notes(calls)
        left_out = []
        weights: dict[str, Tensor] | None = None
        inputs = size([(call.args, call.kwargs, call.gradients) for call in calls])
        if inputs > room:
            notes.append(f"the batch was left out: it has {inputs:,} bytes, and the black box has room for {max(room, 0):,}")
            left_out.append("the batch was")
            calls = []
        else:
            room -= inputs
        needed = size(list(self._parameters.values()))
        if needed > room:
            notes.append(
                f"the weights were left out: they have {needed:,} bytes, and the black box has room for {max(room, 0):,}"
            )
            left_out.append("the weights were")
        else:
            if late and held is None:
                notes.append(f"the weights are those of step {self._step()}: the model is too large for a copy on the device")
            present = self._parameters if held is None else held
            weights = {name: plain_tensor(parameter) for name, parameter in present.items() if not _elsewhere(parameter)}
            if len(weights) < len(self._parameters):
                notes.append("the weights are spread over several processes, and those of this one were not kept")
                weights = None
        before = calls[0].buffers if calls else None
        buffers = dict(self._model.named_buffers())
        if buffers and before is None:
            notes.append("the buffers are those after the forward pass")
        return {
            "step": step,
            "reason": reason,
            "loss": self._loss,
            "model": type(self._model).__name__,
            "training": [name for name, module in self._model.named_modules() if module.training],
            "weights": weights,
            "buffers": {name: plain_tensor((before or {}).get(name, buffer)) for name, buffer in buffers.items()},
            "calls": [_call(call) for call in calls],
            "target": self._target,
            "loss_operations": self._operations,
            "optimizers": [_settings(optimizer) for optimizer in self._optimizers],
            "notes": notes,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }, " and ".join(left_out)


def _call(call: Call) -> dict[str, Any]:
    return {
        "args": plain(call.args),
        "kwargs": plain(call.kwargs),
        "random": to_file(call.random),
        "autocast": call.autocast,
        "gradients": [None if gradient is None else plain_tensor(gradient) for gradient in call.gradients],
    }


def _latch(parameters: Mapping[str, nn.Parameter], limit: int) -> Latch | None:
    """Return what watches a model on one accelerator; None on a CPU, where nothing has to be watched."""
    devices = {parameter.device for parameter in parameters.values()}
    device = next(iter(devices))
    if len(devices) > 1 or device.type != "cuda" or any(map(_elsewhere, parameters.values())):
        return None
    memory = torch.cuda.get_device_properties(device).total_memory
    return Latch(parameters, min(limit, int(memory * MOST_MEMORY / 2)))


def _notes(calls: Sequence[Call]) -> list[str]:
    if not calls:
        return ["the batch was gone when it was known that the step had gone wrong"]
    notes = []
    if any(call.overwritten for call in calls):
        notes.append("an input of the model was changed in place after the forward pass, and is kept as it was then")
    if not all(call.random for call in calls):
        notes.append(
            "the steps are so short that only some are looked at closely: "
            "of this one the state of the random numbers is not known"
        )
    age = max(call.random.get("age", 0) for call in calls)
    if age:
        notes.append(
            f"the random number generators of python and numpy are as they were {age} calls before, that of torch is exact"
        )
    if any(gradient is None for call in calls for gradient in call.gradients or [None]):
        notes.append("what the loss sent back to an output was too large to be held, or nothing")
    return notes


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    groups = [{key: plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {"class": type(optimizer).__name__, "groups": groups}


def _elsewhere(parameter: Tensor) -> bool:
    return parameter.is_meta or hasattr(parameter, "full_tensor") or parameter.layout != torch.strided
