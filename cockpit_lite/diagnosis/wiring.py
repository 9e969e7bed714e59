"""Group A, wiring: near-exact invariants of a training loop, without tuned thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.wording import in_words, listed_names


class GradientsNotZeroed(Rule):
    """The gradients of the steps before are still in `.grad` and are added to that of this step.

    What it is: `backward()` adds to `.grad`. Without `optimizer.zero_grad()` before it, the optimizer steps along the sum of all
    gradients since the start.

    Why it is bad: the steps grow with the number of steps, along directions that belong to weights long gone. It looks like a
    learning rate that is too high, and like a momentum of one.

    How to be sure: print `next(model.parameters()).grad` before `backward()`: it should be None or zero.

    How to mend it: call `optimizer.zero_grad()` once in every step, before `backward()` or right after `step()`.

    When to ignore it: never. Accumulation over several backward passes before one `step()` is not reported.
    """

    code = "CL101"
    name = "gradients-not-zeroed"
    severity = "error"
    needs = ("gradient_left_over",)
    healthy = "Every step began without the gradient of the one before."
    passes = True

    #: Left over, relative to the gradient used. Zeroed gradients leave exactly 0.
    share = 1e-3

    def check(self, history: History) -> Alert | None:
        steps, shares = history.steps("gradient_left_over"), history.values("gradient_left_over")
        # What is there before the very first step may come from a trial call before training.
        if len(shares) < 2 or steps[-1] < 1 or not min(shares[-1], shares[-2]) > self.share:
            return None
        return self.alert(
            history,
            cause=(
                f"The gradient of the steps before was still there when step {steps[-1]} began, {in_words(shares[-1])} times as "
                "long as the one that was then used: the optimizer steps along the sum of all gradients so far."
            ),
            advice="Call optimizer.zero_grad() once in every step, before loss.backward().",
            evidence={"left over, relative to the gradient used": shares[-1], "threshold": self.share},
        )


class OptimizerNotStepping(Rule):
    """Gradients are computed, and the weights do not change.

    What it is: `optimizer.step()` is not called, or it is called and moves nothing: the parameters it holds are copies, or their
    learning rate does not reach them.

    Why it is bad: nothing is learnt.

    How to be sure: compare a weight before and after the step.

    How to mend it: call `optimizer.step()` after `backward()`, once in every step; make the optimizer after the model was moved,
    wrapped or loaded, from `model.parameters()`.

    When to ignore it: steps that a gradient scaler skips and a learning rate of zero in a warm-up are not reported.
    """

    code = "CL102"
    name = "optimizer-not-stepping"
    severity = "error"
    needs = ("loss",)
    healthy = "The weights changed when the optimizer stepped."
    passes = True

    #: Backward passes without a step, in a run that has not seen a step yet; and in one that has.
    backwards_at_first = 2
    backwards_later = 20
    #: A step of a smaller learning rate may drown in rounding.
    smallest_rate = 1e-7

    def check(self, history: History) -> Alert | None:
        missing = history.last("backwards_without_step")
        if missing is not None:
            step = history.steps("backwards_without_step")[-1]
            if step >= history.step and missing >= (self.backwards_at_first if step == 0 else self.backwards_later):
                return self.alert(
                    history,
                    cause=f"There were {missing:.0f} backward passes since the last step, and no optimizer used their gradients.",
                    advice="Call optimizer.step() after loss.backward(), once in every step.",
                    evidence={"backward passes without a step": missing},
                )
        sizes, norms = history.values("update_size")[-2:], history.values("grad_norm")[-2:]
        rate = history.last("learning_rate")
        if len(sizes) < 2 or len(norms) < 2 or rate is None or max(sizes) > 0 or not min(norms) > 0 or rate < self.smallest_rate:
            return None
        return self.alert(
            history,
            cause=(
                f"The optimizer stepped with a learning rate of {rate:.3g} and a gradient of norm {in_words(norms[-1])}, and not "
                "one weight changed on the last 2 measured steps."
            ),
            advice=(
                "Make the optimizer from model.parameters() after the model was moved, wrapped or loaded, and let nothing put "
                "the weights back after the step."
            ),
            evidence={"size of the update": sizes[-1], "gradient norm": norms[-1], "learning rate": rate},
        )


class ParameterNotOptimized(Rule):
    """Parameters require a gradient and get one, but no optimizer holds them.

    What it is: the optimizer was made from some of the parameters only, or before others were added or replaced.

    Why it is bad: these parameters keep the values they were initialised with, and the net learns around them.

    How to be sure: the named parameters have a `.grad` and the values of the first step.

    How to mend it: make the optimizer from `model.parameters()`, after the model is complete; or, if these are to stay as they
    are, say so with `requires_grad_(False)`, which also saves their gradients.

    When to ignore it: a second optimizer that takes fewer steps holds them: hand both to the cockpit.
    """

    code = "CL103"
    name = "parameter-not-optimized"
    severity = "warning"
    needs = ("parameters_not_optimized",)
    healthy = "Every parameter that gets a gradient is held by an optimizer."

    def check(self, history: History) -> Alert | None:
        counts, steps = history.values("parameters_not_optimized"), history.steps("parameters_not_optimized")
        # At the second measured step: another optimizer that nobody has shown to the cockpit has changed its parameters by then.
        if len(counts) < 2 or steps[-1] < 1 or not min(counts[-1], counts[-2]) > 0:
            return None
        names = tuple(history.layers("parameters_not_optimized"))
        return self.alert(
            history,
            where=names,
            cause=(
                f"No optimizer holds {counts[-1]:.0f} of the parameters that get a gradient: {listed_names(names)}. "
                f"{'It keeps its' if counts[-1] == 1 else 'They keep their'} first values."
            ),
            advice=(
                "Make the optimizer from model.parameters() after the model is complete, or call requires_grad_(False) on what "
                "is to stay as it is."
            ),
            evidence={"parameters in no optimizer": counts[-1]},
        )


class FrozenParameter(Rule):
    """A weight in the midst of trained ones is frozen, and still random.

    What it is: `requires_grad` is False on a weight whose values are as torch draws them for a new layer, so nobody has trained
    it before. It was frozen by accident: by a `requires_grad_(False)` on too large a part of the model, or by its name.

    Why it is bad: the layer stays a random projection.

    How to be sure: look at `requires_grad` of the named weight, and where it is set.

    How to mend it: `parameter.requires_grad_(True)`, before the optimizer is made.

    When to ignore it: random features and other weights that are frozen on purpose. A frozen part that is larger than the trained
    one (a backbone, a base that is adapted) and weights that were trained before are not reported.
    """

    code = "CL104"
    name = "frozen-parameter"
    severity = "warning"
    needs = ("parameters_frozen",)
    healthy = "No weight is frozen that was never trained."

    def check(self, history: History) -> Alert | None:
        count = history.last("parameters_frozen")
        if not count:
            return None
        names = tuple(history.layers("parameters_frozen"))
        return self.alert(
            history,
            where=names,
            cause=(
                f"Still as torch initialised {'them' if count > 1 else 'it'}, and frozen: {count:.0f} "
                f"weight{'s' if count > 1 else ''}, {listed_names(names)}."
            ),
            advice="Set requires_grad_(True) on it before the optimizer is made, or ignore this if it is random on purpose.",
            evidence={"frozen weights with their first values": count},
            confidence=0.8,
        )


class GraphCut(Rule):
    """The gradient stops between two modules: nothing in front of the cut is trained.

    What it is: `detach()`, `.data`, `.item()`, `torch.no_grad()`, a conversion to numpy or an `argmax` between two modules. The
    forward pass works as ever, the backward pass ends there.

    Why it is bad: everything in front of the cut keeps its first values, although it is in the optimizer.

    How to be sure: `.grad` is None in all modules up to the one named, and set behind it.

    How to mend it: look at what happens between the two modules that are named.

    When to ignore it: where a gradient is stopped on purpose; then `requires_grad_(False)` on the part in front of it says so and
    saves memory.
    """

    code = "CL105"
    name = "graph-cut"
    severity = "error"
    needs = ("graph_cut",)
    healthy = "The gradient reaches the first modules that the model calls."

    def check(self, history: History) -> Alert | None:
        counts, steps = history.values("graph_cut"), history.steps("graph_cut")
        if len(counts) < 2 or steps[-1] < 1 or not min(counts[-1], counts[-2]) > 0:
            return None
        boundary = tuple(history.layers("graph_cut"))
        between = f"between {boundary[0]} and {boundary[1]}" if len(boundary) > 1 else "inside the model"
        return self.alert(
            history,
            where=boundary,
            cause=f"The gradient stops {between}: {counts[-1]:.0f} parameters in front of it get no gradient; behind it all do.",
            advice=f"Look for detach(), .data, .item(), numpy or torch.no_grad() {between} and remove it.",
            evidence={"parameters without a gradient": counts[-1]},
            confidence=0.95,
        )


class TiedWeightsApart(Rule):
    """Two weights that were one are two now, and train apart.

    What it is: an output layer shares its weight with the embedding. A copy in between (`clone()`, `deepcopy` of a part, a move
    to another device, `load_state_dict(assign=True)`, an assignment to `.data`) makes two of it.

    Why it is bad: the model has more parameters than meant, and neither copy gets the gradient of both uses.

    How to be sure: `model.head.weight is model.embedding.weight` is False.

    How to mend it: tie them again, `model.head.weight = model.embedding.weight`, and make the optimizer after that.

    When to ignore it: where the two began equal on purpose and are to part.
    """

    code = "CL106"
    name = "tied-weights-apart"
    severity = "warning"
    needs = ("tied_weights_apart",)
    healthy = "Weights that share their memory still do."

    def check(self, history: History) -> Alert | None:
        count = history.last("tied_weights_apart")
        if not count:
            return None
        names = tuple(history.layers("tied_weights_apart"))
        return self.alert(
            history,
            where=names,
            cause=(
                f"Began as the same as another one and {'are' if count > 1 else 'is'} separate now: {count:.0f} "
                f"weight{'s' if count > 1 else ''}, {listed_names(names)}."
            ),
            advice="Tie them again, for example model.head.weight = model.embedding.weight, before the optimizer is made.",
            evidence={"weights that came apart": count},
            confidence=0.95,
        )


class TrainingInEvalMode(Rule):
    """The model trains in eval mode: no dropout, and batch normalisation does not see the batch.

    What it is: `model.eval()` before validation, without `model.train()` after it, or a model that was loaded in eval mode.

    Why it is bad: no regularisation; batch normalisation keeps the statistics of its start.

    How to be sure: print `model.training` before the forward pass.

    How to mend it: `model.train()` at the start of every epoch.

    When to ignore it: when a whole pretrained model is fine-tuned with fixed statistics on purpose. Frozen batch normalisation in
    a model that is otherwise in train mode is not reported.
    """

    code = "CL107"
    name = "training-in-eval-mode"
    severity = "warning"
    needs = ("modules_in_eval_mode",)
    healthy = "Dropout and batch normalisation were in train mode in training."
    passes = True

    def check(self, history: History) -> Alert | None:
        counts = history.values("modules_in_eval_mode")[-2:]
        if len(counts) < 2 or not min(counts) > 0:
            return None
        names = tuple(history.layers("modules_in_eval_mode"))
        return self.alert(
            history,
            where=names,
            cause=(
                f"The model trains in eval mode: on the last 2 measured steps {listed_names(names)} did nothing of what "
                f"{'it does' if len(names) == 1 else 'they do'} in training."
            ),
            advice="Call model.train() before the training loop, and again after every validation.",
            evidence={"modules in eval mode": counts[-1]},
        )


class ValidatingInTrainMode(Rule):
    """The model is called without gradients in train mode: dropout is on, and batch normalisation learns from what it sees.

    What it is: validation without `model.eval()`.

    Why it is bad: the validation result is noisy and too low, and the running statistics of batch normalisation take in the
    validation data.

    How to be sure: print `model.training` in the validation loop.

    How to mend it: `model.eval()` before it, `model.train()` after it.

    When to ignore it: Monte-Carlo dropout. Calls without gradients in every step (a teacher, a rollout) are not reported.
    """

    code = "CL108"
    name = "validating-in-train-mode"
    severity = "warning"
    needs = ("forwards_in_train_mode",)
    healthy = "No call without gradients came in train mode between the steps."

    def check(self, history: History) -> Alert | None:
        counts = history.values("forwards_in_train_mode")
        if len(counts) < 2 or not counts[-1] > 0 or min(counts[:50]) > 0:
            return None
        names = tuple(history.layers("forwards_in_train_mode"))
        return self.alert(
            history,
            where=names,
            cause=f"Before step {history.step} the model was called without gradients in train mode: {listed_names(names)}.",
            advice="Call model.eval() before validation and model.train() after it.",
            evidence={"modules in train mode": counts[-1]},
            confidence=0.9,
        )


class ClippingBeforeUnscaling(Rule):
    """The gradient is clipped while a gradient scaler's factor is still in it.

    What it is: under mixed precision the loss, and so the gradient, is multiplied by a scale of some thousands. Clipped to a norm
    of 1 in that state and divided by the scale afterwards, a norm of 1 / scale is left.

    Why it is bad: every step is shorter than meant by the scale; SGD does not move.

    How to be sure: the norm of the gradient that the optimizer uses, times the scale, is the clipping threshold.

    How to mend it: `scaler.unscale_(optimizer)` before `clip_grad_norm_`.

    When to ignore it: never.

    Source: PyTorch, Automatic mixed precision examples, gradient clipping.
    """

    code = "CL109"
    name = "clipping-before-unscaling"
    severity = "error"
    needs = ("clip_ratio", "loss_scale", "grad_norm")
    healthy = "The gradient was unscaled before it was clipped."
    passes = True

    #: Clipped to less than this share of itself, and to a norm that a person would write, in the units of the scaled loss.
    ratio = 0.05
    thresholds = (1e-3, 1e3)

    def check(self, history: History) -> Alert | None:
        ratios, scale = history.values("clip_ratio")[-2:], history.last("loss_scale")
        norm = history.last("grad_norm")
        if len(ratios) < 2 or scale is None or norm is None or not scale > 100 or not 0 < max(ratios) < self.ratio:
            return None
        used = norm * ratios[-1]
        if not self.thresholds[0] < used * scale < self.thresholds[1]:
            return None
        return self.alert(
            history,
            cause=(
                f"The optimizer uses a gradient of norm {in_words(used)}, {in_words(used * scale)} divided by the scaler's "
                f"{in_words(scale)}, where backward left one of {in_words(norm)}: it was clipped before it was unscaled."
            ),
            advice="Call scaler.unscale_(optimizer) before torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
            evidence={"clip ratio": ratios[-1], "loss scale": scale, "gradient norm": norm, "norm used": used},
            confidence=0.9,
        )


class BatchNormTooFewValues(Rule):
    """A batch normalisation takes mean and variance of too few values.

    What it is: a channel is normalised over the samples of the batch and the positions of the image. In a small batch at a small
    resolution these are a handful of numbers.

    Why it is bad: their mean and variance are mostly chance. The net trains in that noise, and the running statistics that it is
    evaluated with are others.

    How to be sure: outputs in train and in eval mode on the same batch differ widely.

    How to mend it: a larger batch, or `nn.GroupNorm`, which does not look across samples.

    When to ignore it: for the last, smaller batch of an epoch; `drop_last=True` in the loader avoids it.

    Source: Y. Wu and K. He, Group Normalization, 2018.
    """

    code = "CL110"
    name = "batch-norm-too-few-values"
    severity = "warning"
    needs = ("batch_norm_values",)
    healthy = "Batch normalisation saw enough values a channel."
    passes = True

    fewest = 8

    def check(self, history: History) -> Alert | None:
        counts = history.values("batch_norm_values")[-2:]
        if len(counts) < 2 or not all(0 < count < self.fewest for count in counts):
            return None
        layers = history.layers("batch_norm_values")
        names = tuple(name for name, count in layers.items() if count < self.fewest)
        return self.alert(
            history,
            where=names,
            cause=(
                f"Each channel is normalised over {counts[-1]:.0f} values in {listed_names(names)}; "
                f"below {self.fewest} mean and variance are chance."
            ),
            advice=f"Raise the batch size by a factor of {math.ceil(16 / max(counts[-1], 1))} or more, or use nn.GroupNorm.",
            evidence={"values a channel": counts[-1], "threshold": float(self.fewest)},
        )


RULES: Sequence[Rule] = (
    GradientsNotZeroed(),
    OptimizerNotStepping(),
    ParameterNotOptimized(),
    FrozenParameter(),
    GraphCut(),
    TiedWeightsApart(),
    TrainingInEvalMode(),
    ValidatingInTrainMode(),
    ClippingBeforeUnscaling(),
    BatchNormTooFewValues(),
)
