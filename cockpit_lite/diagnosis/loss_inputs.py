"""Group B, what the loss function is given: exact, or nearly, at the first step."""

from __future__ import annotations

from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median
from cockpit_lite.diagnosis.wording import in_words


class SoftmaxTwice(Rule):
    """The loss function takes the softmax of something that is a softmax already.

    What it is: `cross_entropy` expects logits and takes the softmax itself; `binary_cross_entropy_with_logits` does the same with
    the sigmoid. Here the model, or the line before the loss, has done it once.

    Why it is bad: the second softmax sees values between 0 and 1 only. The loss cannot fall below ln(1 + (C - 1)/e), 1.46 for ten
    classes, and gradients are small.

    How to be sure: the rows of what the loss is given add up to 1.

    How to mend it: hand the logits to the loss, and take the softmax only where probabilities are wanted.

    When to ignore it: never. A log-softmax before `cross_entropy` changes nothing and is not reported.
    """

    code = "CL201"
    name = "softmax-twice"
    severity = "error"
    needs = ("softmax_twice",)
    healthy = "The loss function was given logits."

    def check(self, history: History) -> Alert | None:
        if not history.last("softmax_twice"):
            return None
        return self.alert(
            history,
            cause="What the loss function takes the softmax (or sigmoid) of went through 1 softmax (or sigmoid) before.",
            advice=(
                "Remove the softmax or sigmoid in front of the loss: cross_entropy and binary_cross_entropy_with_logits take "
                "logits."
            ),
            evidence={"softmax before the loss": 1.0},
        )


class NllWithoutLogProbabilities(Rule):
    """The NLL loss is given something that is not log-probabilities.

    What it is: `nll_loss` picks the value of the right class and changes its sign. Given probabilities or logits instead of
    log-probabilities it rewards large outputs without bound.

    Why it is bad: the loss goes negative and falls for ever, and classes are not weighed against each other.

    How to be sure: the exponentials of what it is given do not add up to 1.

    How to mend it: `cross_entropy` on the logits, or `log_softmax` before `nll_loss`.

    When to ignore it: never; other likelihoods, such as `gaussian_nll_loss`, are not looked at.
    """

    code = "CL202"
    name = "nll-without-log-probabilities"
    severity = "error"
    needs = ("nll_log_sum",)
    healthy = "The NLL loss was given log-probabilities."

    #: Logarithm of what probabilities add up to; rounding in half precision stays below.
    tolerance = 0.05

    def check(self, history: History) -> Alert | None:
        value = history.last("nll_log_sum")
        if value is None or not value > self.tolerance:
            return None
        return self.alert(
            history,
            cause=f"The NLL loss was given values whose exponentials add up to e to the {in_words(value)}, not to 1.",
            advice="Use torch.nn.functional.cross_entropy on the logits, or log_softmax(dim=1) before nll_loss.",
            evidence={"|log sum exp| of the rows": value, "threshold": self.tolerance},
        )


class BoundedRegressionOutput(Rule):
    """The last activation of a regression cannot put out what the targets ask for.

    What it is: a ReLU never puts out anything negative, a sigmoid stays between 0 and 1, a tanh between -1 and 1; and some of the
    targets are beyond that.

    Why it is bad: those targets are never reached. Behind a ReLU the gradient of such a sample is zero as well.

    How to be sure: compare the smallest and largest target with the smallest and largest output.

    How to mend it: end in a linear layer, or scale the targets into the range.

    When to ignore it: where outliers of the targets are to be cut off.
    """

    code = "CL203"
    name = "bounded-regression-output"
    severity = "error"
    needs = ("targets_out_of_reach",)
    healthy = "The last activation can put out all targets."

    share = 0.05

    def check(self, history: History) -> Alert | None:
        shares = history.values("targets_out_of_reach")[-2:]
        if not shares or not min(shares) > self.share:
            return None
        return self.alert(
            history,
            cause=f"{shares[-1]:.0%} of the targets are values that the last activation can never put out.",
            advice="Remove the activation after the last linear layer, or scale the targets into its range.",
            evidence={"share of targets out of reach": shares[-1], "threshold": self.share},
        )


class LossSummed(Rule):
    """The loss is a sum over the batch, and the learning rate is one for a mean.

    What it is: with `reduction="sum"` loss and gradient are as many times larger as there are samples. The same learning rate
    then makes steps that are as many times longer.

    Why it is bad: the steps overshoot, and change with the batch size.

    How to be sure: the loss at the start is the number of rows times that of one row.

    How to mend it: the mean; or divide the learning rate by the number of rows.

    When to ignore it: with a learning rate chosen for it, or an optimizer that divides by the size of the gradient (Adam): where
    the steps are of a usual size it is not reported.
    """

    code = "CL204"
    name = "loss-summed"
    severity = "warning"
    needs = ("loss_over_mean", "loss_rows", "update_ratio")
    healthy = "The loss is a mean, or its steps are of a usual size."

    long_update = 0.03

    def check(self, history: History) -> Alert | None:
        over, rows = history.values("loss_over_mean"), history.values("loss_rows")
        ratios = finite(history.values("update_ratio")[:5])
        if not over or not rows or not ratios or rows[0] < 4:
            return None
        if not abs(over[0] / rows[0] - 1) < 1e-3 or not max(ratios) > self.long_update:
            return None
        return self.alert(
            history,
            cause=(
                f"The loss is {over[0]:.0f} times that of a single row: it is summed over the {rows[0]:.0f} rows of the batch, "
                "and the "
                f"first steps change the weights by {max(ratios):.1%} of their norm."
            ),
            advice=f"Use reduction='mean', or divide the learning rate by {rows[0]:.0f}.",
            evidence={
                "loss over that of a row": over[0],
                "rows": rows[0],
                "update ratio": max(ratios),
                "threshold": self.long_update,
            },
            confidence=0.9,
        )


class LossAtStart(Rule):
    """The first loss is far above that of a guess.

    What it is: a classifier that knows nothing yet should give all C classes about the same probability, which costs ln C. Here
    the first loss is half as much again or more: the last layer starts with large, confident and wrong outputs.

    Why it is bad: the first steps are spent on taking that back, often with very large gradients.

    How to be sure: compare the loss of the first step with ln C.

    How to mend it: smaller weights in the last layer (zero is fine there), inputs of mean 0 and variance 1, normalisation before
    the last layer.

    When to ignore it: when a trained model goes on with other data. A loss below that of a guess is not reported: a pretrained
    model has one.

    Source: A. Karpathy, A recipe for training neural networks, 2019.
    """

    code = "CL205"
    name = "loss-at-start"
    severity = "note"
    needs = ("loss_over_uniform",)
    follows_from = (
        "inputs-not-normalised",
        "init-scale",
        "residual-growth",
        "exploding-gradients",
        "ill-conditioning",
        "nll-without-log-probabilities",
    )
    healthy = "The first loss was about that of a guess, ln C."

    above = 1.5

    def check(self, history: History) -> Alert | None:
        values = history.values("loss_over_uniform")
        if not values or history.steps("loss_over_uniform")[0] > 0 or not values[0] > self.above:
            return None
        return self.alert(
            history,
            step=0,
            cause=(
                f"The first loss is {in_words(values[0])} times ln C, what a guess would cost: the untrained model is sure, and "
                "wrong."
            ),
            advice=(
                "Initialise the last layer with smaller weights, torch.nn.init.zeros_(head.weight), and scale inputs to "
                "variance 1."
            ),
            evidence={"first loss over ln C": values[0], "threshold": self.above},
            confidence=0.8,
        )


class TargetNotShifted(Rule):
    """A language model is trained to put out the token that it has just read.

    What it is: the target is the input itself instead of the input moved by one place. Copying is learnt within a hundred steps.

    Why it is bad: the loss falls to zero, and the model has learnt nothing about the next token.

    How to be sure: compare `targets` with `inputs` element by element.

    How to mend it: `inputs, targets = tokens[:, :-1], tokens[:, 1:]`.

    When to ignore it: an autoencoder of tokens is meant to copy.
    """

    code = "CL206"
    name = "target-not-shifted"
    severity = "error"
    needs = ("targets_equal_inputs", "loss_over_uniform")
    healthy = "The targets are not the input tokens themselves."

    same = 0.98
    copied = 0.7

    def check(self, history: History) -> Alert | None:
        shares = history.values("targets_equal_inputs")[-3:]
        losses = history.values("loss_over_uniform")
        if len(shares) < 3 or not min(shares) > self.same or not median(losses[-3:]) < self.copied * losses[0]:
            return None
        return self.alert(
            history,
            cause=(
                f"{shares[-1]:.0%} of the target tokens are the input token at the same place: the model learns to copy its "
                "input."
            ),
            advice="Shift the targets by one: inputs, targets = tokens[:, :-1], tokens[:, 1:].",
            evidence={"share of equal tokens": shares[-1], "threshold": self.same, "loss over ln C": losses[-1]},
            confidence=0.95,
        )


class PaddingInLoss(Rule):
    """Padding is counted in the loss.

    What it is: sequences are filled up to one length, and the filling is a target like any other.

    Why it is bad: the loss looks low, since padding is easily predicted, and a share of every gradient is spent on it.

    How to be sure: count the targets that are the padding token.

    How to mend it: `ignore_index=padding` in the loss, or a mask.

    When to ignore it: where the end of a sequence is itself to be predicted, one token a sequence is right.
    """

    code = "CL207"
    name = "padding-in-loss"
    severity = "warning"
    needs = ("padding_share",)
    healthy = "Padding is not counted in the loss."

    share = 0.1

    def check(self, history: History) -> Alert | None:
        shares = history.values("padding_share")[-2:]
        if len(shares) < 2 or not min(shares) > self.share:
            return None
        return self.alert(
            history,
            cause=f"{shares[-1]:.0%} of the rows of the loss have padding as their target.",
            advice="Give the loss ignore_index=<the padding token>, or multiply it with a mask before the mean.",
            evidence={"share of padding": shares[-1], "threshold": self.share},
            confidence=0.9,
        )


RULES: Sequence[Rule] = (
    SoftmaxTwice(),
    NllWithoutLogProbabilities(),
    BoundedRegressionOutput(),
    LossSummed(),
    LossAtStart(),
    TargetNotShifted(),
    PaddingInLoss(),
)
