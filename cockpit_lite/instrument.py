"""The contract of an instrument: what it needs of a training step, and what it returns.

A new instrument is one file with a pure function (tensors in, numbers out) and a small class::

    class GradientNorm(Instrument):
        name = "grad_norm"
        needs = (GRADIENT,)

        def measure(self, step):
            return {"grad_norm": global_norm(step.gradient.values())}

See CONTRIBUTING.md for the whole recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.watchdog import PATIENCE

if TYPE_CHECKING:
    from cockpit_lite.step import Step

# What an instrument can ask a step for. Each is observed only on steps where a due instrument asks for it.
LOSS = "loss"
GRADIENT = "gradient"
UPDATE = "update"
LAST_STEP = "last_step"
PER_SAMPLE_NORMS = "per_sample_norms"
PER_SAMPLE_PRODUCTS = "per_sample_products"
PER_SAMPLE_SQUARES = "per_sample_squares"
PER_SAMPLE_GRADIENTS = "per_sample_gradients"
PER_SAMPLE_ELEMENTS = "per_sample_elements"
PROBE_BATCH = "probe_batch"
SAMPLE_LOSSES = "sample_losses"
ACTIVATIONS = "activations"
ACTIVATION_SAMPLES = "activation_samples"
CURVATURE = "curvature"
SAMPLED_CURVATURE = "sampled_curvature"
SAMPLED_DIAGONAL = "sampled_diagonal"
REPLAY = "replay"
WIRING = "wiring"
DATA = "data"
ATTENTION = "attention"
BLOCKS = "blocks"

#: need -> what it makes available on the :class:`~cockpit_lite.step.Step`
NEEDS: dict[str, str] = {
    LOSS: "step.loss, step.learning_rates: always there, costs nothing",
    GRADIENT: "step.gradient, step.applied_gradient: the mini-batch gradient before and after clipping",
    UPDATE: "step.weights_before, step.update: the step that was really taken",
    LAST_STEP: "step.last_step: where the step before began; an instrument that asks for it is measured on two steps in a row. "
    "With per-sample norms also step.per_sample_slopes: the samples' contributions along that step",
    PER_SAMPLE_NORMS: "step.per_sample.squared_norms: squared norm of every sample's contribution, by parameter",
    PER_SAMPLE_PRODUCTS: "step.per_sample.products: inner product of every sample's contribution with the gradient, by parameter",
    PER_SAMPLE_SQUARES: "step.per_sample.sum_of_squares: sum over the samples of their contribution squared, by parameter",
    PER_SAMPLE_GRADIENTS: "step.per_sample_gradients: the contributions themselves, a layer at a time; gone after the update",
    PER_SAMPLE_ELEMENTS: "step.per_sample.elements: some elements of the contributions, drawn anew at every step; an "
    "instrument's ``drawn_elements`` says how many",
    SAMPLE_LOSSES: "step.sample_losses: what every sample contributes to the loss, where it is a loss that is known",
    PROBE_BATCH: "step.probe_batch: some samples of the first measured step, and the tangent kernel on them",
    ACTIVATIONS: "step.activations: what the layers put out: moments, peaks of units, saturation",
    ACTIVATION_SAMPLES: "step.activations.samples: some of the outputs of every layer with a weight matrix; beside 'activations'",
    DATA: "step.data: the batch, the model's output, and what the loss function was given",
    ATTENTION: "step.attention: entropy of the attention weights and size of the attention logits, read off the graph",
    BLOCKS: "step.blocks: the variance of the signal before and behind each of the model's repeated blocks, on the first steps",
    WIRING: "step.wiring: which parameters the optimizers hold and the gradient reaches, and the modes of the modules",
    CURVATURE: "step.curvature: products with the Hessian of the mini-batch loss, and its gradient",
    SAMPLED_CURVATURE: "with CURVATURE: step.curvature.gauss_newton_trace(), from sampled labels",
    SAMPLED_DIAGONAL: "beside SAMPLED_CURVATURE: step.curvature.gauss_newton_diagonal(), of the same labels",
    REPLAY: "step.replay: the loss of the same batch at other weights, and its slope and curvature along a direction",
}


@dataclass(frozen=True)
class Reading:
    """A value that says how it was got; instruments return plain tensors or floats where the value is exact.

    Attributes:
        value: A number or a tensor (scalar, or small array).
        kind: One of :data:`cockpit_lite.run_log.KINDS`.
        standard_error: Of an estimate, in the unit of the value.
        residual: Of an iterative method, in the unit of the value.
        note: Anything else a reader should know, in a few words.
        on_host: What makes the reading of ``value`` once that is on the host, a number or a nested list there: for formulas that
            depend on the numbers, which the training must not wait for, or that are long for single numbers. It returns a number
            or a Reading of numbers, or raises NotMeasured.
    """

    value: Tensor | float
    kind: str = "exact"
    standard_error: Tensor | float | None = None
    residual: Tensor | float | None = None
    note: str | None = None
    on_host: Callable[[Any], float | Reading] | None = None


#: What :meth:`Instrument.measure` returns; a reading that is missing while others are there is the NotMeasured that says why.
Readings = Mapping[str, "Tensor | float | Reading | NotMeasured"]


class Instrument:
    """Base class. A subclass sets ``name`` and ``needs`` and implements :meth:`measure`.

    Attributes:
        name: The reading it is known by, also its name in ``instruments=[...]``. Two instruments of one cockpit
            may not share a name: give a differently configured one a name of its own.
        needs: Which of :data:`NEEDS` it uses.
        can_do_without: Which of them it has another way for, where they are not to be had.
        readings: The readings it writes, without the layerwise ones; empty: just ``name``. A rule or gauge that
        misses one of them
            is told why by these names.
        drawn_elements: How many elements of the model :data:`PER_SAMPLE_ELEMENTS` is to be; of what several want, the most.
        preset: The smallest preset that includes it; only instruments that come with cockpit-lite are in presets.
        patience: Seconds after which a call that has not come back is ended and the instrument switched off: the first call may
            take ten times as long, any other at least twenty times as long as those before it. None: nothing is ended.
    """

    name: str = ""
    needs: tuple[str, ...] = (LOSS,)
    can_do_without: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()
    drawn_elements: int = 256
    preset: ClassVar[Literal["light", "standard", "full"]] = "full"
    patience: float | None = PATIENCE

    def start(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Called once before the first step; override it to remember where training began."""

    def resume(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Called instead of :meth:`start` where a run is gone on with: where training began is no longer there."""
        self.start(parameters)

    def prepare(self, step: Step) -> None:
        """Called just before the backward pass if ``needs`` holds :data:`CURVATURE` and something that is known only later.

        ``step.curvature`` is there now and gone in :meth:`measure`: compute from it what :meth:`measure` will use, and keep that.

        Raises:
            NotMeasured: as :meth:`measure`, which is then not called on this step.
        """

    def measure(self, step: Step) -> Readings:
        """Return readings by name, all measured on this step.

        Runs on the user's device inside the user's loop: return tensors, never call ``.item()``; a tracked step moves
        them to the host together. Do not change anything that ``step`` gives you.

        Raises:
            NotMeasured: if the quantity does not exist on this step; the message completes "not measured, because ...".
        """
        raise NotImplementedError

    def validate(self) -> None:
        """Check the declaration.

        Raises:
            SetupError: if ``name`` is empty or ``needs`` holds an unknown need.
        """
        if not self.name or "/" in self.name:
            raise SetupError(f"{type(self).__name__}.name must be a reading name without '/', not {self.name!r}.")
        unknown = [need for need in self.needs if need not in NEEDS]
        if unknown:
            raise SetupError(f"{type(self).__name__}.needs has unknown entries {unknown}; known are {sorted(NEEDS)}.")
        if needs_preparation(self) and type(self).prepare is Instrument.prepare:
            raise SetupError(
                f"{type(self).__name__}.needs combines {CURVATURE!r} with needs that are met only after the backward pass, "
                "when the graph is gone. The gradient is there as step.curvature.gradient; what else measure() takes from "
                "step.curvature has to be computed in prepare()."
            )

    def reading_names(self) -> tuple[str, ...]:
        """Return the readings it writes, without the layerwise ones."""
        return tuple(self.readings) or (self.name,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def needs_preparation(instrument: Instrument) -> bool:
    """Return whether the instrument measures when the curvature it needs is no longer there."""
    return CURVATURE in instrument.needs and not set(instrument.needs) <= {CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL, LOSS}


def layerwise(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"<name>/<parameter>": value}``, the naming of layerwise readings."""
    return {f"{name}/{key}": value for key, value in values.items()}
