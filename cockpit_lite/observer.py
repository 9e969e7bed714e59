"""Observer: turns backward passes and optimizer steps into numbered steps, and tracks those that are due.

On a step that is not tracked only its loss, learning rate and duration are kept (see pulse.py); what happens on the others is in
tracked_step.py.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite.cost import CostBook
from cockpit_lite.first_costs import first_costs
from cockpit_lite.instrument import LAST_STEP, Instrument
from cockpit_lite.isolation import warn
from cockpit_lite.presets import ALWAYS
from cockpit_lite.probes import loss_scale
from cockpit_lite.probes.backward import objective
from cockpit_lite.probes.last_step import versions
from cockpit_lite.probes.processes import Processes
from cockpit_lite.pulse import Pulse
from cockpit_lite.recorder import Recorder
from cockpit_lite.schedule import Budget, Schedule
from cockpit_lite.tracked_step import Probes, TrackedStep, account
from cockpit_lite.transfer import Row

#: Steps after which, at most, instruments that found nothing to measure in the net look again.
_LOOK_AGAIN = 1000

_TOO_DEAR = "the first measurement is more than the budget allows for so far, and waits until that has been saved"

#: Backward passes without a step after which it is worth saying so.
_OFTEN = 5


class Observer:
    """The state machine behind a cockpit. Implements BackwardListener and OptimizerListener.

    Attributes:
        index: Number of the step that is under way, from 0: how many have been completed.
        active: Whether it still observes.
        costs: What measuring has cost so far.
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
        first_step: int = 0,
        processes: Processes | None = None,
    ):
        self.index = first_step
        self.active = True
        self.costs = CostBook(budget)
        self._optimizers = tuple(optimizers)
        self._several = len(self._optimizers) > 1
        # What is recorded at every step comes along on every tracked step, but is no reason to track one.
        self._companions = [instrument for instrument in instruments if instrument.name in ALWAYS]
        self._instruments = [instrument for instrument in instruments if instrument.name not in ALWAYS]
        self._probes = Probes(model, dict(parameters), self._optimizers, clock, processes, recorder.watchdog)
        self._gradient, self._data = self._probes.gradient, self._probes.data
        self._pulse = Pulse()
        self._schedule = schedule
        self._budget = budget
        self._recorder = recorder
        self._clock = clock
        self._expected_backwards = 1
        self._taking_turns = False
        self._last_end = clock()
        # The step under way
        self._losses: list[Tensor | float] = []
        self._backwards = 0
        self._value: float | None = None  # of the loss that goes backwards now, where it is known
        self._versions: tuple[int, ...] = ()  # of the parameters, when the first such pass was thrown away
        self._without_step = 0  # backward passes whose gradient no optimizer used
        self._left_out = False  # whether the optimizer that is called now takes no step
        self._updated: set[int] = set()  # optimizers that have stepped
        self._closure = ""  # "expected", "first" evaluation, "again"
        self._scale: Tensor | None = None
        self._scale_uses = 0
        self._tracked: TrackedStep | None = None
        self._resting: set[Instrument] = set()  # those that found nothing to measure in this net
        self._look_again = 0  # the first step at which they may look again, beside others
        self._rest_for = 1
        self._halfway: list[Instrument] = []  # those that were due on the last step and want this one, too
        self._unexplained: dict[str, str] = {}  # readings that wait for the budget -> what is to be said of them once
        if budget is not None:
            budget.postpone(first_costs(self._instruments, account))
            late = [instrument for instrument in self._instruments if account(instrument) in budget.waiting]
            self._unexplained = {name: _TOO_DEAR for instrument in late for name in instrument.reading_names()}
        # Where such an instrument was switched off here, the other processes track the second step all the same, and wait for us.
        self._pairs = processes is not None and any(LAST_STEP in instrument.needs for instrument in instruments)
        self._others_look_back = False
        self._begin_step()

    def measuring(self) -> bool:
        """Whether a forward or backward pass that runs now is one of ours."""
        return self._data.paused

    def measured(self) -> bool:
        """Whether the step under way is a measured one."""
        return self._tracked is not None

    # What the probes report

    def before_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~cockpit_lite.probes.backward.BackwardListener`."""
        if self._closure == "again" or not self.active:
            return
        self._value = None  # of a pass that has failed, say
        if self._updated:  # one of several optimizers has stepped, and training goes on: its step was one of its own
            self._taking_turns = True
            self._end_step()
        elif self._backwards and self._gradient.was_reset():  # a batch that was thrown away, as gradient scalers do
            self._throw_away()
        self._gradient.before_backward()
        self._scale = loss_scale.last_scale() if loss_scale.uses != self._scale_uses else None
        if self._tracked is not None:
            self._tracked.before_backward(tensors, gradients, self._backwards, self._scale)
        elif len(tensors) == 1 and tensors[0].is_cpu and not tensors[0].dim() and gradients[0] is None and self._scale is None:
            # Nearly always. Cheaper than a tensor that is kept, and than after the pass, when nothing is in the caches any more.
            self._value = tensors[0].item()

    def _throw_away(self) -> None:
        """Begin the step again: the gradient was set to zero before any optimizer used it."""
        if self._scale is None:  # a gradient scaler skips steps on purpose
            if not self._without_step:
                self._versions = versions(self._probes.parameters)
            self._without_step += self._backwards
            if self._without_step % _OFTEN == 0:
                self._report_missing_steps(self._without_step)
        self._losses, self._backwards = [], 0
        if self._tracked is not None:
            self._tracked.discard()

    def _report_missing_steps(self, backwards: int) -> None:
        if self._versions and versions(self._probes.parameters) != self._versions:
            return  # somebody else changes the weights
        self._recorder.take(Row(self.index, {"backwards_without_step": float(backwards)}))

    def after_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~cockpit_lite.probes.backward.BackwardListener`."""
        if self._closure == "again" or not self.active:
            return
        if self._tracked is not None:
            self._tracked.after_backward()
        if not self._gradient.after_backward():
            return  # somebody else's loss
        self._backwards += 1
        if self._tracked is not None:
            self._tracked.keep_gradient()
        elif self._value is not None:
            self._losses.append(self._value)
            self._value = None
            return
        loss = objective(tensors, gradients)
        self._losses.append(loss if self._scale is None else loss / self._scale)

    def before_update(self, optimizer: Optimizer, has_closure: bool) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if not self.active:
            return
        if id(optimizer) in self._updated:
            self._end_step()
        self._closure = "expected" if has_closure else ""
        # Only a measured step is worth the wait: others show no gradient, and a step too many is counted there.
        if hasattr(optimizer, "found_inf"):  # a fused one under a gradient scaler
            self._left_out = not self._several and loss_scale.leaves_out(optimizer, wait=self._tracked is not None)
            if self._left_out:
                self._throw_away()
        else:
            self._left_out = False
        if self._tracked is None or self._left_out:
            return
        if not has_closure:
            self._tracked.measure_gradient(optimizer, self._scale, self._loss())
        if not self._updated:  # last: a copy of the weights need not be there while all else is
            self._tracked.keep_weights()

    def closure_begins(self) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if self._closure == "expected" and self.active:
            # Backward passes before it are part of the step, or thrown away by the next one if it sets the gradient to zero.
            self._closure = "first"

    def closure_ends(self) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if self._closure == "first" and self.active:
            self._closure = "again"
            if self._tracked is not None:  # the step is described at its first evaluation
                self._tracked.measure_gradient(self._optimizers[0], self._scale, self._loss())
                self._probes.stop()

    def after_update(self, optimizer: Optimizer) -> None:
        """See :class:`~cockpit_lite.probes.optimizer.OptimizerListener`."""
        if not self.active or self._left_out:
            return
        if self._several:
            if self._taking_turns and not self._backwards:
                # A second optimizer that uses the gradient of the step just closed: not a step of its own.
                self._begin_step()
                return
            self._updated.add(id(optimizer))
            if not self._taking_turns and len(self._updated) < len(self._optimizers):
                self._closure = ""
                return
        self._end_step()

    # The end, wanted or not

    def close(self) -> None:
        """Stop observing; a step that was not finished is dropped. Idempotent."""
        observed, self.active = self.active, False
        try:
            self._probes.stop()
            if not observed:
                return
            self._flush_pulse()
            if not self.index and self._without_step + self._backwards > 1:
                self._report_missing_steps(self._without_step + self._backwards)
        except Exception as error:  # the user's own exception may be on its way out
            warn("The readings of the last steps could not be recorded.", error)

    def give_up(self, error: Exception) -> None:
        """Our own failure: stop observing with one warning; training goes on."""
        self.active = False
        if self._probes.processes is not None:  # the others must not wait for this one
            self._probes.processes.leave("the cockpit of this process has failed")
        warn(f"The cockpit failed at step {self.index} and was switched off; training goes on unobserved.", error)
        self._probes.stop()

    # One step

    def _begin_step(self) -> None:
        self._losses = []
        self._backwards = 0
        self._closure = ""
        self._tracked = None
        if self._updated:
            self._updated = set()
        if self._scale_uses != loss_scale.uses:
            self._scale_uses, self._scale = loss_scale.uses, None
        wanted = self._schedule is None or self._schedule(self.index)  # the user's own: before training begins it may raise
        try:
            due = self._due() if wanted else ()
            if due or self._halfway or self._others_look_back:
                self._track(due)
        except Exception as error:
            self.give_up(error)

    def _track(self, due: Sequence[Instrument]) -> None:
        """Track the step for the instruments that are due, if any are."""
        # An instrument that looks at two steps in a row is due on the second one too.
        second = [instrument for instrument in self._halfway if instrument in self._instruments and instrument not in due]
        if self._others_look_back and not (due or second):
            second = list(self._instruments)
        self._halfway = [instrument for instrument in due if LAST_STEP in instrument.needs]
        self._others_look_back = self._pairs and bool(due)
        due = [*due, *second]
        if due:
            self._tracked = TrackedStep(
                self.index,
                due,
                self._companions,
                self._probes,
                self.costs.overhead,
                self._expected_backwards,
                self._taking_turns,
                self._switch_off,
            )

    def _due(self) -> Sequence[Instrument]:
        if self._budget is None:
            return tuple(self._instruments)
        if self._budget.idle(self.index):
            return ()
        allows, index, resting = self._budget.allows, self.index, self._resting
        due = [i for i in self._instruments if i not in resting and allows(account(i), index)]
        if due and resting and index >= self._look_again:
            due += [instrument for instrument in self._instruments if instrument in resting]
        return due

    def _let_rest(self, budget: Budget, tracked: TrackedStep) -> None:
        """What a net does not have is no reason to track its steps; now and then it is looked for beside what is measured."""
        nothing = tracked.found_nothing()
        looked = self._resting.intersection(tracked.due)
        if not nothing and not looked:
            return
        self._resting = (self._resting - looked) | set(nothing)
        self._rest_for = min(2 * self._rest_for, _LOOK_AGAIN)
        self._look_again = self.index + self._rest_for
        busy = {account(instrument) for instrument in self._instruments if instrument not in self._resting}
        for name in {account(instrument) for instrument in nothing} - busy:
            budget.forget(name)

    def _end_step(self) -> None:
        now = self._clock()
        loss = self._losses[0] if len(self._losses) == 1 else self._loss()
        if self._tracked is None:
            seconds = now - self._last_end
            if self._pulse.add(self.index, loss, self._optimizers[0].param_groups[0].get("lr"), seconds, now):
                self._flush_pulse()
            self.costs.book(seconds)
            self._last_end = now
        else:
            seconds = max(now - self._last_end - self._tracked.spent, 0.0)
            row = self._tracked.finish(loss, self._backwards, seconds)
            self._flush_pulse()
            logging = self._clock()
            row.reasons.update(self._unexplained)
            self._unexplained = {}
            self._recorder.take(row)
            self._tracked.spent += self._clock() - logging
            self.costs.book(seconds, self._tracked.costs(), self._tracked.company)
            if self._budget is not None:
                self._let_rest(self._budget, self._tracked)
            self._expected_backwards = max(self._backwards, 1)
            self._last_end = self._clock()
        self.index += 1
        self._without_step = 0
        self._begin_step()

    def _loss(self) -> Tensor | float | None:
        """Return the objective of the step so far; a tensor on tracked steps."""
        if len(self._losses) > 1:
            return functools.reduce(operator.add, self._losses)
        return self._losses[0] if self._losses else None

    def _flush_pulse(self) -> None:
        row = self._pulse.take()
        if row is not None:
            self._recorder.take(row)

    def _switch_off(self, instrument: Instrument, error: Exception) -> None:
        for instruments in (self._companions, self._instruments):
            if instrument in instruments:
                instruments.remove(instrument)
        warn(f"The instrument {instrument.name!r} failed at step {self.index} and was switched off; training goes on.", error)
        if not self._instruments and self._probes.processes is not None:
            self._probes.processes.leave("no instrument of this process is left")
