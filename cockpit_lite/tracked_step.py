"""A tracked step: what its due instruments need is observed, and each measures in the phase that its needs name.

backward begins    CURVATURE               the graph is alive, the gradient can be differentiated again
backward ends
update begins      GRADIENT, PER_SAMPLE    everything about the mini-batch is known
update ends        UPDATE                  the step that was really taken
step ends          LOSS
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite.curvature import Curvature, CurvatureMemory, ForwardProbe, GaussNewtonSample
from cockpit_lite.curvature.forward_probe import has_compiled_parts, may_reach
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import (
    ACTIVATION_SAMPLES,
    ACTIVATIONS,
    ATTENTION,
    BLOCKS,
    CURVATURE,
    DATA,
    GRADIENT,
    LAST_STEP,
    LOSS,
    PER_SAMPLE_ELEMENTS,
    PER_SAMPLE_GRADIENTS,
    PER_SAMPLE_NORMS,
    PER_SAMPLE_PRODUCTS,
    PER_SAMPLE_SQUARES,
    PROBE_BATCH,
    REPLAY,
    SAMPLE_LOSSES,
    SAMPLED_CURVATURE,
    SAMPLED_DIAGONAL,
    UPDATE,
    WIRING,
    Instrument,
    needs_preparation,
)
from cockpit_lite.norms import parameter_norms
from cockpit_lite.packed import difference, packed
from cockpit_lite.probes import loss_scale, noise, tensor_hooks
from cockpit_lite.probes.accumulation import Accumulation, several_backwards
from cockpit_lite.probes.activations import ActivationProbe
from cockpit_lite.probes.attention import attentions
from cockpit_lite.probes.backward import objective
from cockpit_lite.probes.blocks import BlockProbe
from cockpit_lite.probes.data import DataProbe
from cockpit_lite.probes.gradient import GradientProbe
from cockpit_lite.probes.last_step import GradientAtStart, LastStep, inner_product, versions
from cockpit_lite.probes.parameters import learning_rates
from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics
from cockpit_lite.probes.per_sample.checks import along_direction, check_direction, part_of_direction
from cockpit_lite.probes.probe_batch import ProbeBatch
from cockpit_lite.probes.processes import SQUARES, LocalGradient, Own, Processes
from cockpit_lite.probes.replay import Replay
from cockpit_lite.probes.sample_losses import SampleLosses
from cockpit_lite.probes.sampled_curvature import SampledCurvature
from cockpit_lite.probes.shared_curvature import SharedCurvature
from cockpit_lite.probes.static_graph import first_pass_left
from cockpit_lite.probes.whole_parameters import WholeParameters
from cockpit_lite.probes.wiring import WiringProbe
from cockpit_lite.sharded import Sharded, any_is_sharded, copies, held, part
from cockpit_lite.step import Step
from cockpit_lite.transfer import Row
from cockpit_lite.watchdog import Watchdog

PER_SAMPLE = frozenset(
    {PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS, PER_SAMPLE_SQUARES, PER_SAMPLE_ELEMENTS, PER_SAMPLE_GRADIENTS, SAMPLE_LOSSES}
)

_CHEAP = frozenset({LOSS, GRADIENT, UPDATE, WIRING})

#: Samples whose slopes along the last step are enough: from them only a variance is taken, which they tell to a quarter.
SLOPES = 32

#: So many sets of due instruments are remembered.
MOST_PLANS = 64

#: Trainings in several threads share one generator of random numbers: what is put back must be what was there.
_ONE_AT_A_TIME = threading.RLock()

_TAKE_TURNS = "several optimizers take turns, and the loss of one step is not the objective of all parameters"
_TENSOR_HOOKS = "a tensor of this step has a hook of yours, or retain_grad, which would act a second time"
_COMPILED = "the model is compiled, and what happens inside compiled code cannot be seen"
_CHANGED_FOR_THE_FIRST_TIME = (
    "the gradient was changed between backward and the optimizer step for the first time; "
    "from the next measured step on the raw one is kept"
)


def account(instrument: Instrument) -> str:
    """Return the name of the budget account: instruments that share a probe share its cost and are measured together."""
    return instrument.name if CURVATURE in instrument.needs else _shared_account(tuple(instrument.needs))


@lru_cache
def _shared_account(needs: tuple[str, ...]) -> str:
    if REPLAY in needs:  # passes of its own, dearer than what it takes of the samples beside them
        return REPLAY
    if PER_SAMPLE & set(needs):
        return "per_sample"
    if _CHEAP.issuperset(needs):  # to measure at all costs more than any of them: they are measured together
        return "gradient+update"
    return "+".join(sorted({*needs} - {LOSS}))


class Plan:
    """What it comes to that these instruments are due: the same on many steps, and looked up once.

    Attributes:
        needs: What they need of the step.
        unprepared: Those that have to prepare themselves before the backward pass.
        accounts: Instrument -> its budget account.
        before_update: Those that measure when the gradient is known.
        calling_again: Those of them that call the model again.
        after_update: Those that measure when the step has been taken.
        needs_after_update: What these need of the step.
        elements: How many elements of the samples' contributions are to be drawn.
    """

    def __init__(self, due: Sequence[Instrument]) -> None:
        self.needs = frozenset(need for instrument in due for need in instrument.needs)
        self.unprepared = frozenset(filter(needs_preparation, due))
        self.accounts = {instrument: account(instrument) for instrument in due}
        phases = {instrument: _phase(instrument) for instrument in due}
        before_update = [instrument for instrument in due if phases[instrument] == GRADIENT]
        self.before_update = [instrument for instrument in before_update if REPLAY not in instrument.needs]
        self.calling_again = [instrument for instrument in before_update if REPLAY in instrument.needs]
        self.after_update = [instrument for instrument in due if phases[instrument] in (UPDATE, LOSS)]
        self.elements = max((i.drawn_elements for i in due if PER_SAMPLE_ELEMENTS in i.needs), default=0)
        self.needs_after_update = frozenset(need for instrument in self.after_update for need in instrument.needs)


def _phase(instrument: Instrument) -> str:
    """Return the need that says when the instrument measures."""
    needs = instrument.needs
    if CURVATURE in needs and not needs_preparation(instrument):
        return CURVATURE
    if UPDATE in needs:
        return UPDATE
    return LOSS if all(need == LOSS for need in needs) else GRADIENT


@dataclass
class Probes:
    """What observes the training, made once and used by one tracked step after the other.

    Attributes:
        watchdog: What ends an instrument that hangs.
        first: Whether no step has been tracked yet.
        last_step: What is remembered of the last tracked step, for instruments that look at two steps in a row.
        sharded: Whether this process holds parts of the parameters only.
        start: Of these, what they were when training began.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizers: Sequence[Optimizer]
    clock: Callable[[], float] = time.perf_counter
    whole: WholeParameters = field(init=False)
    gradient: GradientProbe = field(init=False)
    per_sample: PerSampleProbe = field(init=False)
    activations: ActivationProbe = field(init=False)
    forward: ForwardProbe = field(init=False)
    wiring: WiringProbe = field(init=False)
    blocks: BlockProbe = field(init=False)
    data: DataProbe = field(init=False)
    probe_batch: ProbeBatch = field(init=False)
    sampled_curvature: SampledCurvature = field(init=False)
    generator: torch.Generator = field(init=False)
    own_generator: torch.Generator = field(init=False)
    curvature_memory: CurvatureMemory = field(init=False, default_factory=CurvatureMemory)
    plans: dict[tuple[Instrument, ...], Plan] = field(init=False, default_factory=dict)
    processes: Processes | None = None
    watchdog: Watchdog = field(default_factory=Watchdog)
    first: bool = field(init=False, default=True)
    sharded: bool = field(init=False)
    start: Mapping[str, Tensor] = field(init=False, default_factory=dict)
    local_gradient: LocalGradient = field(init=False)
    last_step: LastStep | None = field(init=False, default=None)
    gradient_at_start: GradientAtStart = field(init=False, default_factory=GradientAtStart)

    def __post_init__(self) -> None:
        self.whole = WholeParameters(self.model)
        self.gradient = GradientProbe(self.parameters, self.whole)
        self.sharded = any_is_sharded(self.parameters.values())
        if self.sharded and self.processes is not None:
            self.start = {name: part(parameter.detach()).clone() for name, parameter in self.parameters.items()}
        self.local_gradient = LocalGradient(self.parameters)
        trainable = {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}
        self.per_sample = PerSampleProbe(self.model, trainable)
        self.probe_batch = ProbeBatch(self.model, trainable)
        self.sampled_curvature = SampledCurvature(self.model, trainable)
        self.activations = ActivationProbe(self.model, self.clock)
        self.forward = ForwardProbe(self.model)
        self.data = DataProbe(self.model)
        self.blocks = BlockProbe(self.model)
        self.wiring = WiringProbe(self.model, self.parameters, self.optimizers)
        # Probe vectors must not come from the user's random numbers.
        device = next(iter(self.parameters.values())).device
        self.generator = torch.Generator(device=device).manual_seed(0)
        self.own_generator = self.generator
        if self.processes is not None:  # what is drawn for a process's own samples is nobody else's
            self.own_generator = torch.Generator(device=device).manual_seed(1 + self.processes.rank)

    def plan(self, due: Sequence[Instrument]) -> Plan:
        """Return what it comes to that these instruments are due."""
        key = tuple(due)
        if key not in self.plans:
            if len(self.plans) >= MOST_PLANS:  # a budget may make any number of them
                self.plans.clear()
            self.plans[key] = Plan(due)
        return self.plans[key]

    def stop(self) -> None:
        """Take all hooks away; idempotent."""
        self.per_sample.stop()
        self.sampled_curvature.stop()
        self.activations.stop()
        self.forward.stop()
        self.wiring.stop()
        self.data.stop()
        self.blocks.stop()
        self.probe_batch.stop()
        self.local_gradient.stop()
        self.whole.stop()


class TrackedStep:
    """One step on which instruments measure. Its methods are called in the order of the phases.

    Args:
        index: Number of the step.
        due: The instruments that are the reason to track it.
        companions: Instruments that come along since they cost nothing.
        probes: What observes the training.
        overhead: Share of training time that measuring has cost so far.
        expected_backwards: How many backward passes the last step had.
        taking_turns: Whether several optimizers step in turn, each after a backward pass of its own.
        switch_off: Called with an instrument that failed, and the error.

    Attributes:
        row: The readings.
        due: As it was given.
        spent: Seconds spent on it so far, inside the methods.
        company: Budget account -> seconds of the dearest one that measured curvature before it, and may have done its work.
    """

    def __init__(
        self,
        index: int,
        due: Sequence[Instrument],
        companions: Sequence[Instrument],
        probes: Probes,
        overhead: float,
        expected_backwards: int,
        taking_turns: bool,
        switch_off: Callable[[Instrument, Exception], None],
    ):
        self.row = Row(index, {})
        self.spent = 0.0
        self.company: dict[str, float] = {}
        self.due = due
        self._companions = companions
        self._probes = probes
        self._expected_backwards = expected_backwards
        self._accumulation = Accumulation(expected_backwards)
        self._taking_turns = taking_turns
        self._switch_off = switch_off
        self._costs: dict[str, float] = {}
        self._plan = probes.plan(due)
        self._needs = self._plan.needs
        self._unprepared = set(self._plan.unprepared)  # cannot measure on this step
        self._per_sample_obstacle: str | None = None
        self._loss_is_of_all = False  # of several processes
        self._sample_losses = SampleLosses()
        self._hook_registrations = tensor_hooks.registrations()
        self._step = Step(index, probes.parameters)
        self._step.optimizers = probes.optimizers
        self._step.overhead = overhead
        if self._needs & PER_SAMPLE and self._has_compiled_parts:
            self._per_sample_obstacle = _COMPILED
        elif self._needs & PER_SAMPLE:
            self._watch_samples()
        if ACTIVATIONS in self._needs:
            self._watch_activations()
        if {CURVATURE, REPLAY} & self._needs:
            probes.forward.start()
        if SAMPLED_CURVATURE in self._needs:
            probes.sampled_curvature.start(squares=SAMPLED_DIAGONAL in self._needs)
        if WIRING in self._needs:
            probes.wiring.start(hooks=not self._has_compiled_parts)
        if BLOCKS in self._needs:
            probes.blocks.start(hooks=not self._has_compiled_parts)
        if PROBE_BATCH in self._needs:
            probes.probe_batch.start()
        if DATA in self._needs:
            probes.data.start(hooks=not self._has_compiled_parts)

    def before_backward(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], earlier_backwards: int, scale: Tensor | None
    ) -> None:
        """The graph is alive.

        Args:
            tensors: Roots of the backward pass.
            gradients: What they are seeded with.
            earlier_backwards: How many backward passes the step has had already.
            scale: What a gradient scaler multiplied the loss with.
        """
        # Later its own passes have told the wrapper what it wants to know.
        left = first_pass_left(tensors) if self._probes.first else nullcontext()
        with self._timed(), left:
            if not earlier_backwards and may_reach(tensors, [*self._probes.parameters.values(), *self._probes.whole.found]):
                if tensors:
                    self._probes.forward.settle(tensors[0])
                if WIRING in self._needs:
                    self._probes.wiring.before_backward()
                if DATA in self._needs and len(tensors) == 1:
                    self._probes.data.before_backward(tensors[0])
                if ATTENTION in self._needs and len(tensors) == 1:
                    names = {id(parameter): name for name, parameter in self._probes.parameters.items()}
                    self._step.observed["attention"] = attentions(tensors[0], names)
                if REPLAY in self._needs:
                    self._remember_call(tensors, gradients, scale)
                self._measure_curvature(tensors, gradients, scale)
            elif CURVATURE in self._needs and tensors:
                self._accumulation.follow(tensors[0])
            if self._needs & PER_SAMPLE and self._per_sample_obstacle is None:
                self._per_sample_obstacle = self._find_per_sample_obstacle()
                if self._per_sample_obstacle is None:
                    if SAMPLE_LOSSES in self._needs:
                        with torch.enable_grad(), self._probes.per_sample.paused():
                            loss = objective(tensors, gradients, detach=False)
                        self._sample_losses.before_backward(loss, self._probes.per_sample.outputs())
                    self._probes.per_sample.backward_begins()

    def after_backward(self) -> None:
        """The gradients have been accumulated, if the backward pass was one of this model."""
        if self._needs & PER_SAMPLE and self._per_sample_obstacle is None:
            self._probes.per_sample.backward_ends()

    def keep_gradient(self) -> None:
        """The backward pass was one of this model: note the raw gradient."""
        with self._timed():
            self._probes.gradient.record()

    def keep_weights(self) -> None:
        """The weights are about to change."""
        if {UPDATE, LAST_STEP} & self._needs:
            with self._timed():
                weights = packed(self._detached())
                known = self._step.observed.get("weights_before")
                if isinstance(known, Sharded):
                    known.parts = weights
                else:
                    self._step.observed["weights_before"] = Sharded(weights) if self._probes.sharded else weights

    def discard(self) -> None:
        """Forget the backward passes so far: their gradient was thrown away."""
        self.row = Row(self.row.step, {})
        weights = self._step.observed.get("weights_before")  # an optimizer with a closure has begun its update already
        self._step.forget()
        if weights is not None:
            self._step.observed["weights_before"] = weights
        self._probes.per_sample.forget_backwards()
        self._sample_losses.forget()
        self._probes.activations.forget_backwards()

    def measure_gradient(self, optimizer: Optimizer, scale: Tensor | None, loss: Tensor | float | None) -> None:
        """The gradient is complete, and ``optimizer`` is about to use it."""
        if "applied_gradient" in self._step.observed:
            return
        with self._timed():
            self._read_learning_rates()
            self._note_loss(loss)
            self._step.loss_scale = scale
            raw, applied, changed = self._unscaled_gradients(optimizer, scale)
            if self._taking_turns:  # the other optimizers' gradients are leftovers
                own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
                names = {name for name, parameter in self._probes.parameters.items() if id(parameter) in own}
                raw = None if raw is None else {name: value for name, value in raw.items() if name in names}
                applied = {name: value for name, value in applied.items() if name in names}
            step = self._step
            if self._probes.sharded:
                raw, applied = None if raw is None else Sharded(raw), Sharded(applied)
                weights = step.observed.get("weights_before", self._detached())
                step.observed["weights_before"] = weights if isinstance(weights, Sharded) else Sharded(weights)
            if not applied:
                step.reasons["gradient"] = step.reasons["applied_gradient"] = "no parameter has a gradient"
            else:
                step.observed.update(applied_gradient=applied, gradient_was_changed=changed)
                if raw is None:
                    step.reasons["gradient"] = _CHANGED_FOR_THE_FIRST_TIME
                else:
                    step.observed["gradient"] = raw
            if LAST_STEP in self._needs:
                self._recall_last_step()
            if self._needs & PER_SAMPLE:
                self._observe_samples(raw, scale)
            if self._probes.processes is not None:
                self._share(self._probes.processes, raw)
            if "last_step" in step.observed and "per_sample" in step.observed:
                self._observe_slopes(step.observed["per_sample"])
            if ACTIVATIONS in self._needs:
                self._observe_activations()
            if PROBE_BATCH in self._needs:
                self._step.observed["probe_batch"] = self._probes.probe_batch
            if BLOCKS in self._needs:
                obstacle = self._probes.blocks.obstacle
                if obstacle:
                    self._step.reasons["blocks"] = obstacle
                else:
                    self._step.observed["blocks"] = self._probes.blocks.found()
            if DATA in self._needs:
                self._step.observed["data"] = self._probes.data.data()
            if WIRING in self._needs:
                self._step.observed["wiring"] = self._probes.wiring.wiring(optimizer)
            self._measure(self._plan.before_update)
            if self._plan.calling_again:
                self._forget_samples()
                self._measure(self._plan.calling_again)

    def _forget_samples(self) -> None:
        """Let go of what the samples' statistics came from: it is as large as the activations, and so is what comes next."""
        if self._step.observed.pop("per_sample_gradients", None) is not None:
            self._step.reasons["per_sample_gradients"] = "they are gone once the model is called again"
        self._probes.per_sample.stop()

    def finish(self, loss: Tensor | float | None, backwards: int, training_seconds: float) -> Row:
        """The weights have changed: measure what is left and return the readings."""
        with self._timed():
            step = self._step
            self._probes.first = False
            self._probes.stop()
            step.training_seconds = training_seconds
            step.learning_rates = learning_rates(self._probes.optimizers)
            self._note_loss(loss)
            before = step.observed.get("weights_before")
            if step.observed.pop("per_sample_gradients", None) is not None:  # a rule may need the weights they came from
                step.reasons["per_sample_gradients"] = "they are gone once the weights have changed"
            self._let_go()
            if isinstance(before, Sharded):
                self._add_up_update(before)
            elif before is not None:
                step.observed["update"] = partial(difference, self._detached(), before)
                if LAST_STEP in self._needs:  # it will be asked for in any case, and its norms are short work then
                    _ = step.update
            if backwards > 1 and step.observed.pop("replay", None) is not None:
                step.reasons["replay"] = several_backwards(backwards)
            self._measure(self._plan.after_update)
            if LAST_STEP in self._needs:
                self._probes.last_step = self._remember()
            self._judge_curvature(backwards)
            self._measure(self._companions)
            return self.row

    def _let_go(self) -> None:
        """Forget what is as large as the weights and that nobody asks for any more, before the update, as large, is made."""
        needs, step = self._plan.needs_after_update, self._step
        if not needs & PER_SAMPLE and step.observed.pop("per_sample", None) is not None:
            step.reasons["per_sample"] = "nobody who measures after the update needs it"
        if LAST_STEP in self._needs and LAST_STEP not in needs:
            self._probes.last_step = None
            if step.observed.pop("last_step", None) is not None:
                step.reasons["last_step"] = "nobody who measures after the update needs it"

    def costs(self) -> dict[str, float]:
        """Return the seconds spent, by budget account.

        What no instrument answers for by itself (probes, log) is shared by those that were due.
        """
        accounts = set(self._plan.accounts.values())
        own = sum(seconds for name, seconds in self._costs.items() if name in accounts)
        shared = max(self.spent - own, 0.0) / len(accounts)
        return {name: self._costs.get(name, 0.0) + shared for name in accounts}

    def found_nothing(self) -> list[Instrument]:
        """Return the instruments that are for parts of a net which this one does not have, or not any more."""
        missing = set()
        if BLOCKS in self._needs and self._probes.blocks.obstacle:
            missing.add(BLOCKS)
        attention = self._step.observed.get("attention")
        if attention is not None and not attention.entropy:
            missing.add(ATTENTION)
        return [instrument for instrument in self.due if missing & set(instrument.needs)] if missing else []

    def _detached(self) -> dict[str, Tensor]:
        return {name: part(parameter.detach()) for name, parameter in self._probes.parameters.items()}

    # Several processes

    def _share(self, processes: Processes, gradient: Mapping[str, Tensor] | None) -> None:
        """From what this process has seen to what all have seen together."""
        step = self._step
        has = step.observed
        parts = {kind: has[kind] for kind in SQUARES if isinstance(has.get(kind), Sharded)}
        squares = {kind: self._squares(value.parts) for kind, value in parts.items()}
        wanted = "gradient" in parts and self._needs & PER_SAMPLE
        projections = self._projections(parts["gradient"].parts) if wanted else None
        own = Own(has.get("loss"), has.pop("per_sample", None), has.pop("sample_losses", None), squares, projections)
        found = processes.share(step.index, own, gradient or {})
        if found.loss is not None:  # where they have parted, each goes on with its own
            has["loss"] = found.loss
            self._loss_is_of_all = True
        for name, value in (("per_sample", found.statistics), ("sample_losses", found.sample_losses)):
            if value is not None:
                has[name] = value
            elif name not in step.reasons:
                step.reasons[name] = found.reasons[{"per_sample": "statistics"}.get(name, name)]
        for kind, value in parts.items():
            value.tell(self._norms(value, found.squares.get(kind)), found.reasons.get(kind, ""))

    def _squares(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the squared norm of each part, divided by how many hold the same: they add up to that of the whole."""
        parameters, processes = self._probes.parameters, self._probes.processes
        assert processes is not None
        norms = parameter_norms(parts)
        nothing = torch.zeros((), device=next(iter(norms.values())).device)
        squares = [
            norms[name].square() / copies(parameter, processes.size) if name in norms else nothing
            for name, parameter in sorted(parameters.items())
        ]
        return torch.stack(squares)

    def _projections(self, parts: Mapping[str, Tensor]) -> Tensor | None:
        """Return what the parts of the gradient add to its inner product with the direction that is checked along."""
        processes, found = self._probes.processes, []
        assert processes is not None
        for name, parameter in sorted(self._probes.parameters.items()):
            place = held(parameter)
            if place is None:
                return None
            if name in parts:
                product = along_direction(parts[name], part_of_direction(check_direction(parameter), parameter.shape, *place))
                found.append(product.double() / copies(parameter, processes.size))
            else:
                found.append(torch.zeros((), dtype=torch.float64, device=parameter.device))
        return torch.stack(found)

    def _norms(self, parts: Sharded, squares: Tensor | None) -> dict[str, Tensor] | None:
        if squares is None:
            return None
        norms = dict(zip(sorted(self._probes.parameters), squares.sqrt(), strict=True))
        return {name: norms[name] for name in parts}

    def _add_up_update(self, before: Sharded) -> None:
        """The step that was taken, of sharded parameters: its norms, and how far they have come."""
        step, processes, squares = self._step, self._probes.processes, None
        if UPDATE in self._needs:
            update = step.observed["update"] = Sharded(difference(self._detached(), before.parts))
            if processes is not None:
                way = difference(before.parts, self._probes.start)
                squares = torch.stack([self._squares(update.parts), self._squares(way)])
        if processes is not None:
            found = processes.add_up(step.index, squares)
            if found is not None and squares is not None:
                update.tell(self._norms(update, found[0]))
                before.tell_distance(found[1].sum().sqrt())
            elif squares is not None:
                update.tell(None, processes.gone or "one of the processes does not have it")

    # Two steps in a row

    def _recall_last_step(self) -> None:
        step, last = self._step, self._probes.last_step
        if self._taking_turns:
            step.reasons["last_step"] = _TAKE_TURNS
        elif last is None or last.index != step.index - 1:
            step.reasons["last_step"] = "the step before was not measured"
        elif last.versions != versions(self._probes.parameters):
            step.reasons["last_step"] = "the weights were changed between the two steps"
        else:
            step.observed["last_step"] = last
        kept = self._probes.gradient_at_start.keep(step.observed.get("gradient", {}))
        if kept:
            step.observed["gradient"] = kept

    def _remember(self) -> LastStep | None:
        loss, update = self._step.observed.get("loss"), self._step.observed.get("update")
        start = self._probes.gradient_at_start.unchanged()
        if loss is None or update is None or start is None or self._taking_turns:
            return None
        slope = inner_product(update, start)
        losses = self._step.observed.get("sample_losses")
        return LastStep(self._step.index, update, loss, slope, versions(self._probes.parameters), losses)

    # Activations

    def _watch_activations(self) -> None:
        probe = self._probes.activations
        if self._has_compiled_parts:
            probe.failure = _COMPILED
        else:
            probe.start(samples=ACTIVATION_SAMPLES in self._needs)

    def _observe_activations(self) -> None:
        probe = self._probes.activations
        for name, seconds in ((ACTIVATIONS, probe.seconds), (f"{ACTIVATION_SAMPLES}+{ACTIVATIONS}", probe.sampling_seconds)):
            self.spent += seconds  # its hook ran in the user's forward
            self._costs[name] = self._costs.get(name, 0.0) + seconds
        if probe.failure:
            self._step.reasons["activations"] = probe.failure
        else:
            self._step.observed["activations"] = probe.activations()

    # Curvature

    def _measure_curvature(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], scale: float | Tensor | None
    ) -> None:
        due = [instrument for instrument in self.due if CURVATURE in instrument.needs]
        obstacle = self._find_curvature_obstacle()
        together = None
        if self._probes.processes is not None:
            due, together = self._agree_on_curvature(self._probes.processes, due, obstacle)
        elif obstacle is not None:
            self._no_curvature(due, obstacle)
            due = []
        if not due:
            return
        self._read_learning_rates()
        probes = self._probes
        self._accumulation.begin(probes.forward.call)
        scale = self._accumulation.scale(scale)
        parameters = {name: parameter for name, parameter in probes.parameters.items() if parameter.requires_grad}
        with torch.enable_grad(), probes.per_sample.paused():
            loss = objective(tensors, gradients, detach=False)
            self._note_loss(loss.detach() if scale is None else loss.detach() / scale)
            curvature = self._step.observed["curvature"] = Curvature(
                loss,
                parameters,
                probes.generator,
                model=probes.model,
                forward=probes.forward.call,
                scale=scale,
                memory=probes.curvature_memory,
                sampler=self._sampler(loss, scale),
                together=together,
            )
            with curvature.undisturbed():
                self._measure([instrument for instrument in due if not needs_preparation(instrument)], gradients=True)
                for instrument in filter(needs_preparation, due):
                    self._attempt(instrument, self._prepare)
        if together is not None:
            together.end()
            if together.parted:  # at the next step all begin anew
                probes.generator.manual_seed(self._step.index)
                probes.curvature_memory = CurvatureMemory()
        del curvature, self._step.observed["curvature"]  # it must not keep the graph alive
        probes.sampled_curvature.stop()
        probes.forward.stop()

    def _agree_on_curvature(
        self, processes: Processes, due: list[Instrument], obstacle: str | None
    ) -> tuple[list[Instrument], SharedCurvature | None]:
        """Return which of the instruments all processes want to measure now, and what they make it with."""
        agreed = processes.begin_curvature(self._step.index, () if obstacle else [instrument.name for instrument in due])
        everywhere = [instrument for instrument in due if agreed and instrument.name in agreed]
        left = [instrument for instrument in due if instrument not in everywhere]
        self._no_curvature(left, obstacle or processes.gone or "one of the processes does not measure it on this step")
        return everywhere, SharedCurvature(processes, self._step.index) if agreed else None

    def _no_curvature(self, due: Sequence[Instrument], reason: str) -> None:
        self._not_measured(due, reason)
        self._unprepared.update(due)

    def _sampler(self, loss: Tensor, scale: float | Tensor | None) -> Callable[[], GaussNewtonSample] | None:
        probes = self._probes
        call = probes.forward.call
        if SAMPLED_CURVATURE not in self._needs or call is None:
            return None
        return lambda: probes.sampled_curvature.draw(loss, call, probes.own_generator, scale)

    def _remember_call(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], scale: Tensor | None) -> None:
        """Remember how the loss came about, for what is measured once the step is known."""
        obstacle = self._find_curvature_obstacle()
        if self._expected_backwards > 1:
            obstacle = several_backwards(self._expected_backwards)
        call = self._probes.forward.call
        if obstacle is None and call is None:
            obstacle = "the call of the model that the loss came from was not seen"
        if obstacle is None and call is not None:
            try:
                with torch.enable_grad():
                    loss = objective(tensors, gradients, detach=False)
                self._step.observed["replay"] = Replay(loss, call, scale)
            except NotMeasured as reason:
                obstacle = str(reason)
            except Exception as error:
                obstacle = f"the loss could not be taken apart ({type(error).__name__}: {error})"
        if obstacle is not None:
            self._step.reasons["replay"] = obstacle

    def _find_curvature_obstacle(self) -> str | None:
        if self._taking_turns:
            return _TAKE_TURNS
        return _TENSOR_HOOKS if self._has_tensor_hooks() else None

    def _judge_curvature(self, backwards: int) -> None:
        """Only now it shows whether the first loss spoke for the whole objective of the step."""
        due = [instrument for instrument in self.due if CURVATURE in instrument.needs]
        obstacle, note = self._accumulation.obstacle(backwards), self._accumulation.note
        if not due or (obstacle is None and note is None):
            return
        judged = {name for instrument in due for name in instrument.reading_names()}
        for name in [name for name in self.row.values if name.partition("/")[0] in judged]:
            if obstacle is None:
                how = self.row.how.setdefault(name, {})
                how["note"] = "; ".join(filter(None, [note, how.get("note")]))
            else:
                del self.row.values[name]
                self.row.how.pop(name, None)
        if obstacle is not None:
            self._not_measured(due, obstacle)

    # Gradient and samples

    def _unscaled_gradients(
        self, optimizer: Optimizer, scale: Tensor | None
    ) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor], bool]:
        raw, applied, changed = self._probes.gradient.gradients()
        if scale is None:
            return raw, applied, changed
        if not loss_scale.is_unscaled(optimizer):
            applied = {name: value / scale for name, value in applied.items()}
        if not changed:
            raw = applied
        elif raw is not None:  # the copies were made before anything was unscaled
            raw = {name: value / scale for name, value in raw.items()}
        return raw, applied, changed

    def _watch_samples(self) -> None:
        """What is announced here is measured layer by layer; the rest is let go."""
        last = self._probes.last_step
        follows = LAST_STEP in self._needs and last is not None and last.index == self._step.index - 1
        self._probes.per_sample.start(
            PER_SAMPLE_PRODUCTS in self._needs,
            PER_SAMPLE_SQUARES in self._needs,
            PER_SAMPLE_GRADIENTS in self._needs,
            directions={"last_step": last.update} if follows and last is not None else None,
            # of the first step nobody knows, and of several processes each learns the gradient of all when its own pass is over
            one_backward=self._expected_backwards == 1 and self._step.index > 0 and self._probes.processes is None,
            elements=self._plan.elements,
            seed=self._step.index,
            some=SLOPES if self._probes.processes is None else None,
        )
        if self._probes.processes is not None and not self._probes.sharded:
            self._probes.local_gradient.start()

    def _observe_samples(self, gradient: Mapping[str, Tensor] | None, scale: Tensor | None) -> None:
        if self._per_sample_obstacle is not None:
            self._no_samples(self._per_sample_obstacle)
            self._step.reasons["sample_losses"] = self._step.reasons["micro_batches"] = self._per_sample_obstacle
            return
        in_hooks = self._probes.per_sample.seconds  # in the user's forward and backward
        self.spent += in_hooks
        start = self._probes.clock() - in_hooks
        self._count_samples()
        if SAMPLE_LOSSES in self._needs:
            self._observe_losses(scale)
        try:
            if self._probes.sharded:
                gradient = None  # what the contributions are checked against is put together from the parts
            elif scale is not None and gradient is not None:
                # In the units that went backwards, since the contributions are checked against the gradient.
                gradient = {name: value * scale for name, value in gradient.items()}
            with torch.no_grad():
                statistics = self._probes.per_sample.statistics(
                    PER_SAMPLE_PRODUCTS in self._needs,
                    gradient,
                    None if self._probes.processes is None or self._probes.sharded else self._probes.local_gradient.gradient,
                    squares=PER_SAMPLE_SQUARES in self._needs,
                )
                if scale is not None:
                    statistics.unscale(scale)
                self._step.observed["per_sample"] = statistics
                if PER_SAMPLE_GRADIENTS in self._needs:
                    self._step.observed["per_sample_gradients"] = self._probes.per_sample.gradients(statistics, scale)
        except NotMeasured as reason:
            self._no_samples(str(reason))
        except Exception as error:
            self._no_samples(f"the per-sample engine failed ({type(error).__name__}: {error})")
        self._costs["per_sample"] = self._costs.get("per_sample", 0.0) + self._probes.clock() - start

    def _no_samples(self, reason: str) -> None:
        self._step.reasons.update(dict.fromkeys(("per_sample", "per_sample_gradients"), reason))

    def _count_samples(self) -> None:
        try:
            self._step.observed["micro_batches"] = self._probes.per_sample.micro_batches()
        except NotMeasured as reason:
            self._step.reasons["micro_batches"] = str(reason)

    def _observe_losses(self, scale: Tensor | None) -> None:
        try:
            losses = self._sample_losses.by_sample(self._probes.per_sample.micro_batches())
        except NotMeasured as reason:
            self._step.reasons["sample_losses"] = str(reason)
        else:
            self._step.observed["sample_losses"] = losses if scale is None else losses / scale

    def _observe_slopes(self, statistics: PerSampleStatistics) -> None:
        if statistics.not_covered:
            self._step.reasons["per_sample_slopes"] = "the per-sample gradients of some parameters are not covered"
        elif "last_step" not in statistics.along:
            self._step.reasons["per_sample_slopes"] = "one of the processes does not know them"
        else:
            self._step.observed["per_sample_slopes"] = noise.total(statistics.along["last_step"])

    def _find_per_sample_obstacle(self) -> str | None:
        """Return why the per-sample engine, which may take passes of its own over the user's graph, must not run on this step."""
        if any(parameter.is_complex() for parameter in self._probes.parameters.values()):
            return "the model has complex parameters"
        if self._taking_turns:
            return _TAKE_TURNS
        if self._has_tensor_hooks() and not self._probes.sharded:  # there are FSDP's own, and we take no passes
            return _TENSOR_HOOKS
        for module in self._probes.model.modules():
            if module._backward_hooks or module._backward_pre_hooks:
                name = next(name for name, other in self._probes.model.named_modules() if other is module)
                return f"the module {name or type(module).__name__!r} has a backward hook that would fire a second time"
        return None

    @cached_property
    def _has_compiled_parts(self) -> bool:
        return has_compiled_parts(self._probes.model)

    def _has_tensor_hooks(self) -> bool:
        return tensor_hooks.registrations() != self._hook_registrations

    # All phases

    def _measure(self, instruments: Sequence[Instrument], gradients: bool = False) -> None:
        """Have each instrument measure; what fails is switched off."""
        with torch.set_grad_enabled(gradients):
            for instrument in instruments:
                if instrument not in self._unprepared:
                    self._attempt(instrument, self._read)

    def _read(self, instrument: Instrument) -> None:
        self.row.put(instrument.measure(self._step))

    def _prepare(self, instrument: Instrument) -> None:
        """Have an instrument take what it needs of the curvature while the graph is alive."""
        self._unprepared.add(instrument)
        instrument.prepare(self._step)
        self._unprepared.remove(instrument)

    def _attempt(self, instrument: Instrument, work: Callable[[Instrument], None]) -> None:
        name = self._plan.accounts.get(instrument)
        if name is not None and CURVATURE in instrument.needs:
            before = [self._costs[other] for other in self.company]
            self.company.setdefault(name, max(before, default=0.0))
        start = self._probes.clock()
        try:
            self._probes.watchdog.call(instrument, instrument.name, partial(work, instrument))
        except NotMeasured as obstacle:
            self._not_measured([instrument], str(obstacle))
        except Exception as error:
            reason = f"the instrument failed at step {self.row.step} and was switched off ({type(error).__name__}: {error})"
            self._not_measured([instrument], reason)
            self._switch_off(instrument, error)
        if name is not None:
            self._costs[name] = self._costs.get(name, 0.0) + self._probes.clock() - start

    def _not_measured(self, instruments: Sequence[Instrument], reason: str) -> None:
        self.row.reasons.update({name: reason for instrument in instruments for name in instrument.reading_names()})

    def _note_loss(self, loss: Tensor | float | None) -> None:
        if loss is None:
            self._step.reasons["loss"] = "no backward() was seen on this step"
        elif self._probes.processes is None:
            self._step.observed["loss"] = loss
        elif not self._loss_is_of_all:
            self._step.observed["loss"] = torch.as_tensor(loss)

    def _read_learning_rates(self) -> None:
        self._step.learning_rates = learning_rates(self._probes.optimizers)

    def _pause(self, paused: bool) -> None:
        probes = self._probes
        probes.activations.paused = probes.wiring.paused = probes.data.paused = probes.blocks.paused = paused

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Work of ours: it is timed, and a pass forward or backward inside is none of the user's."""
        start = self._probes.clock()
        # The user's anomaly mode would warn of a pass of ours that is not possible, as if it were theirs.
        quiet = torch.autograd.set_detect_anomaly(False) if torch.is_anomaly_enabled() else nullcontext()
        with _ONE_AT_A_TIME, quiet:
            self._pause(True)
            try:
                yield
            finally:
                self._pause(False)
                self.spent += self._probes.clock() - start
