"""Group C, signal propagation and initialisation."""

from __future__ import annotations

import math

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.derived import LONG_UPDATE_RATIO, OUT_OF_PROPORTION, first_long_step, out_of_proportion
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import median, rank_correlation, slope_per_place, spread
from cockpit_lite.diagnosis.wording import in_words, share_in_words

_INITIALISE = "nn.init.kaiming_normal_(weight, nonlinearity='relu') for ReLU layers"
_CLIP = "Until then clip between backward and step: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."


def gradient_scale_by_depth(history: History) -> tuple[list[str], list[float]]:
    """Return weights and log10 of the root mean square of their last gradient, in network order.

    Biases, norms and whatever else has fewer than two axes are left out: they live on another scale.
    """
    norms = history.layers("grad_norm")
    names, scales = [], []
    for name, shape in history.shapes.items():
        norm = norms.get(name, 0.0)
        if len(shape) >= 2 and 0 < norm < math.inf:
            names.append(name)
            scales.append(math.log10(norm) - 0.5 * math.log10(math.prod(shape)))
    return names, scales


class VanishingGradients(Rule):
    """The gradient shrinks from layer to layer on its way back to the input.

    What it is: every layer multiplies the gradient with its weights and the slope of its activation. If that factor is
    below one, the gradient falls geometrically with depth: sigmoid has a slope of at most 1/4, so ten such layers leave less than
    a millionth.

    Why it is bad: the first layers do not learn; the net trains its last layers on random features, or nothing at all.

    How to be sure: look at the layer gauge. The root mean square gradient of the weights falls by about the same factor from each
    layer to the one before it.

    How to mend it: ReLU or GELU instead of sigmoid and tanh, He or Glorot initialisation to match, normalisation layers,
    residual connections.

    When to ignore it: a shallow net with a small fall, or layers that are frozen or fine-tuned on purpose.

    Source: X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """

    code = "CL301"
    name = "vanishing-gradients"
    severity = "error"
    needs = ("grad_norm",)
    healthy = "The gradient reaches the first layers: its scale does not fall geometrically with depth."
    passes = True

    # A fall of three orders of magnitude in all and a factor of two a layer, in order. The nets of the zoo stay below 1.5 orders.
    orders = 3.0
    orders_per_layer = 0.3

    def check(self, history: History) -> Alert | None:
        names, scales = gradient_scale_by_depth(history)
        if len(scales) < 5 or spread(scales) < self.orders or rank_correlation(scales) < 0.9:
            return None
        slope = slope_per_place(scales)
        total = slope * (len(scales) - 1)
        if total < self.orders or slope < self.orders_per_layer:
            return None
        return self.alert(
            history,
            where=(names[0], names[-1]),
            cause=(
                f"The gradient falls by a factor of {10**slope:.2g} from each layer to the one before: {10 ** scales[0]:.1g} a "
                f"weight in {names[0]}, {10 ** scales[-1]:.1g} in {names[-1]}. The first layers do not learn."
            ),
            advice=(
                "Use ReLU or GELU instead of sigmoid or tanh with nn.init.kaiming_normal_ for the weights, put normalisation "
                "layers between, and with more than about ten layers residual connections: x + layer(norm(x))."
            ),
            evidence={
                "factor a layer": 10**slope,
                "threshold a layer": 10**self.orders_per_layer,
                "factor in all": 10**total,
                "threshold in all": 10**self.orders,
                "layers": len(scales),
            },
            confidence=0.95,
        )


class ExplodingGradients(Rule):
    """The gradient is out of proportion, or grows without bound.

    What it is: every layer (or every time step of a recurrent net) multiplies the signal on its way forward and the gradient on
    its way back. If that factor is above one, both grow geometrically.

    Why it is bad: one step moves the weights further than they are large. The loss jumps, soon to infinity.

    How to be sure: the gradient grows from the last layer to the first or is more than a hundred times the norm of the weights,
    and it does harm: a step replaces the weights, or the loss has doubled. Or it has come to stand far above its own history, and
    loss with it.

    How to mend it: initialise for the activation in use (`nn.init.kaiming_normal_` for ReLU, orthogonal for recurrent weights),
    add normalisation layers, clip with `torch.nn.utils.clip_grad_norm_`. A lower learning rate alone only hides it.

    When to ignore it: a single spike after which loss and gradient come back, as one odd batch can cause. A large gradient that
    does no harm, because it is clipped, because Adam divides by it, or because a summed loss goes with a small learning rate, is
    not reported.

    Source: R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013.
    """

    code = "CL302"
    name = "exploding-gradients"
    severity = "error"
    needs = ("grad_norm", "loss")
    follows_from = ("exploding-recurrence", "residual-growth", "inputs-not-normalised")
    healthy = "The gradient is in proportion to the weights, does not grow with depth and stays near its own history."

    orders = 2.0
    orders_per_layer = 0.15
    above_history = 50.0
    #: A first loss so many times that of a guess among the classes is harm in itself, whatever the optimizer makes of it.
    above_guess = 30.0

    def check(self, history: History) -> Alert | None:
        return self._at_start(history) or self._above_history(history)

    def _at_start(self, history: History) -> Alert | None:
        """Find a gradient that was wrong from the beginning, by depth or by size, once it does harm."""
        losses = history.values("loss")
        if not losses or "grad_norm" not in history:
            return None
        found = out_of_proportion(history)
        long_step = first_long_step(history)
        begin = losses[0]
        doubled = len(losses) >= 3 and all(not loss <= begin + abs(begin) for loss in losses[-2:])
        over_guess = next(iter(history.values("loss_over_uniform")), math.nan)
        if long_step is None and not doubled and not over_guess > self.above_guess:
            return None
        # After a long step the layers are where it has thrown them.
        by_depth = None if long_step is not None and long_step < history.steps("grad_norm")[-1] else self._by_depth(history)
        if found is None and by_depth is None:
            return None
        harm = f"The loss went from {in_words(begin)} to {in_words(losses[-1])}."
        if long_step is None and not doubled:
            harm = f"The first loss, {in_words(begin)}, is {in_words(over_guess)} times what a guess would cost."
        if long_step is not None:
            place = history.place("update_ratio", long_step)
            ratio = history.values("update_ratio")[place] if place < len(history.values("update_ratio")) else math.nan
            if ratio > LONG_UPDATE_RATIO:
                harm = f"The update at step {long_step} was {share_in_words(ratio)} the norm of the weights."
        if by_depth is not None:
            (first, last), factor, (at_first, at_last), count = by_depth
            return self.alert(
                history,
                where=(first, last),
                cause=(
                    f"The gradient grows by a factor of {factor:.2g} from each layer to the one before: {at_last:.1g} a weight "
                    f"in {last}, {at_first:.1g} in {first}. {harm}"
                ),
                advice=f"Initialise for the activation in use, with {_INITIALISE}, or add normalisation layers. {_CLIP}",
                evidence={"factor a layer": factor, "threshold a layer": 10**self.orders_per_layer, "layers": count},
                confidence=0.9,
            )
        assert found is not None
        step, proportion = found
        norms = [(norm, name) for name, norm in history.layers("grad_norm").items() if math.isfinite(norm)]
        return self.alert(
            history,
            where=(max(norms)[1],) if norms else (),
            cause=(
                f"The gradient is {in_words(proportion)} times as large as the weights (step {step}): it grew on its way through "
                f"the net. {harm}"
            ),
            advice=f"Initialise for the activation in use, with {_INITIALISE}, or add normalisation layers. {_CLIP}",
            evidence={
                "gradient norm over weight norm": proportion,
                "threshold": OUT_OF_PROPORTION,
                "loss at start": begin,
                "loss": losses[-1],
            },
            confidence=0.9,
        )

    def _by_depth(self, history: History) -> tuple[tuple[str, str], float, tuple[float, float], int] | None:
        """Return (first, last layer), factor a layer, (gradient of a weight there), number of layers, or None."""
        names, scales = gradient_scale_by_depth(history)
        if len(scales) < 5 or spread(scales) < self.orders or rank_correlation(scales) > -0.9:
            return None
        slope = -slope_per_place(scales)
        if slope * (len(scales) - 1) < self.orders or slope < self.orders_per_layer:
            return None
        return (names[0], names[-1]), 10**slope, (10 ** scales[0], 10 ** scales[-1]), len(scales)

    def _above_history(self, history: History) -> Alert | None:
        """Find a gradient that grew beyond its own past for good: a spike that comes back is none."""
        norms, losses = history.values("grad_norm"), history.values("loss")
        if len(norms) < 13 or len(losses) < 13:
            return None
        recent = norms[-3:]
        # What is usual is what went before; sampled evenly over the run, the excursion itself is a small part of it.
        before = history.sample("grad_norm")[:-3]
        if min(recent) <= self.above_history * min(before, default=math.nan):
            return None  # nearly always, and less work than a median
        usual = median(before)
        if not min(recent) > self.above_history * usual > 0:
            return None
        long_step = first_long_step(history)
        if long_step is not None:
            place = history.place("grad_norm", long_step)
            if place < len(norms) and norms[place] < 10 * usual:
                return None  # it grew where a step that was too long has thrown the weights: that is another fault
        usual_loss, recent_losses = median(history.sample("loss")[:-3]), losses[-3:]
        begin = median(losses[:3])
        risen = min(recent_losses) > usual_loss + abs(usual_loss)
        # Above where training began there is nothing left to lose; below, the loss may still come back, so wait.
        lost = min(recent_losses) > begin + 0.2 * abs(begin)
        stays = min(norms[-12:]) > self.above_history * usual and median(losses[-6:]) >= median(losses[-12:-6])
        if not (risen and (lost or stays)):
            return None
        return self.alert(
            history,
            cause=(
                f"The gradient norm has been above {in_words(min(recent))} for three measured steps, its usual value is "
                f"{in_words(usual)}, and the loss rose from {in_words(usual_loss)} to {in_words(recent_losses[-1])}."
            ),
            advice=(
                f"Clip the gradient, torch.nn.utils.clip_grad_norm_(model.parameters(), {2 * usual:.2g}), and go back to a "
                "checkpoint from before the rise."
            ),
            evidence={
                "gradient norm": recent[-1],
                "usual": usual,
                "threshold": self.above_history * usual,
                "loss": recent_losses[-1],
            },
            confidence=0.8,
        )
