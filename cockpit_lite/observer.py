"""Observer: turns backward passes and optimizer steps into Steps, and has the instruments measure them.

A step goes through these phases; each instrument measures in the one that its needs name:

    backward begins    CURVATURE               the graph is alive, the gradient can be differentiated again
    backward ends
    update begins      GRADIENT, PER_SAMPLE    everything about the mini-batch is known
    update ends        UPDATE                  the step that was really taken
    step ends          LOSS

On a step that is not tracked nothing of this happens; only its loss, learning rate and duration are kept (see pulse.py).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import CURVATURE, GRADIENT, LOSS, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS, UPDATE, Instrument
from cockpit_lite.isolation import warn
from cockpit_lite.probes import loss_scale, tensor_hooks
from cockpit_lite.probes.gradient import GradientProbe
from cockpit_lite.probes.parameters import learning_rates, parameter_learning_rates
from cockpit_lite.probes.per_sample import PerSampleProbe
from cockpit_lite.pulse import Pulse
from cockpit_lite.recorder import Recorder
from cockpit_lite.schedule import Budget, Schedule
from cockpit_lite.step import Step
from cockpit_lite.transfer import Row

PER_SAMPLE = frozenset({PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS})

_TAKE_TURNS = "several optimizers take turns, and the loss of one step is not the objective of all parameters"

_TENSOR_HOOKS = "a tensor of this step has a hook of yours, or retain_grad, which would act a second time"

Method = TypeVar("Method", bound=Callable[..., None])


def isolated(method: Method) -> Method:
    """No exception of ours leaves the method: the observer gives up instead, and training goes on."""

    @functools.wraps(method)
    def wrapper(self: Observer, *args: Any) -> None:
        if self.active:
            try:
                method(self, *args)
            except Exception as error:
                self.give_up(error)

    return wrapper  # type: ignore[return-value]


def account(instrument: Instrument) -> str:
    """Return the name of the budget account: instruments that share a probe share its cost and are measured together."""
    if CURVATURE in instrument.needs:
        return instrument.name
    return "per_sample" if PER_SAMPLE & set(instrument.needs) else "+".join(sorted(instrument.needs))


class Observer:
    """The state machine behind a cockpit. Implements BackwardListener and OptimizerListener.

    Attributes:
        index: Number of the step that is under way, from 0: how many have been completed.
        active: Whether it still observes.
        seconds: Seconds spent measuring, by budget account.
        training_seconds: Seconds between the steps that were not spent measuring.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[Optimizer],
        instruments: Sequence[Instrument],
        schedule: Schedule | None,
        budget: Budget | None,
        recorder: Recorder,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.index = 0
        self.active = True
        self.seconds: dict[str, float] = {}
        self.training_seconds = 0.0
        self._model = model
        self._parameters = dict(parameters)
        self._optimizers = tuple(optimizers)
        # What only looks at the loss comes along on every tracked step, but is no reason to track one.
        self._companions = [instrument for instrument in instruments if set(instrument.needs) <= {LOSS}]
        self._tracked = [instrument for instrument in instruments if instrument not in self._companions]
        self._pulse = Pulse()
        self._schedule = schedule
        self._budget = budget
        self._recorder = recorder
        self._clock = clock
        self._gradient = GradientProbe(parameters)
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self._per_sample = PerSampleProbe(model, trainable)
        self._forward = ForwardProbe(model)
        device = next(iter(parameters.values())).device
        # Probe vectors must not come from the user's random numbers.
        self._generator = torch.Generator(device=device).manual_seed(0)
        self._expected_backwards = 1
        self._alternating = False
        self._last_end = clock()
        self._begin_step()

    # What the probes report

    @isolated
    def before_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~cockpit_lite.probes.backward.BackwardListener`."""
        if self._closure == "again":
            return
        if self._updated:  # one of several optimizers has stepped, and training goes on: its step was one of its own
            self._alternating = True
            self._end_step()
        elif self._backwards and self._gradient.was_reset():  # a batch that was thrown away, as gradient scalers do
            self._discard()
        self._gradient.before_backward()
        self._scale = loss_scale.last_scale() if loss_scale.uses() != self._scale_uses else None
        if not self._due:
            return
        start = self._clock()
        self._measure_curvature(tensors, gradients)
        if self._needs & PER_SAMPLE and self._per_sample_obstacle is None:
            self._per_sample_obstacle = self._find_per_sample_obstacle()
            if self._per_sample_obstacle is None:
                self._per_sample.backward_begins()
        self._spent += self._clock() - start

    @isolated
    def after_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~cockpit_lite.probes.backward.BackwardListener`."""
        if self._closure == "again":
            return
        if self._due and self._needs & PER_SAMPLE:
            self._per_sample.backward_ends()
        if not self._gradient.after_backward():
            return  # somebody else's loss
        self._backwards += 1
        objective = _objective(tensors, gradients)
        self._losses.append(objective if self._scale is None else objective / self._scale)
        if self._due:
            start = self._clock()
            self._gradient.record()
            self._spent += self._clock() - start

    @isolated
    def before_update(self, optimizer: Optimizer, has_closure: bool) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if id(optimizer) in self._updated:
            self._end_step()
        self._closure = "expected" if has_closure else ""
        if not self._due:
            return
        start = self._clock()
        if not self._updated and UPDATE in self._needs:
            before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
            self._step.observed["weights_before"] = before
        if not has_closure:
            self._measure_gradient(optimizer)
        self._spent += self._clock() - start

    @isolated
    def closure_begins(self) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if self._closure == "expected":
            self._closure = "first"
            # What an earlier, unused backward pass left behind is not part of this step.
            self._losses, self._backwards = [], 0

    @isolated
    def closure_ends(self) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if self._closure == "first":
            self._closure = "again"
            if self._due:
                start = self._clock()
                self._measure_gradient(self._optimizers[0])
                self._per_sample.stop()  # the step is described at its first evaluation
                self._spent += self._clock() - start

    @isolated
    def after_update(self, optimizer: Optimizer) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        self._closure = ""
        if self._alternating and not self._backwards:
            # A second optimizer that uses the gradient of the step just closed: not a step of its own.
            self._begin_step()
            return
        self._updated.add(id(optimizer))
        if self._alternating or len(self._updated) == len(self._optimizers):
            self._end_step()

    # The end, wanted or not

    def close(self) -> None:
        """Stop observing; a step that was not finished is dropped. Idempotent."""
        if self.active:
            self.active = False
            self._per_sample.stop()
            self._forward.stop()
            self._flush_pulse()

    def give_up(self, error: Exception) -> None:
        """Our own failure: stop observing with one warning; training goes on."""
        self.close()
        warn(f"The cockpit failed at step {self.index} and was switched off; training goes on unobserved.", error)

    @property
    def overhead(self) -> float:
        """Seconds spent measuring over seconds spent training, so far."""
        return sum(self.seconds.values()) / self.training_seconds if self.training_seconds else 0.0

    # One step

    def _begin_step(self) -> None:
        self._losses: list[Tensor] = []
        self._backwards = 0
        self._updated: set[int] = set()
        self._closure = ""
        self._spent = 0.0
        self._scale: Tensor | None = None
        self._scale_uses = loss_scale.uses()
        self._hook_registrations = tensor_hooks.registrations()
        self._due = self._due_instruments()
        if self._due:
            self._step = Step(self.index, self._parameters)
            self._step.overhead = self.overhead
            self._row = Row(self.index, {})
            self._costs: dict[str, float] = {}
            self._needs = {need for instrument in self._due for need in instrument.needs}
            if self._needs & PER_SAMPLE:
                self._per_sample_obstacle: str | None = None
                self._per_sample.start()
            if CURVATURE in self._needs:
                self._forward.start()

    def _discard(self) -> None:
        """Forget the backward passes of this step: their gradient was thrown away."""
        self._losses, self._backwards = [], 0
        if self._due:
            self._row = Row(self.index, {})
            self._step.observed.clear()
            self._step.reasons.clear()
            self._per_sample.forget_backwards()

    def _due_instruments(self) -> list[Instrument]:
        if self._schedule is not None and not self._schedule(self.index):
            return []
        if self._budget is None:
            return self._tracked
        if self._budget.idle(self.index):
            return []
        return [instrument for instrument in self._tracked if self._budget.allows(account(instrument), self.index)]

    def _end_step(self) -> None:
        now = self._clock()
        seconds = max(now - self._last_end - self._spent, 0.0)
        self.training_seconds += seconds
        loss = None
        if self._losses:
            loss = self._losses[0] if len(self._losses) == 1 else torch.stack(self._losses).sum()
        if self._due:
            self._finish(loss, seconds)
            self._spent += self._clock() - now
        elif self._pulse.add(self.index, loss, self._first_learning_rate(), seconds):
            self._flush_pulse()
        self._settle(seconds)
        self.index += 1
        self._begin_step()

    def _finish(self, loss: Tensor | None, seconds: float) -> None:
        """Measure what is left of a tracked step and hand it on."""
        step = self._step
        if loss is None:
            step.reasons["loss"] = "no backward() was seen on this step"
        else:
            step.observed["loss"] = loss
        step.training_seconds = seconds
        step.learning_rates = learning_rates(self._optimizers)
        self._per_sample.stop()
        self._forward.stop()
        before = step.observed.get("weights_before")
        if before is not None:
            step.observed["update"] = {name: self._parameters[name].detach() - value for name, value in before.items()}
        self._measure([instrument for instrument in self._due if _phase(instrument) == UPDATE])
        if self._backwards > 1:
            self._withdraw_curvature()
        self._expected_backwards = max(self._backwards, 1)
        self._measure(self._companions)
        self._flush_pulse()
        self._recorder.take(self._row)

    def _flush_pulse(self) -> None:
        row = self._pulse.take()
        if row is not None:
            self._recorder.take(row)

    def _first_learning_rate(self) -> float | Tensor | None:
        return self._optimizers[0].param_groups[0].get("lr")

    def _settle(self, training_seconds: float) -> None:
        """Book what the step cost."""
        costs = {}
        if self._due:
            # What no instrument answers for by itself (probes, log) is shared by those that were due.
            accounts = {account(instrument) for instrument in self._due}
            shared = max(self._spent - sum(self._costs.values()), 0.0) / len(accounts)
            costs = {name: self._costs.get(name, 0.0) + shared for name in accounts}
            for name, seconds in costs.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._budget is not None:
            self._budget.end_step(training_seconds, costs)
        self._last_end = self._clock()

    # The phases

    def _measure_curvature(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        due = [instrument for instrument in self._due if CURVATURE in instrument.needs]
        if not due or self._backwards:
            return
        if self._expected_backwards > 1:
            self._not_measured(due, self._several_backwards(self._expected_backwards))
            return
        if self._alternating:
            self._not_measured(due, _TAKE_TURNS)
            return
        if self._has_tensor_hooks():
            self._not_measured(due, _TENSOR_HOOKS)
            return
        self._read_learning_rates()
        with torch.enable_grad():
            objective = _objective(tensors, gradients, detach=False)
            parameters = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
            self._step.observed["curvature"] = Curvature(
                objective, parameters, self._generator, model=self._model, forward=self._forward.call, scale=self._scale
            )
            self._measure(due, gradients=True)
        del self._step.observed["curvature"]  # it must not keep the graph alive
        self._forward.stop()

    def _measure_gradient(self, optimizer: Optimizer) -> None:
        due = [instrument for instrument in self._due if _phase(instrument) == GRADIENT]
        if not due or "applied_gradient" in self._step.observed:
            return
        self._read_learning_rates()
        step = self._step
        raw, applied, changed = self._gradient.gradients()
        if self._scale is not None:
            if not loss_scale.is_unscaled(optimizer):
                applied = {name: value / self._scale for name, value in applied.items()}
            if not changed:
                raw = applied
            elif raw is not None:  # the copies were made before anything was unscaled
                raw = {name: value / self._scale for name, value in raw.items()}
        if self._alternating:  # the other optimizers' gradients are leftovers
            own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            names = {name for name, parameter in self._parameters.items() if id(parameter) in own}
            raw = None if raw is None else {name: value for name, value in raw.items() if name in names}
            applied = {name: value for name, value in applied.items() if name in names}
        if not applied:
            step.reasons["gradient"] = step.reasons["applied_gradient"] = "no parameter has a gradient"
        else:
            step.observed.update(applied_gradient=applied, gradient_was_changed=changed)
            if raw is None:
                step.reasons["gradient"] = (
                    "the gradient was changed between backward and the optimizer step for the first time; "
                    "from the next measured step on the raw one is kept"
                )
            else:
                step.observed["gradient"] = raw
        if self._needs & PER_SAMPLE and self._per_sample_obstacle is not None:
            step.reasons["per_sample"] = self._per_sample_obstacle
        elif self._needs & PER_SAMPLE:
            start = self._clock()
            try:
                with torch.no_grad():
                    if self._scale is not None and raw is not None:
                        # In the units that went backwards, since the contributions are checked against the gradient.
                        raw = {name: value * self._scale for name, value in raw.items()}
                    statistics = self._per_sample.statistics(PER_SAMPLE_PRODUCTS in self._needs, raw)
                    if self._scale is not None:
                        statistics.unscale(self._scale)
                step.observed["per_sample"] = statistics
            except NotMeasured as reason:
                step.reasons["per_sample"] = str(reason)
            except Exception as error:
                step.reasons["per_sample"] = f"the per-sample engine failed ({type(error).__name__}: {error})"
            self._costs["per_sample"] = self._costs.get("per_sample", 0.0) + self._clock() - start
        self._measure(due)

    def _measure(self, instruments: Sequence[Instrument], gradients: bool = False) -> None:
        """Have each instrument measure; what fails is switched off."""
        with torch.set_grad_enabled(gradients):
            for instrument in instruments:
                start = self._clock()
                try:
                    self._row.put(instrument.measure(self._step))
                except NotMeasured as reason:
                    self._not_measured([instrument], str(reason))
                except Exception as error:
                    self._switch_off(instrument, error)
                if instrument in self._due:
                    name = account(instrument)
                    self._costs[name] = self._costs.get(name, 0.0) + self._clock() - start

    def _switch_off(self, instrument: Instrument, error: Exception) -> None:
        for instruments in (self._companions, self._tracked):
            if instrument in instruments:
                instruments.remove(instrument)
        self._not_measured(
            [instrument], f"the instrument failed at step {self.index} and was switched off ({type(error).__name__}: {error})"
        )
        warn(f"The instrument {instrument.name!r} failed at step {self.index} and was switched off; training goes on.", error)

    def _not_measured(self, instruments: Sequence[Instrument], reason: str) -> None:
        self._row.reasons.update({name: reason for instrument in instruments for name in instrument.reading_names()})

    def _withdraw_curvature(self) -> None:
        """Only now it shows that the loss was not the whole objective of the step."""
        due = [instrument for instrument in self._due if CURVATURE in instrument.needs]
        for instrument in due:
            for name in tuple(self._row.values):
                if name.partition("/")[0] in instrument.reading_names():
                    del self._row.values[name]
                    self._row.how.pop(name, None)
        self._not_measured(due, self._several_backwards(self._backwards))

    @staticmethod
    def _several_backwards(count: int) -> str:
        return (
            f"the step's gradient comes from {count} backward passes (accumulation or several losses), "
            "and the curvature of one of them is not that of the step"
        )

    def _find_per_sample_obstacle(self) -> str | None:
        """Return why the per-sample engine, which may take passes of its own over the user's graph, must not run on this step."""
        if any(parameter.is_complex() for parameter in self._parameters.values()):
            return "the model has complex parameters"
        if self._alternating:
            return _TAKE_TURNS
        if self._has_tensor_hooks():
            return _TENSOR_HOOKS
        for name, module in self._model.named_modules():
            if module._backward_hooks or module._backward_pre_hooks:
                return f"the module {name or type(module).__name__!r} has a backward hook that would fire a second time"
        return None

    def _has_tensor_hooks(self) -> bool:
        return tensor_hooks.registrations() != self._hook_registrations

    def _read_learning_rates(self) -> None:
        self._step.learning_rates = learning_rates(self._optimizers)
        self._step.parameter_learning_rates = parameter_learning_rates(self._parameters, self._optimizers)


def _phase(instrument: Instrument) -> str:
    needs = set(instrument.needs)
    if CURVATURE in needs:
        return CURVATURE
    return UPDATE if UPDATE in needs else GRADIENT


def _objective(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], detach: bool = True) -> Tensor:
    """Return the scalar that the backward pass differentiates: the sum of the roots weighted with their seeds."""
    total: Tensor | None = None
    for root, seed in zip(tensors, gradients, strict=False):
        value = root.detach() if detach else root
        if seed is not None:
            value = (value * seed).sum()
        elif value.dim():
            value = value.sum()  # one element: backward() allows no other root without a seed
        total = value if total is None else total + value
    if total is None:
        raise NotMeasured("the root of the backward pass is no tensor")
    return total
