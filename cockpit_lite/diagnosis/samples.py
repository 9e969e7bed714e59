"""Group E, single samples: labels that are wrong, and samples on both sides of a split."""

from __future__ import annotations

from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median


class LabelsNoisy(Rule):
    """Some of the labels are wrong.

    What it is: the net predicts most samples right, and the labels of the others stand anywhere among its guesses. A hard sample
    is its second or third guess; a label that was drawn by lot, or comes from another sample, is its last guess as often as its
    third.

    Why it is bad: the net ends by learning the wrong labels by heart, and gets worse on everything else meanwhile.

    How to be sure: look at the samples that `hardest_by_loss` names step after step, with their labels.

    How to mend it: correct or drop them; else a loss that does not chase them, `cross_entropy(label_smoothing=0.1)`, and an early
    stop.

    When to ignore it: where labels are noisy by nature, such as clicks, the share is worth knowing and nothing to mend.

    Source: C. Northcutt, L. Jiang, I. Chuang, Confident learning, 2021; D. Arpit and others, 2017.
    """

    code = "CL503"
    name = "labels-noisy"
    severity = "note"
    needs = ("label_noise", "batch_accuracy", "loss_rows")
    follows_from = ("class-imbalance", "data-sorted", "labels-unrelated", "target-not-shifted")
    healthy = "The labels that the net gets wrong are near guesses, not labels drawn by lot."

    window = 20
    first_step = 100
    share = 0.03
    #: Of the errors; a task that is hard has fewer such among them.
    of_errors = 0.4
    accuracy = 0.5
    #: Such labels that have to be seen, so that it is no chance.
    fewest = 10

    def check(self, history: History) -> Alert | None:
        shares = history.values("label_noise")[-2 * self.window :]
        accuracies = finite(history.values("batch_accuracy")[-self.window :])
        if history.step < self.first_step or len(shares) < 2 * self.window or len(accuracies) < self.window:
            return None
        before, now = _mean(shares[: self.window]), _mean(shares[self.window :])
        accuracy, rows = _mean(accuracies), median(history.values("loss_rows")[-self.window :])
        if not accuracy > self.accuracy or not now > self.share or not 0.7 * before < now < 1:
            return None
        part = now / max(1 - accuracy, 1e-9)
        if not part > self.of_errors or not now / 2 * rows * self.window > self.fewest:
            return None
        return self.alert(
            history,
            cause=(
                f"About {now:.0%} of the labels are wrong: {accuracy:.0%} are predicted right, and among the others the label "
                "stands "
                "anywhere between the second guess and the last."
            ),
            advice=(
                "Look at the samples that hardest_by_loss names, correct or drop them, or use cross_entropy(label_smoothing="
                f"{min(max(round(now, 2), 0.05), 0.2)}) and stop early."
            ),
            evidence={"share of wrong labels": now, "threshold": self.share, "accuracy": accuracy, "share of the errors": part},
            confidence=0.7,
        )


class ValidationLeak(Rule):
    """Samples of the validation set are in the training set, too.

    What it is: between the steps the model was called without gradients on samples of which some, not all, are bit for bit
    samples that it was trained on.

    Why it is bad: the validation result is too good by what the model knows by heart; overfitting cannot be seen in it.

    How to be sure: count the samples that both sets share.

    How to mend it: remove duplicates, then split anew; by person, patient or document where samples belong together.

    When to ignore it: a second look at the training set after every epoch is not reported, unless it is logged as validation.

    Source: S. Kaufman and others, Leakage in data mining, 2012; B. Barz, J. Denzler, Do we train on test data?, 2020.
    """

    code = "CL507"
    name = "validation-leak"
    severity = "warning"
    needs = ("validation_overlap",)
    healthy = "No sample of the calls without gradients was trained on before."

    share = 0.01
    fewest = 3
    #: Almost all of them: somebody looks at the training set again.
    all_of_them = 0.9
    #: Calls without gradients at most of the steps are no validation: a teacher, a rollout.
    often = 0.5

    def check(self, history: History) -> Alert | None:
        overlaps, steps = history.values("validation_overlap"), history.steps("validation_overlap")
        if not overlaps or steps[-1] != history.step or not overlaps[-1] > self.share:
            return None
        counts = history.values("validation_samples")
        if len(counts) > 4 and sum(count > 0 for count in counts[-50:]) > self.often * len(counts[-50:]):
            return None
        overlap, count = overlaps[-1], counts[-1] if counts else 0.0
        if not overlap * count >= self.fewest or (overlap > self.all_of_them and "validation_loss" not in history):
            return None
        return self.alert(
            history,
            cause=(
                f"Before step {history.step} the model was called without gradients on {count:.0f} samples, and was trained on "
                "at least "
                f"{overlap:.1%} of them before: training and validation share samples."
            ),
            advice=(
                "Remove duplicates and split again: torch.utils.data.random_split(dataset, [0.9, 0.1]) on unique samples, by "
                "person "
                "or document where they belong together."
            ),
            evidence={"share in both": overlap, "threshold": self.share, "samples": count, "in both": in_whole(overlap * count)},
            confidence=0.95 if overlap < self.all_of_them else 0.7,
        )


def in_whole(value: float) -> float:
    """Return a count as it is written."""
    return float(round(value))


def _mean(values: Sequence[float]) -> float:
    numbers = finite(values)
    return sum(numbers) / len(numbers) if numbers else float("nan")


RULES: Sequence[Rule] = (LabelsNoisy(), ValidationLeak())
