"""Group C, signal propagation and initialisation."""

from __future__ import annotations

import itertools
import math

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.derived import OUT_OF_PROPORTION, out_of_proportion
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import median, rank_correlation, slope_per_place

def gradient_scale_by_depth(history: History) -> tuple[list[str], list[float]]:
    """Return weights and log10 of the root mean square of their last gradient, in network order.

    Biases, norms and whatever else has fewer than two axes are left out: they live on another scale.
    """
    names, scales = [], []
    for name, norm in history.layers("grad_norm").items():
        shape = history.shapes.get(name, ())
        if len(shape) >= 2 and norm > 0 and math.isfinite(norm):
            names.append(name)
            scales.append(math.log10(norm / math.sqrt(math.prod(shape))))
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

    # A fall of three orders of magnitude in all and a factor of two a layer, in order. The nets of the test zoo stay below 1.5 orders.
    orders = 3.0
    orders_per_layer = 0.3

    def check(self, history: History) -> Alert | None:
        names, scales = gradient_scale_by_depth(history)
        slope = slope_per_place(scales)
        total = slope * (len(scales) - 1)
        if len(scales) < 5 or total < self.orders or slope < self.orders_per_layer or rank_correlation(scales) < 0.9:
            return None
        return self.alert(
            history,
            where=(names[0], names[-1]),
            cause=(
                f"The gradient falls by a factor of {10**slope:.2g} from each layer to the one before: {10 ** scales[0]:.1g} a weight in "
                f"{names[0]}, {10 ** scales[-1]:.1g} in {names[-1]}. The first layers do not learn."
            ),
            advice=(
                "Use ReLU or GELU instead of sigmoid or tanh with nn.init.kaiming_normal_ for the weights, put normalisation layers between, "
                "or add residual connections."
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

    What it is: every layer (or every time step of a recurrent net) multiplies the signal on its way forward and the gradient on its way
    back. If that factor is above one, both grow geometrically.

    Why it is bad: one step moves the weights further than they are large. The loss jumps, soon to infinity.

    How to be sure: either the gradient grows from the last layer to the first, or its norm is more than a hundred times the
    norm of the weights while loss or gradient grow, or it stands far above its own history while the loss has risen.

    How to mend it: initialise for the activation in use (`nn.init.kaiming_normal_` for ReLU, orthogonal for recurrent weights), add
    normalisation layers, clip with `torch.nn.utils.clip_grad_norm_`. A lower learning rate alone only hides it.

    When to ignore it: a single spike after which loss and gradient come back, as one odd batch can cause.

    Source: R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013.
    """

    code = "CL302"
    name = "exploding-gradients"
    severity = "error"
    needs = ("grad_norm", "loss")
    healthy = "The gradient is in proportion to the weights, does not grow with depth and stays near its own history."

    orders = 2.0
    orders_per_layer = 0.15
    above_history = 50.0

    def check(self, history: History) -> Alert | None:
        return self._by_depth(history) or self._out_of_proportion(history) or self._above_history(history)

    def _by_depth(self, history: History) -> Alert | None:
        names, scales = gradient_scale_by_depth(history)
        slope = -slope_per_place(scales)
        total = slope * (len(scales) - 1)
        if len(scales) < 5 or total < self.orders or slope < self.orders_per_layer or rank_correlation(scales) > -0.9:
            return None
        return self.alert(
            history,
            where=(names[0], names[-1]),
            cause=(
                f"The gradient grows by a factor of {10**slope:.2g} from each layer to the one before: {10 ** scales[-1]:.1g} a weight in "
                f"{names[-1]}, {10 ** scales[0]:.1g} in {names[0]}."
            ),
            advice="Initialise for the activation in use (nn.init.kaiming_normal_, nn.init.orthogonal_) or add normalisation layers.",
            evidence={"factor a layer": 10**slope, "threshold a layer": 10**self.orders_per_layer, "layers": len(scales)},
            confidence=0.9,
        )

    def _out_of_proportion(self, history: History) -> Alert | None:
        losses, norms = history.values("loss"), history.values("grad_norm")
        found = out_of_proportion(history)
        if found is None or len(losses) < 2:
            return None
        step, ratio = found
        grows = any(not later <= 2 * earlier for series in (losses, norms) for earlier, later in itertools.pairwise(series[-6:]))
        if not grows:
            return None
        largest = max(((norm, name) for name, norm in history.layers("grad_norm").items() if math.isfinite(norm)), default=(math.nan, ""))
        return self.alert(
            history,
            where=(largest[1],) if largest[1] else (),
            cause=(
                f"The gradient is {ratio:.3g} times as large as the weights (step {step}), and the loss went from {losses[0]:.3g} to "
                f"{losses[-1]:.3g}: signal and gradient grow on their way through the net."
            ),
            advice=(
                "Initialise for the activation in use, with nn.init.kaiming_normal_(weight, nonlinearity='relu') for ReLU layers, or add "
                "normalisation layers; until then clip: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
            ),
            evidence={"gradient norm over weight norm": ratio, "threshold": OUT_OF_PROPORTION, "loss at start": losses[0], "loss": losses[-1]},
            confidence=0.9,
        )

    def _above_history(self, history: History) -> Alert | None:
        norms, losses = history.values("grad_norm"), history.values("loss")
        if len(norms) < 13 or len(losses) < 13:
            return None
        usual, usual_loss = median(norms[:-3]), median(losses[:-3])
        recent, recent_losses = norms[-3:], losses[-3:]
        if not (min(recent, default=0) > self.above_history * usual > 0 and min(recent_losses) > max(2 * usual_loss, usual_loss)):
            return None
        return self.alert(
            history,
            cause=(
                f"The gradient norm has been above {min(recent):.3g} for three measured steps, its usual value is {usual:.3g}, and the loss "
                f"rose from {usual_loss:.3g} to {recent_losses[-1]:.3g}."
            ),
            advice=f"Clip the gradient: torch.nn.utils.clip_grad_norm_(model.parameters(), {2 * usual:.2g}), and lower the learning rate.",
            evidence={"gradient norm": recent[-1], "usual": usual, "threshold": self.above_history * usual, "loss": recent_losses[-1]},
            confidence=0.8,
        )
