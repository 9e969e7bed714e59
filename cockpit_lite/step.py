"""Step: what one training step offers an instrument.

What was not observed on this step raises :class:`~cockpit_lite.errors.NotMeasured` with the reason when an instrument
reaches for it, so an instrument never has to ask first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite.errors import NotMeasured
from cockpit_lite.norms import difference_norms, parameter_norms
from cockpit_lite.probes.parameters import parameter_learning_rates

if TYPE_CHECKING:
    from cockpit_lite.curvature import Curvature
    from cockpit_lite.probes.activations import Activations
    from cockpit_lite.probes.attention import Attention
    from cockpit_lite.probes.blocks import Block
    from cockpit_lite.probes.data import Data
    from cockpit_lite.probes.last_step import LastStep
    from cockpit_lite.probes.per_sample import PerSampleGradients, PerSampleStatistics
    from cockpit_lite.probes.per_sample.probe import MicroBatch
    from cockpit_lite.probes.probe_batch import ProbeBatch
    from cockpit_lite.probes.replay import Replay
    from cockpit_lite.probes.wiring import Wiring


Value = TypeVar("Value")


class _Offer:
    """An attribute that raises NotMeasured with the step's reason until it has been observed; a partial is called when asked."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, step: Step | None, owner: type) -> Any:
        if step is None:
            return self
        try:
            value = step.observed[self.name]
        except KeyError:
            raise NotMeasured(step.reasons.get(self.name, f"this step offers no {self.name.replace('_', ' ')}")) from None
        if isinstance(value, partial):
            value = step.observed[self.name] = value()
        return value


class Step:
    """One optimizer step, from the forward pass to the update.

    Attributes:
        index: Number of the step, from 0.
        parameters: All watched parameters by name, those that require no gradient included.
        optimizers: The watched optimizers.
        learning_rates: Learning rate of every parameter group of every optimizer, in order.
        loss_scale: What a gradient scaler multiplied the loss with, a scalar tensor; None without one.
        training_seconds: What training took for the last step, measuring taken out.
        overhead: Share of training time that measuring has cost so far.
        loss: The mini-batch objective as the user computed it: the sum over the step's backward passes, a scalar tensor.
            For an optimizer with a closure that of its first evaluation, at ``weights_before``.
        gradient: Mini-batch gradient by parameter name, before clipping. Parameters without a gradient are missing.
        applied_gradient: The gradient as the optimizer found it, after clipping.
        gradient_was_changed: Whether the two may differ.
        weights_before: Parameters before the update, by name.
        update: ``theta_{t+1} - theta_t``, the step that was really taken, by name.
        per_sample: Per-sample statistics, see :class:`~cockpit_lite.probes.per_sample.PerSampleStatistics`.
        per_sample_gradients: The samples' contributions themselves, a layer at a time, until the weights change; see
            :class:`~cockpit_lite.probes.per_sample.PerSampleGradients`.
        probe_batch: Some samples that are kept for the run, see :class:`~cockpit_lite.probes.probe_batch.ProbeBatch`.
        per_sample_slopes: ``d'c_n``, what a sample contributes to the slope of the loss along the step before; of a batch of 64
            and more only of some samples, evenly spread, 32 at least.
        sample_losses: What every sample contributes to ``loss``, shape (N,), in the order of the per-sample statistics.
        last_step: The step before, see :class:`~cockpit_lite.probes.last_step.LastStep`.
        activations: Statistics of the layers' outputs, see :class:`~cockpit_lite.probes.activations.Activations`.
        attention: The attentions of the step, see :class:`~cockpit_lite.probes.attention.Attention`.
        blocks: The signal before and behind each block, by name, see :class:`~cockpit_lite.probes.blocks.Block`.
        data: What the step is trained on, see :class:`~cockpit_lite.probes.data.Data`.
        wiring: How the step is wired, see :class:`~cockpit_lite.probes.wiring.Wiring`.
        curvature: Hessian products of the mini-batch loss, see :class:`~cockpit_lite.curvature.Curvature`.
        micro_batches: The parts that the batch came in, see :class:`~cockpit_lite.probes.per_sample.probe.MicroBatch`; where
            anything per sample is observed.
        replay: The same batch at other weights, see :class:`~cockpit_lite.probes.replay.Replay`. After the update.
        observed: What was observed so far, by the names above.
        reasons: Why something was not observed: the text after "not measured, because".
    """

    loss: Tensor = _Offer()  # type: ignore[assignment]
    gradient: Mapping[str, Tensor] = _Offer()  # type: ignore[assignment]
    applied_gradient: Mapping[str, Tensor] = _Offer()  # type: ignore[assignment]
    gradient_was_changed: bool = _Offer()  # type: ignore[assignment]
    weights_before: Mapping[str, Tensor] = _Offer()  # type: ignore[assignment]
    update: Mapping[str, Tensor] = _Offer()  # type: ignore[assignment]
    per_sample: PerSampleStatistics = _Offer()  # type: ignore[assignment]
    per_sample_gradients: PerSampleGradients = _Offer()  # type: ignore[assignment]
    probe_batch: ProbeBatch = _Offer()  # type: ignore[assignment]
    per_sample_slopes: Tensor = _Offer()  # type: ignore[assignment]
    sample_losses: Tensor = _Offer()  # type: ignore[assignment]
    last_step: LastStep = _Offer()  # type: ignore[assignment]
    activations: Activations = _Offer()  # type: ignore[assignment]
    attention: Attention = _Offer()  # type: ignore[assignment]
    blocks: Mapping[str, Block] = _Offer()  # type: ignore[assignment]
    data: Data = _Offer()  # type: ignore[assignment]
    wiring: Wiring = _Offer()  # type: ignore[assignment]
    curvature: Curvature = _Offer()  # type: ignore[assignment]
    micro_batches: Sequence[MicroBatch] = _Offer()  # type: ignore[assignment]
    replay: Replay = _Offer()  # type: ignore[assignment]

    def __init__(self, index: int, parameters: Mapping[str, nn.Parameter]):
        self.index = index
        self.parameters = parameters
        self.optimizers: Sequence[Optimizer] = ()
        self.learning_rates: list[float] = []
        self.loss_scale: Tensor | None = None
        self.training_seconds = 0.0
        self.overhead = 0.0
        self.observed: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self._made: dict[Callable[[Step], Any], Any] = {}

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group."""
        if not self.learning_rates:
            raise NotMeasured("the optimizer has no learning rate")
        return self.learning_rates[0]

    @cached_property
    def parameter_learning_rates(self) -> Mapping[str, float]:
        """Learning rate by parameter name; parameters in no optimizer are missing."""
        return parameter_learning_rates(self.parameters, self.optimizers)

    def once(self, make: Callable[[Step], Value]) -> Value:
        """Return ``make(step)``, called once however many instruments ask: what several need should cost once."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    @property
    def gradient_norms(self) -> Mapping[str, Tensor]:
        """Norm of the gradient by parameter, scalar tensors."""
        return self.once(_gradient_norms)

    @property
    def applied_norms(self) -> Mapping[str, Tensor]:
        """Norm of the gradient that the optimizer used by parameter, scalar tensors."""
        unchanged = "gradient" in self.observed and not self.gradient_was_changed
        return self.gradient_norms if unchanged else self.once(_applied_norms)

    @property
    def weight_norms(self) -> Mapping[str, Tensor]:
        """Norm of the weights before the update by parameter, scalar tensors."""
        return self.once(_weight_norms)

    @property
    def update_norms(self) -> Mapping[str, Tensor]:
        """Norm of the update by parameter, scalar tensors."""
        return self.once(_update_norms)

    def forget(self) -> None:
        """Forget what was observed: the user has thrown the gradient away."""
        self.observed.clear()
        self.reasons.clear()
        self._made.clear()


def _gradient_norms(step: Step) -> Mapping[str, Tensor]:
    return parameter_norms(step.gradient)


def _applied_norms(step: Step) -> Mapping[str, Tensor]:
    return parameter_norms(step.applied_gradient)


def _weight_norms(step: Step) -> Mapping[str, Tensor]:
    # Whoever asks before the update finds them in the parameters themselves.
    before = step.observed.get("weights_before")
    if before is not None:
        return parameter_norms(before)
    return parameter_norms({name: weights.detach() for name, weights in step.parameters.items()})


def _update_norms(step: Step) -> Mapping[str, Tensor]:
    update = step.observed.get("update")
    if isinstance(update, partial):  # nobody has asked for the update itself, which is as large as the weights
        return difference_norms(*update.args)
    return parameter_norms(step.update)
