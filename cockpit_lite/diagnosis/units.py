"""Group C, layers and their units: how they begin, and whether they are still alive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median, rank_correlation, slope_per_place, spread
from cockpit_lite.diagnosis.wording import in_words, listed_names


class InitScale(Rule):
    """The signal grows or shrinks geometrically on its way through the untrained net.

    What it is: a layer multiplies the spread of its inputs by a factor that its weights set. Initialised for another activation,
    or by hand with a fixed standard deviation, that factor is not 1, and depth raises it to a power.

    Why it is bad: the last layers see a signal without differences, or one without bounds, and the gradient goes the same way.

    How to be sure: look at the activation gauge at the first step: the standard deviation changes by about the same factor from
    layer to layer.

    How to mend it: weights of standard deviation sqrt(2 / fan_in) before ReLU (He), sqrt(2 / (fan_in + fan_out)) before tanh
    (Glorot); or normalisation layers.

    When to ignore it: residual nets without normalisation grow somewhat with depth; they stay below what is reported.

    Source: X. Glorot and Y. Bengio, 2010; K. He and others, Delving deep into rectifiers, 2015.
    """

    code = "CL303"
    name = "init-scale"
    severity = "warning"
    needs = ("activation_std",)
    healthy = "The spread of the activations keeps its scale through the untrained net."

    orders = 2.0
    orders_per_layer = 0.12
    fewest_layers = 6

    def check(self, history: History) -> Alert | None:
        if len(history.values("activation_std")) != 1 or history.steps("activation_std")[0] > 0:
            return None  # only how it begins
        layers = {name: value for name, value in history.layers("activation_std").items() if 0 < value < math.inf}
        scales = [math.log10(value) for value in layers.values()]
        if len(scales) < self.fewest_layers or spread(scales) < self.orders or abs(rank_correlation(scales)) < 0.9:
            return None
        slope = slope_per_place(scales)
        if abs(slope) < self.orders_per_layer or abs(slope) * (len(scales) - 1) < self.orders:
            return None
        names = list(layers)
        grows = slope > 0
        return self.alert(
            history,
            where=(names[0], names[-1]),
            cause=(
                f"In the untrained net the spread of the activations {'grows' if grows else 'shrinks'} by a factor of "
                f"{10 ** abs(slope):.2g} a layer, from {10 ** scales[0]:.2g} in {names[0]} to {10 ** scales[-1]:.2g} in "
                f"{names[-1]}."
            ),
            advice=(
                f"Initialise with weights {'smaller' if grows else 'larger'} by that factor: nn.init.kaiming_normal_ before "
                "ReLU, "
                "nn.init.xavier_normal_ before tanh; or add normalisation layers."
            ),
            evidence={"factor a layer": 10 ** abs(slope), "threshold": 10**self.orders_per_layer, "layers": len(scales)},
            confidence=0.85,
        )


class SymmetricInit(Rule):
    """All units of a layer are the same, and stay the same.

    What it is: a layer whose weights all begin with one constant, zero for instance. Its units put out the same and receive the
    same gradient.

    Why it is bad: the layer is one unit wide for ever, whatever it costs.

    How to be sure: the rows of the weight are identical after some steps, too.

    How to mend it: random initialisation, `nn.init.kaiming_normal_(layer.weight)`.

    When to ignore it: never. Layers that begin with zero but receive different gradients (the end of a residual branch, the
    second factor of a low-rank adapter, an output layer) are not reported.
    """

    code = "CL304"
    name = "symmetric-init"
    severity = "error"
    needs = ("symmetric_units",)
    healthy = "The units of every layer differ, or receive different gradients."

    def check(self, history: History) -> Alert | None:
        counts = history.values("symmetric_units")
        if len(counts) < 2 or not min(counts[-2:]) > 0:
            return None  # after one step they are still the same
        names = tuple(name for name, same in history.layers("symmetric_units").items() if same)
        return self.alert(
            history,
            where=names,
            cause=(
                f"All units of {listed_names(names)} have the same weights and the same gradient, also after {history.step} "
                "steps."
            ),
            advice=(
                "Initialise at random, these and every other layer that begins with a constant: "
                "torch.nn.init.kaiming_normal_(layer.weight)."
            ),
            evidence={"weights with identical units": counts[-1]},
        )


class DeadUnits(Rule):
    """More than half of a layer's ReLU units put out zero for every sample.

    What it is: units whose input is negative for all the data. No gradient flows through them, so they do not come back.

    Why it is bad: the layer has lost the better part of its width for good.

    How to be sure: the same units put out zero over several hundred samples.

    How to mend it: a learning rate that is several times lower (one step that was too long is the usual cause), biases that do
    not start below zero, LeakyReLU or GELU.

    When to ignore it: a wide layer in which every sample uses a few units, but each unit is used by some sample, is sparse and
    not dead; it is not reported.

    Source: L. Lu and others, Dying ReLU and initialization, 2019.
    """

    code = "CL305"
    name = "dead-units"
    severity = "warning"
    needs = ("dead_units", "batch_size")
    follows_from = ("learning-rate-too-high", "exploding-gradients", "inputs-not-normalised", "init-scale")
    healthy = "Most ReLU units put out something for some sample."
    passes = True

    share = 0.5
    samples = 512
    measured = 4
    _from_the_start = (
        "They were dead before the first step, so it is how they begin: initialise the layer in front of them with "
        "nn.init.kaiming_normal_(layer.weight) and nn.init.zeros_(layer.bias)."
    )

    def check(self, history: History) -> Alert | None:
        sizes = history.values("batch_size")
        size = sizes[-1] if sizes and sizes[-1] > 0 else 32.0
        count = max(self.measured, math.ceil(self.samples / max(size, 1)))
        shares = history.values("dead_units")[-min(count, 40) :]
        if len(shares) < min(count, 40) or not min(shares) > self.share:
            return None
        names, at_first = _layers_above(history, "dead_units", self.share), history.values("dead_units")[0]
        return self.alert(
            history,
            where=names,
            cause=(
                f"{shares[-1]:.0%} of the units of {names[0] if names else 'a layer'} put out zero for every sample of the last "
                f"{len(shares)} measured batches."
            ),
            advice=self._from_the_start
            if at_first > self.share
            else f"Start again with a learning rate 3 to 10 times lower{_rate(history)}, or use nn.LeakyReLU or nn.GELU there.",
            evidence={
                "share of dead units": shares[-1],
                "share at first": at_first,
                "threshold": self.share,
                "measured batches": float(len(shares)),
            },
            confidence=0.9,
        )


class SaturatedUnits(Rule):
    """Most sigmoid or tanh units of a layer are at the end of their range, where they pass on no gradient.

    What it is: inputs so far from zero that the derivative of the activation is below a hundredth of its maximum.

    Why it is bad: the layers before it get next to no gradient.

    How to be sure: the outputs are near 0 and 1, or -1 and 1, for most samples and units.

    How to mend it: smaller weights (`nn.init.xavier_normal_`), normalised inputs, a normalisation layer before the activation.

    When to ignore it: gates of a trained recurrent layer are open or shut; those are not looked at.

    Source: X. Glorot and Y. Bengio, 2010, section 3.
    """

    code = "CL306"
    name = "saturated-units"
    severity = "warning"
    needs = ("saturation",)
    follows_from = ("inputs-not-normalised", "init-scale", "learning-rate-too-high", "exploding-gradients")
    healthy = "Most sigmoid and tanh units are within the range where they pass on a gradient."
    passes = True

    share = 0.5
    measured = 3

    def check(self, history: History) -> Alert | None:
        shares = history.values("saturation")[-self.measured :]
        if len(shares) < self.measured or not min(shares) > self.share:
            return None
        names = _layers_above(history, "saturation", self.share)
        return self.alert(
            history,
            where=names,
            cause=(
                f"{shares[-1]:.0%} of the outputs of {names[0] if names else 'a layer'} are where its slope is below 1 % of the "
                "maximum."
            ),
            advice=(
                "Initialise with nn.init.xavier_normal_, scale the inputs to variance 1, or put nn.LayerNorm before the "
                "activation."
            ),
            evidence={"share of saturated outputs": shares[-1], "threshold": self.share},
            confidence=0.85,
        )


class RepresentationCollapse(Rule):
    """A layer's outputs have lost most of the directions they varied in.

    What it is: the effective rank of what a layer puts out falls to a fifth of what it was. Samples that differ become alike.

    Why it is bad: what the layers behind cannot tell apart they cannot learn to tell apart.

    How to be sure: look at the effective rank by layer over time.

    How to mend it: a normalisation layer, a lower learning rate, less weight decay; for self-supervised training a term against
    collapse.

    When to ignore it: a bottleneck, and the last layers of a classifier in the long run (neural collapse). A loss that falls well
    meanwhile speaks against harm, and is not reported.

    Source: O. Roy and M. Vetterli, The effective rank, 2007.
    """

    code = "CL308"
    name = "representation-collapse"
    severity = "warning"
    needs = ("effective_rank", "loss")
    follows_from = ("learning-rate-too-high", "exploding-gradients", "dead-units", "weight-decay-too-strong")
    healthy = "The outputs of the layers keep the directions they vary in."

    factor = 5.0
    first_step = 20

    def check(self, history: History) -> Alert | None:
        ranks, losses = finite(history.values("effective_rank")[:5]), finite(history.values("loss")[-10:])
        if history.step < self.first_step or len(ranks) < 3 or not losses:
            return None
        before, now = median(ranks), median(history.values("effective_rank")[-3:])
        # A layer that learns its task gives up directions; harm is where the loss does not profit.
        begin = median(history.values("loss")[:5])
        if not now < before / self.factor or median(losses) < begin - 0.5 * abs(begin):
            return None
        layers: Mapping[str, float] = history.layers("effective_rank")
        names = tuple(sorted(layers, key=lambda name: layers[name])[:1])
        return self.alert(
            history,
            where=names,
            cause=(
                f"The effective rank of the narrowest layer{f', {names[0]},' if names else ''} fell from {before:.1%} to "
                f"{now:.1%} of "
                f"its width: samples become alike there."
            ),
            advice=f"Lower the learning rate by a factor of 3 to 10{_rate(history)}, and add nn.LayerNorm or nn.BatchNorm there.",
            evidence={"effective rank at first": before, "effective rank": now, "threshold": before / self.factor},
            confidence=0.7,
        )


def _layers_above(history: History, reading: str, limit: float) -> tuple[str, ...]:
    """Return the layers whose last reading is above the limit, the highest first."""
    layers = {name: value for name, value in history.layers(reading).items() if value > limit}
    return tuple(sorted(layers, key=lambda name: -layers[name]))


def _rate(history: History) -> str:
    rate = history.last("learning_rate")
    return "" if rate is None or not 0 < rate < math.inf else f" (it is {in_words(rate)})"


RULES: Sequence[Rule] = (InitScale(), SymmetricInit(), DeadUnits(), SaturatedUnits(), RepresentationCollapse())
