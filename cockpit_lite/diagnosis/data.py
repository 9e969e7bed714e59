"""Group E, data and noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.derived import mostly_noise
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median
from cockpit_lite.diagnosis.wording import in_words


class InputsNotNormalised(Rule):
    """The inputs are on scales of their own.

    What it is: features differ in spread by a factor of a hundred, or lie far from zero compared with their spread, or are large
    altogether.

    Why it is bad: the curvature of the loss along a weight grows with the square of its input. Ratios of a hundred become ten
    thousand in the condition number, and the learning rate is set by the largest.

    How to be sure: print mean and standard deviation of the inputs by feature.

    How to mend it: `inputs = (inputs - mean) / standard_deviation`, by feature, with the figures of the training data.

    When to ignore it: images between 0 and 1, one-hot codes and embeddings are fine, and not reported.

    Source: Y. LeCun and others, Efficient BackProp, 1998, section 4.3.
    """

    code = "CL501"
    name = "inputs-not-normalised"
    severity = "warning"
    needs = ("input_scale",)
    healthy = "The inputs are centred, of one scale, and of a usual size."

    ratio = 100.0
    #: Features of different spread do harm where the wide ones are wide: a rarely used pixel of an image does none.
    wide = 3.0
    off_centre = 10.0
    large = 20.0

    def check(self, history: History) -> Alert | None:
        scale = median(history.values("input_scale")[:5])
        ratio, mean = median(history.values("input_std_ratio")[:5]), median(history.values("input_mean_ratio")[:5])
        if len(history.values("input_scale")) < 2 or math.isnan(scale):
            return None
        parts = []
        if ratio >= self.ratio and scale > self.wide:
            parts.append(f"the spread of the features differs by a factor of {in_words(ratio)}")
        if mean > self.off_centre:
            parts.append(f"the mean of the features is {in_words(mean)} times their spread")
        if scale > self.large:
            parts.append(f"they are {in_words(scale)} in root mean square")
        if not parts:
            return None
        evidence = {"root mean square": scale, "threshold": self.large}
        if not math.isnan(ratio):
            evidence.update({"spread of the features, widest over narrowest": ratio, "threshold of that": self.ratio})
        if not math.isnan(mean):
            evidence.update({"mean over spread": mean, "threshold of the mean": self.off_centre})
        return self.alert(
            history,
            cause=f"The inputs are not normalised: {' and '.join(parts)}.",
            advice=(
                "Standardise by feature: inputs = (inputs - mean) / standard_deviation, with mean and deviation of the training "
                "data."
            ),
            evidence=evidence,
            confidence=0.9,
        )


class LabelsUnrelated(Rule):
    """The labels cannot be learnt from the inputs.

    What it is: the loss has stayed at the entropy of the labels, what a guess by frequency costs, although the steps are of a
    usual size and the gradients are not small: what one sample teaches, another contradicts. Labels that were shuffled, or joined
    to the wrong inputs, look like this.

    Why it is bad: there is nothing to learn.

    How to be sure: look at some pairs of inputs and labels. A model that can memorise one small batch is not the cause.

    How to mend it: check how inputs and labels are put together: the order after shuffling, sorting, joining, slicing.

    When to ignore it: hard, slow tasks begin like this, too; give them time.

    Source: C. Zhang and others, Understanding deep learning requires rethinking generalization, 2017.
    """

    code = "CL502"
    name = "labels-unrelated"
    severity = "warning"
    needs = ("label_entropy", "loss_over_mean", "loss", "gradient_alignment", "update_ratio")
    follows_from = (
        "learning-rate-too-low",
        "vanishing-gradients",
        "learning-rate-too-high",
        "softmax-twice",
        "symmetric-init",
        "graph-cut",
    )
    healthy = "The loss is below the entropy of the labels, or has had little time."

    first_step = 200
    measured = 20

    def check(self, history: History) -> Alert | None:
        if history.step < self.first_step or len(history.values("label_entropy")) < self.measured:
            return None
        entropy, over = history.last("label_entropy"), history.last("loss_over_mean")
        losses = finite(history.sample("loss", begin=history.step // 2))
        if entropy is None or not over or entropy < 0.3 or len(losses) < 10:
            return None
        third = len(losses) // 3
        row_loss, early = median(losses[-third:]) / over, median(losses[:third]) / over
        falls = row_loss < 0.985 * early
        moved = median(history.values("update_ratio")[-self.measured :])
        aligned = median(history.values("gradient_alignment")[-self.measured :])
        noise = finite(history.values("gradient_noise_scale")[-self.measured :])
        # What falls although no batch says anything about the next one falls by heart. A language model that spends a while on
        # the frequencies of its tokens falls, too, and its gradients agree.
        by_heart = falls and row_loss > 0.9 * early and len(noise) < self.measured // 2 and aligned < 0.01
        if falls and not by_heart:
            return None
        lowest = 0.92 if by_heart else 0.97
        if not lowest < row_loss / entropy < 1.3 or not moved > 1e-4 or not abs(aligned) < 0.1 or not mostly_noise(history):
            return None
        return self.alert(
            history,
            cause=(
                f"After {history.step + 1} steps the loss is {in_words(row_loss)}, the entropy of the labels is "
                f"{in_words(entropy)}: nothing "
                f"in the inputs is used, and the gradients of the samples do not agree (mean cosine {aligned:.2g})."
            ),
            advice=(
                "Look at 10 pairs of inputs and labels as the loader gives them: somewhere they were shuffled, sorted or joined "
                "apart."
            ),
            evidence={
                "loss over label entropy": row_loss / entropy,
                "mean cosine of the gradients": aligned,
                "update ratio": moved,
            },
            confidence=0.6,
        )


class ConstantBatch(Rule):
    """Every step gets the same batch.

    What it is: the inputs of the measured steps are the same, bit for bit.

    Why it is bad: where more data exist, the model sees none of them.

    How to be sure: print `inputs.sum()` in the loop.

    How to mend it: look at the loader: an iterator that is made anew in every step, a batch taken before the loop.

    When to ignore it: training on all the data at once, and the check whether a model can fit one batch.
    """

    code = "CL504"
    name = "constant-batch"
    severity = "note"
    needs = ("batch_repeated",)
    healthy = "The batches differ."
    passes = True

    measured = 3

    def check(self, history: History) -> Alert | None:
        repeated = history.values("batch_repeated")[-self.measured :]
        if len(repeated) < self.measured or min(repeated) < 1:
            return None
        return self.alert(
            history,
            cause=f"The last {self.measured + 1} measured steps had the same inputs, bit for bit.",
            advice="Take a new batch in every step: for inputs, targets in loader. Ignore this if the batch is all there is.",
            evidence={"measured steps in a row": float(len(repeated) + 1)},
        )


class DataSorted(Rule):
    """The data come sorted by class.

    What it is: a batch holds few of the classes that the run has seen.

    Why it is bad: each batch pulls the model towards its own classes; it forgets the others meanwhile, and batch statistics are
    those of one class.

    How to be sure: print the labels of some batches.

    How to mend it: `DataLoader(..., shuffle=True)`.

    When to ignore it: with many more classes than samples in a batch; that is taken into account.
    """

    code = "CL505"
    name = "data-sorted"
    severity = "warning"
    needs = ("batch_label_entropy", "label_entropy", "loss_rows")
    healthy = "The classes are spread over the batches."
    passes = True

    measured = 5
    share = 0.6

    def check(self, history: History) -> Alert | None:
        batches, rows = history.values("batch_label_entropy")[-10:], history.values("loss_rows")[-10:]
        entropy = history.last("label_entropy")
        if len(history.values("batch_label_entropy")) < self.measured or entropy is None or len(rows) < self.measured:
            return None
        possible = min(entropy, math.log(max(median(rows), 1)))
        if entropy < 0.5 or median(rows) < 4 or not median(batches) < self.share * possible:
            return None
        return self.alert(
            history,
            cause=(
                f"The labels of a batch have an entropy of {in_words(median(batches))}, those of the run so far one of "
                f"{in_words(entropy)}: "
                "the data come sorted by class."
            ),
            advice="Shuffle: torch.utils.data.DataLoader(dataset, batch_size, shuffle=True).",
            evidence={"entropy of a batch": median(batches), "entropy of the run": entropy, "threshold": self.share * possible},
            confidence=0.9,
        )


class ClassImbalance(Rule):
    """A rare class is given up.

    What it is: one class comes more than ten times as often as another, and hardly any sample of the rare one is recognised.

    Why it is bad: the loss and the accuracy look fine, since the rare class hardly counts in either.

    How to be sure: look at the recall by class.

    How to mend it: `cross_entropy(weight=...)` with weights that fall with the frequency, or a sampler that draws the rare class
    more often.

    When to ignore it: where only the frequent classes matter.

    Source: H. He and E. Garcia, Learning from imbalanced data, 2009.
    """

    code = "CL506"
    name = "class-imbalance"
    severity = "warning"
    needs = ("class_imbalance", "rarest_class_recall", "batch_accuracy", "loss_rows")
    follows_from = ("data-sorted",)
    healthy = "No class is rare and unrecognised."
    passes = True

    ratio = 10.0
    recall = 0.1
    samples = 1000

    def check(self, history: History) -> Alert | None:
        ratio, recall = history.last("class_imbalance"), history.last("rarest_class_recall")
        rows, accuracy = history.values("loss_rows"), median(history.values("batch_accuracy")[-10:])
        if ratio is None or recall is None or not rows or history.step < 40:
            return None
        seen = len(rows) * median(rows[-20:])
        if seen < self.samples or not self.ratio < ratio < 1000 or not recall < self.recall or not accuracy > 0.6:
            return None
        if history.values("label_entropy")[-1] > 3:  # a vocabulary, not classes
            return None
        return self.alert(
            history,
            cause=(
                f"The most frequent class comes {in_words(ratio)} times as often as the rarest, of which {recall:.0%} are "
                "recognised while "
                f"{accuracy:.0%} of all are."
            ),
            advice=(
                f"Weight the classes, cross_entropy(output, labels, weight=w) with w up to {min(ratio, 100):.0f} for the rare "
                "one, or "
                "sample it more often."
            ),
            evidence={"imbalance": ratio, "threshold": self.ratio, "recall of the rarest class": recall, "accuracy": accuracy},
            confidence=0.8,
        )


class BatchTooSmall(Rule):
    """The gradient drowns in its noise, and the loss does not fall.

    What it is: the gradient noise scale is more than ten times the batch size: a single batch says next to nothing about the
    direction that helps on average.

    Why it is bad: training walks at random around a level that a larger batch, or a smaller learning rate, would leave.

    How to be sure: the noise scale stays far above the batch, and the loss has stood still for half of the run.

    How to mend it: a larger batch, accumulation over several, or a lower learning rate, which averages over more batches.

    When to ignore it: late in training the noise scale always grows; where the loss has come down well since the start it is not
    reported.

    Source: S. McCandlish and others, An empirical model of large-batch training, 2018.
    """

    code = "CL508"
    name = "batch-too-small"
    severity = "note"
    needs = ("gradient_noise_scale", "batch_size", "loss")
    follows_from = ("labels-unrelated", "learning-rate-too-high")
    healthy = "The batch is large enough for the noise in it."
    passes = True

    first_step = 100
    measured = 20
    ratio = 10.0

    def check(self, history: History) -> Alert | None:
        scales, sizes = history.values("gradient_noise_scale")[-self.measured :], history.values("batch_size")[-self.measured :]
        if history.step < self.first_step or len(scales) < self.measured or not sizes or sizes[-1] <= 0:
            return None
        noise, size = median([min(scale, 1e9) for scale in scales if not math.isnan(scale)]), sizes[-1]
        losses = finite(history.sample("loss", begin=history.step // 2))
        if len(losses) < 10 or not noise / size > self.ratio:
            return None
        third = len(losses) // 3
        early, late, begin = median(losses[:third]), median(losses[-third:]), median(history.values("loss")[:10])
        if late < early - 0.03 * abs(early) or late < begin - 0.5 * abs(begin):
            return None
        wanted = "several times larger" if noise >= 1e9 else f"of about {_round(noise)}"
        return self.alert(
            history,
            cause=(
                f"The gradient noise scale is {'beyond measure' if noise >= 1e9 else in_words(noise)}, more than "
                f"{self.ratio:.0f} times the batch "
                f"of {size:.0f}, and the loss stands still at {in_words(late)}."
            ),
            advice=f"Use a batch {wanted}, accumulate gradients, or divide the learning rate by 3.",
            evidence={
                "noise scale over batch size": noise / size,
                "threshold": self.ratio,
                "batch size": size,
                **({} if noise >= 1e9 else {"suggested batch size": float(_round(noise))}),
            },
            confidence=0.6,
        )


class Overfitting(Rule):
    """The validation loss rises, or stands still far above the training loss, which still falls.

    What it is: the model begins to learn its training data by heart.

    Why it is bad: from the minimum of the validation loss on, more training makes the model worse.

    How to be sure: the rise is larger than the scatter of the validation loss itself. Where it only stands still, at twenty times
    the training loss or more, it is a note.

    How to mend it: keep the weights of the minimum; more data, augmentation, weight decay, dropout.

    When to ignore it: where the loss rises and the accuracy does not fall, only the model's confidence suffers.

    Source: L. Prechelt, Early stopping, but when?, 1998.
    """

    code = "CL509"
    name = "overfitting"
    severity = "warning"
    needs = ("validation_loss", "loss")
    healthy = "The validation loss is near its minimum."
    passes = True

    validations = 4
    #: Validations for which it must stand still to be reported without a rise, and how far the training loss is below it then.
    standing = 10
    gap = 20.0

    def check(self, history: History) -> Alert | None:
        values = [value for value in history.values("validation_loss")[-400:] if not math.isnan(value)]
        if len(values) < self.validations + 2:
            return None
        best = min(range(len(values)), key=lambda place: values[place])
        since = values[best + 1 :]
        if len(since) < self.validations:
            return self._gap(history, values)
        changes = sorted(abs(later - earlier) for earlier, later in itertools.pairwise(values))
        scatter = changes[len(changes) // 2]
        lowest, recent = values[best], median(since[-3:])
        if not min(since[-self.validations :]) > lowest + max(2 * scatter, 0.05 * abs(lowest)):
            return self._gap(history, values)
        steps = history.steps("validation_loss")
        step = steps[len(steps) - len(values) + best] if len(steps) >= len(values) else steps[0]
        place = history.place("loss", step)
        then, now = median(history.values("loss")[max(place - 10, 0) : place + 10]), median(history.values("loss")[-10:])
        if not now < then:
            return None
        return self.alert(
            history,
            cause=(
                f"The validation loss was lowest, {in_words(lowest)}, at step {step} and is {in_words(recent)} now, while the "
                "training loss "
                f"fell from {in_words(then)} to {in_words(now)}."
            ),
            advice=f"Go back to the weights of step {step}; then more data, augmentation, weight decay or dropout.",
            evidence={
                "lowest validation loss": lowest,
                "validation loss": recent,
                "scatter": scatter,
                "validations since": float(len(since)),
            },
            confidence=0.85,
        )

    def _gap(self, history: History, values: Sequence[float]) -> Alert | None:
        """Find a validation loss that stands still while the training loss has gone on to nearly nothing: learnt by heart."""
        if len(values) < 2 * self.standing:
            return None
        before, recent = min(values[: -self.standing]), min(values[-self.standing :])
        steps = history.steps("validation_loss")
        place = history.place("loss", steps[-self.standing])
        then, now = median(history.values("loss")[max(place - 10, 0) : place + 10]), median(history.values("loss")[-10:])
        if not recent > 0 or not recent > 0.85 * before or not now < min(recent / self.gap, 0.7 * then):
            return None
        return self.alert(
            history,
            cause=(
                f"The validation loss has stood at {in_words(recent)} for {self.standing} validations, while the training loss "
                f"fell from {in_words(then)} to {in_words(now)}: the training data are learnt by heart."
            ),
            advice="Stop here, or take more data, augmentation, weight decay or dropout: more steps change little.",
            evidence={"validation loss": recent, "it was": before, "training loss": now, "threshold": recent / self.gap},
            confidence=0.6,
            severity="note",
        )


def _round(value: float) -> int:
    """Return the next power of two."""
    return int(2 ** math.ceil(math.log2(max(value, 1))))


RULES: Sequence[Rule] = (
    InputsNotNormalised(),
    LabelsUnrelated(),
    ConstantBatch(),
    DataSorted(),
    ClassImbalance(),
    BatchTooSmall(),
    Overfitting(),
)
