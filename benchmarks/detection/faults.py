"""How a training is broken: every fault in three severities, where it can occur, and from which step on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler

from benchmarks.detection.tasks import Batch, Task, reconstruction

ACTIVATIONS = (nn.ReLU, nn.Tanh)
#: Samples at the end of the data that are kept for validation.
HELD_OUT = 64


@dataclass
class Setup:
    """Everything that one training is made of; a fault changes some of it.

    Attributes:
        task: The architecture and its data.
        kind: Of the optimizer.
        model: The model.
        inputs: All inputs.
        targets: All targets.
        loss: Of output and targets.
        order: Indices of a step's batch.
        rate: Learning rate.
        decay: Weight decay.
        parameters: Those that the optimizer is given; None: all.
        zero: Whether gradients are zeroed.
        clip: Norm the gradient is clipped to.
        scheduler: Makes one, stepped every batch.
        training: Whether the model is in train mode.
        validates: ``"eval"``, ``"train"``, or "" for no validation.
        every_step: Called before each step's forward with setup, optimizer and step.
        micro_batches: Parts of a batch that have a backward pass of their own.
        steps: Whether the optimizer steps.
        scaler: Scales the loss, as for half precision.
        unscales: Whether it takes its scale back before the gradient is clipped.
        places: Names of the modules and parameters that a fault has broken, for those that have a place.
    """

    task: Task
    kind: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    order: Callable[[int], Tensor]
    rate: float
    decay: float = 0.0
    parameters: list[nn.Parameter] | None = None
    zero: bool = True
    clip: float | None = None
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    training: bool = True
    validates: str = ""
    every_step: list[Callable[[Setup, Optimizer, int], None]] = field(default_factory=list)
    micro_batches: int = 1
    steps: bool = True
    scaler: torch.amp.GradScaler | None = None
    unscales: bool = True
    places: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task, kind: str) -> Setup:
        """Return a healthy training."""
        inputs, targets = task.data()
        size = task.batch_size
        return cls(
            task,
            kind,
            task.model(),
            inputs,
            targets,
            task.loss,
            lambda step: torch.randint(len(inputs) - HELD_OUT, (size,)),
            task.rates[kind],
        )

    def optimizer(self) -> Optimizer:
        """Return the optimizer."""
        parameters = list(self.model.parameters()) if self.parameters is None else self.parameters
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if self.kind == "adamw":
            return AdamW(parameters, lr=self.rate, weight_decay=self.decay or 0.01)
        if self.kind == "adam":
            return Adam(parameters, lr=self.rate, weight_decay=self.decay)
        return SGD(parameters, lr=self.rate, momentum=0.9 if self.kind == "momentum" else 0.0, weight_decay=self.decay)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        chosen = self.order(step)
        return self.inputs[chosen], self.targets[chosen]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: Of the alert that must name it.
        severities: From mild to strong.
        apply: Breaks a setup.
        where: Whether it can occur there.
        step: From which step on; the run up to there is healthy.
        steps: Steps of the run after that.
        exact: Whether it counts without a worse result.
        also: Names that count as the right cause, too: the same fault by another of its names.
        tuned: Learning rate that goes with the fault, over the usual one; a healthy training with it is what repairs are
            measured by.
    """

    name: str
    severities: tuple[Any, ...]
    apply: Callable[[Setup, Any], None]
    where: Callable[[Setup], bool] = lambda setup: True
    step: int = 0
    steps: int = 60
    exact: bool = False
    also: tuple[str, ...] = ()
    tuned: float = 1.0


def _classifies(setup: Setup) -> bool:
    return setup.task.name in ("mlp", "conv_batch_norm", "lstm", "residual", "transformer")


def _on(*names: str) -> Callable[[Setup], bool]:
    return lambda setup: setup.task.name in names


_with_layers = _on("mlp", "transformer", "residual", "autoencoder")


#: Whose model is replaced by a deep one: of the test part other depths, seeds and optimizers.
_deep_ones = _on("mlp", "residual")


def _images(setup: Setup) -> bool:
    return setup.task.name != "language_model"


def _along_the_gradient(setup: Setup) -> bool:
    return setup.kind in ("sgd", "momentum")


def _descends(setup: Setup) -> bool:
    return setup.kind == "sgd" and setup.task.name in ("mlp", "residual")


def _sums(setup: Setup) -> bool:
    return setup.kind == "sgd" and _classifies(setup)


def _names(model: nn.Module, parameters: list[nn.Parameter]) -> tuple[str, ...]:
    return tuple(name for name, known in model.named_parameters() if any(known is parameter for parameter in parameters))


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def _modes(setup: Setup) -> bool:
    kinds = (nn.Dropout, nn.modules.batchnorm._BatchNorm)
    return any(isinstance(module, kinds) and getattr(module, "p", 1) for module in setup.model.modules())


def _sequential(setup: Setup) -> bool:
    return isinstance(setup.model, nn.Sequential)


def _not_optimized(setup: Setup, severity: int) -> None:
    weights = list(setup.model.parameters())
    left_out = {0: weights[:2], 1: weights[-1:], 2: weights[: len(weights) // 2]}[severity]
    setup.parameters = [parameter for parameter in weights if not any(parameter is other for other in left_out)]
    setup.places = _names(setup.model, left_out)


def _frozen(setup: Setup, severity: int) -> None:
    fresh = [
        module for module in setup.model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.numel() >= 256
    ]
    total = sum(parameter.numel() for parameter in setup.model.parameters())
    small = [module for module in fresh if module.weight.numel() < 0.4 * total]
    chosen = small[severity % len(small)].weight.requires_grad_(False)
    setup.places = _names(setup.model, [chosen])


def _cut(setup: Setup, severity: int) -> None:
    assert isinstance(setup.model, nn.Sequential)
    owners = [place for place, module in enumerate(setup.model) if next(module.parameters(), None) is not None]
    place = owners[min(1 + severity, len(owners) - 1)]

    class Cut(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.detach()

    setup.model = nn.Sequential(*setup.model[:place], Cut(), *setup.model[place:])
    before = [owner for owner in owners if owner < place][-1]
    setup.places = tuple(str(number) for number in range(before, place + 2))  # where it lies between


def _apart(setup: Setup, severity: int) -> None:
    assert hasattr(setup.model, "head")
    setup.model.head.weight = nn.Parameter(setup.model.tokens.weight.detach().clone())  # type: ignore[union-attr]
    setup.places = ("head", "tokens")


def _forget_zero(setup: Setup, severity: int) -> None:
    setup.zero = False


def _eval(setup: Setup, severity: int) -> None:
    setup.training = False


def _validate_in_train(setup: Setup, severity: int) -> None:
    setup.validates = "train"


def _few_values(setup: Setup, size: int) -> None:
    count = len(setup.inputs)
    assert isinstance(setup.model, nn.Sequential)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))
    setup.model = nn.Sequential(*setup.model[:9], *head)
    setup.places = ("12",)
    setup.order = lambda step: torch.randint(count, (size,))


def _softmax(setup: Setup, severity: int) -> None:
    loss = setup.loss
    if severity == 0:
        setup.model = nn.Sequential(setup.model, nn.Softmax(-1))
    elif severity == 1:
        setup.loss = lambda output, targets: loss(output.softmax(-1), targets)
    else:
        setup.loss = lambda output, targets: loss(F.softmax(output.float(), -1) * 1.0, targets)


def _nll(setup: Setup, severity: int) -> None:
    if severity:
        setup.model = nn.Sequential(setup.model, nn.Softmax(-1))
    setup.loss = F.nll_loss


def _bounded(setup: Setup, severity: int) -> None:
    setup.model = nn.Sequential(setup.model, (nn.ReLU(), nn.Sigmoid(), nn.Tanh())[severity])


def _summed(setup: Setup, factor: float) -> None:
    loss = setup.loss
    setup.loss = lambda output, targets: loss(output, targets) * len(targets)
    setup.rate *= factor


def _large_head(setup: Setup, factor: float) -> None:
    last = [module for module in setup.model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(factor)


def _not_shifted(setup: Setup, severity: int) -> None:
    setup.targets = setup.inputs


def _padded(setup: Setup, share: float) -> None:
    setup.inputs, setup.targets = setup.inputs.clone(), setup.targets.clone()
    length = setup.inputs.shape[1]
    lengths = length - (torch.rand(len(setup.inputs)) * 2 * share * length).long().clamp(max=length - 4)
    beyond = torch.arange(length)[None] >= lengths[:, None]
    setup.inputs[beyond], setup.targets[beyond] = 0, 0


def _scaled(setup: Setup, factor: float) -> None:
    with torch.no_grad():
        for weight in _weights(setup.model):
            weight.mul_(factor)


def _constant(setup: Setup, value: float) -> None:
    assert isinstance(setup.model, nn.Sequential)
    layers = [module for module in setup.model if isinstance(module, (nn.Linear, nn.Conv2d))]
    for layer in layers[:-1]:
        nn.init.constant_(layer.weight, value)
        nn.init.constant_(layer.bias, 0.0)
    setup.places = _names(setup.model, [layer.weight for layer in layers[:-1]])


def _deep(activation: type[nn.Module], factor: float) -> Callable[[Setup, Any], None]:
    def apply(setup: Setup, depth: Any) -> None:
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 48), activation()]
        for _ in range(depth):
            layers += [nn.Linear(48, 48), activation()]
        setup.model = nn.Sequential(*layers, nn.Linear(48, 10))
        with torch.no_grad():
            for weight in _weights(setup.model)[1:-1]:
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
                weight.mul_(factor)

    return apply


def _dead(setup: Setup, bias: float) -> None:
    assert isinstance(setup.model, nn.Sequential)
    for place, module in enumerate(setup.model):
        if isinstance(module, nn.Linear) and module.weight.shape[0] == 48:
            nn.init.constant_(module.bias, bias)
            setup.places = (str(place), str(place + 1))  # the layer and its activation


def _saturated(setup: Setup, factor: float) -> None:
    with torch.no_grad():
        for module in setup.model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(factor)


def _rate(setup: Setup, factor: float) -> None:
    setup.rate *= factor


def _rate_at(setup: Setup, factor: float) -> None:
    def change(setup: Setup, optimizer: Optimizer, step: int) -> None:
        if step == MIDDLE:
            for group in optimizer.param_groups:
                group["lr"] *= factor

    setup.every_step.append(change)


def _labels_at(setup: Setup, share: float) -> None:
    def change(setup: Setup, optimizer: Optimizer, step: int) -> None:
        if step == MIDDLE:
            setup.targets = setup.targets[torch.randperm(len(setup.targets))]

    setup.every_step.append(change)


def _forget_zero_at(setup: Setup, severity: int) -> None:
    def change(setup: Setup, optimizer: Optimizer, step: int) -> None:
        if step >= MIDDLE:
            setup.zero = False

    setup.every_step.append(change)


def _broken_sample(setup: Setup, severity: int) -> None:
    def change(setup: Setup, optimizer: Optimizer, step: int) -> None:
        if step == MIDDLE:
            setup.inputs = setup.inputs.clone()
            setup.inputs[:] = (torch.nan, torch.inf, -torch.inf)[severity]

    setup.every_step.append(change)


def _decay(setup: Setup, decay: float) -> None:
    setup.decay = decay * (30 if setup.kind == "adamw" else 1)


def _clip(setup: Setup, norm: float) -> None:
    setup.clip = norm


def _schedule(setup: Setup, severity: int) -> None:
    setup.scheduler = (
        lambda optimizer: ExponentialLR(optimizer, 0.8),
        lambda optimizer: ExponentialLR(optimizer, 0.6),
        lambda optimizer: CosineAnnealingLR(optimizer, 10),
    )[severity]


def _unscaled(setup: Setup, severity: int) -> None:
    scales = torch.logspace(-2, 2, setup.inputs.shape[-1])
    setup.inputs = (setup.inputs + 30, setup.inputs * 200, setup.inputs * scales)[severity]
    setup.rate *= TUNED


#: Of inputs that are far too large: with the usual one nothing would be left to look at.
TUNED = 1 / 30


def _shuffled(setup: Setup, share: float) -> None:
    setup.targets = setup.targets[torch.randperm(len(setup.targets))]


def _same_batch(setup: Setup, severity: int) -> None:
    chosen = torch.randint(len(setup.inputs), (setup.task.batch_size,))
    setup.order = lambda step: chosen


def _sorted(setup: Setup, severity: int) -> None:
    order, size = setup.targets.argsort(), setup.task.batch_size
    if severity:
        order = order[(torch.arange(len(order)) + torch.randint(0, 40 * severity, (len(order),))).argsort()]
    setup.order = lambda step: order[(step * size) % (len(order) - size) :][:size]


def _imbalanced(setup: Setup, ratio: int) -> None:
    rare, rest = torch.nonzero(setup.targets == 8)[:, 0], torch.nonzero(setup.targets == 1)[:, 0]
    size = setup.task.batch_size

    def order(step: int) -> Tensor:
        batch = rest[torch.randint(len(rest), (size,))]
        if step % max(ratio // size, 1) == 0:
            batch[0] = rare[torch.randint(len(rare), ())]
        return batch

    setup.order = order


def _overfit(setup: Setup, size: int) -> None:
    setup.validates = "eval"
    setup.order = lambda step: torch.randint(size, (min(setup.task.batch_size, size),))
    setup.rate *= 2


def _noisy(setup: Setup, share: float) -> None:
    wrong = torch.rand(len(setup.targets)) < share
    setup.targets = torch.where(wrong, torch.randint(10, setup.targets.shape), setup.targets)


def _leaked(setup: Setup, share: float) -> None:
    """Let a share of the batch come from what is validated on."""
    setup.validates = "eval"
    count, size = len(setup.inputs) - HELD_OUT, setup.task.batch_size
    own = setup.order

    def order(step: int) -> Tensor:
        batch = own(step)
        leaked = torch.rand(size) < share
        batch[leaked] = count + torch.randint(HELD_OUT // 2, (int(leaked.sum()),))
        return batch

    setup.order = order


class _Branch(nn.Module):
    """Adds a branch that is as large as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(48, 96), nn.Linear(96, 48)
        nn.init.kaiming_normal_(self.inner.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.outer.weight, nonlinearity="linear")

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.outer(self.inner(hidden).relu())


def _growing(setup: Setup, blocks: int) -> None:
    setup.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *[_Branch() for _ in range(blocks)], nn.Linear(48, 10))
    setup.places = tuple(str(2 + block) for block in range(blocks))


def _not_stepping(setup: Setup, severity: int) -> None:
    setup.steps = False


def _scaled_loss(setup: Setup, scale: float) -> None:
    setup.scaler, setup.clip = torch.amp.GradScaler("cpu", init_scale=scale), 1.0


def _clipped_scaled(setup: Setup, scale: float) -> None:
    _scaled_loss(setup, scale)
    setup.unscales = False


def _overflowing(setup: Setup, severity: int) -> None:
    """Let a part of the backward pass go through half precision, where it overflows at any scale."""
    _scaled_loss(setup, 2.0**16)
    loss = setup.loss

    def through_half(output: Tensor, targets: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda gradient: (gradient * 1e12).half().to(gradient))
        return loss(output, targets)

    setup.loss = through_half


class _Recurrent(nn.Module):
    """Reads an image pixel by pixel, with recurrent weights that are too large."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.head = nn.RNN(1, 32, nonlinearity="relu", batch_first=True), nn.Linear(32, 10)
        nn.init.orthogonal_(self.layer.weight_hh_l0, gain=factor)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images.flatten(1)[..., None])[0][:, -1])


def _recurrent(setup: Setup, factor: float) -> None:
    setup.model = _Recurrent(factor)
    setup.places = ("layer.weight_hh_l0",)


class _Offset(nn.Module):
    """Moves what the model reads far from zero."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, images: Tensor) -> Tensor:
        return images + self.offset


def _off_centre(setup: Setup, offset: float) -> None:
    """Let the net read inputs far from zero, at the largest learning rate that does not diverge."""
    setup.model = nn.Sequential(
        _Offset(offset),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.LeakyReLU(0.2),
        nn.Linear(32, 32),
        nn.LeakyReLU(0.2),
        nn.Linear(32, 10),
    )
    setup.rate = 1.6 / offset**2


def _sharp_heads(setup: Setup, factor: float) -> None:
    found = [(name, module) for name, module in setup.model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    with torch.no_grad():
        for _, module in found:
            module.in_proj_weight[: 2 * module.embed_dim].mul_(factor)
    setup.places = tuple(name for name, _ in found)


#: Step at which faults in mid-run begin.
MIDDLE = 40

FAULTS: tuple[Fault, ...] = (
    Fault("gradients-not-zeroed", (0,), _forget_zero, exact=True, steps=12),
    Fault("gradients-not-zeroed", (0,), _forget_zero_at, step=MIDDLE, exact=True, steps=12),
    Fault("parameter-not-optimized", (0, 1, 2), _not_optimized, exact=True, steps=6),
    Fault("frozen-parameter", (0, 1, 2), _frozen, where=_with_layers, exact=True, steps=6),
    Fault("graph-cut", (0, 1, 2), _cut, where=_sequential, exact=True, steps=6),
    Fault("tied-weights-apart", (0,), _apart, where=_on("language_model"), exact=True, steps=6),
    Fault("training-in-eval-mode", (0,), _eval, where=_modes, exact=True, steps=6),
    Fault("validating-in-train-mode", (0,), _validate_in_train, where=_modes, exact=True, steps=30),
    Fault("batch-norm-too-few-values", (2, 3, 4), _few_values, where=_on("conv_batch_norm"), exact=True, steps=6),
    Fault("softmax-twice", (0, 1, 2), _softmax, where=_classifies, exact=True, steps=4),
    Fault("nll-without-log-probabilities", (0, 1), _nll, where=_classifies, exact=True, steps=4),
    Fault("bounded-regression-output", (0, 1, 2), _bounded, where=_on("autoencoder"), exact=True, steps=4),
    Fault("loss-summed", (1.0, 2.0), _summed, where=_sums, steps=20, also=("learning-rate-too-high",)),
    Fault("loss-at-start", (30.0, 100.0), _large_head, where=_classifies, exact=True, steps=4, also=("exploding-gradients",)),
    Fault("target-not-shifted", (0,), _not_shifted, where=_on("language_model"), exact=True, steps=120),
    Fault("padding-in-loss", (0.2, 0.4, 0.6), _padded, where=_on("language_model"), exact=True, steps=6),
    Fault("non-finite", (0, 1, 2), _broken_sample, where=_images, step=MIDDLE, exact=True, steps=6),
    Fault("vanishing-gradients", (8, 12, 16), _deep(nn.Sigmoid, 1.0), where=_deep_ones, steps=20),
    Fault("exploding-gradients", (8, 12, 16), _deep(nn.ReLU, 3.0), where=_deep_ones, steps=20, also=("init-scale",)),
    Fault("init-scale", (8, 12, 16), _deep(nn.ReLU, 0.4), where=_deep_ones, steps=20, also=("vanishing-gradients",)),
    Fault("symmetric-init", (0.0, 0.01, 0.1), _constant, where=_on("mlp", "autoencoder"), steps=20, exact=True),
    Fault("dead-units", (-20.0, -40.0), _dead, where=_on("mlp"), steps=40, exact=True),
    Fault("saturated-units", (30.0, 100.0), _saturated, where=_on("autoencoder"), steps=20, exact=True),
    Fault("learning-rate-too-high", (30.0, 100.0, 300.0), _rate, steps=80),
    Fault("learning-rate-too-high", (30.0, 100.0, 300.0), _rate_at, step=MIDDLE, steps=60, also=("learning-rate-schedule",)),
    Fault("learning-rate-too-low", (1e-4, 1e-5, 1e-6), _rate, steps=90),
    Fault("weight-decay-too-strong", (0.5, 1.0, 3.0), _decay, where=_classifies, steps=100),
    Fault("clipping-too-tight", (1e-2, 1e-3, 1e-4), _clip, where=_along_the_gradient, steps=50),
    Fault("learning-rate-schedule", (0, 1, 2), _schedule, steps=150),
    Fault("inputs-not-normalised", (0, 1, 2), _unscaled, where=_images, steps=10, exact=True, tuned=TUNED),
    Fault("labels-unrelated", (1.0,), _shuffled, where=_classifies, steps=220),
    Fault("labels-unrelated", (1.0,), _labels_at, where=_classifies, step=MIDDLE, steps=260),
    Fault("constant-batch", (0,), _same_batch, steps=10, exact=True),
    Fault("data-sorted", (0, 1), _sorted, where=_classifies, steps=40),
    Fault("class-imbalance", (32, 64), _imbalanced, where=_classifies, steps=140),
    Fault("overfitting", (24, 40), _overfit, where=_classifies, steps=250),
    # New ones at the end: a run is known by its place.
    Fault("labels-noisy", (0.1, 0.2, 0.3), _noisy, where=_classifies, steps=200, exact=True),
    Fault("validation-leak", (0.02, 0.1, 0.3), _leaked, where=_images, steps=60, exact=True),
    Fault("residual-growth", (8, 12, 16), _growing, where=_deep_ones, steps=4, exact=True, also=("exploding-gradients",)),
    Fault("optimizer-not-stepping", (0,), _not_stepping, exact=True, steps=6),
    Fault("clipping-before-unscaling", (2.0**10, 2.0**13, 2.0**16), _clipped_scaled, exact=True, steps=30),
    Fault("fp16-overflow", (0,), _overflowing, where=_images, exact=True, steps=40),
    Fault("exploding-recurrence", (1.5, 2.0, 3.0), _recurrent, where=_on("lstm", "transformer"), steps=30),
    Fault("ill-conditioning", (10.0, 20.0, 30.0), _off_centre, where=_descends, steps=110),
    Fault("attention-collapse", (6.0, 10.0, 20.0), _sharp_heads, where=_on("language_model", "transformer"), steps=100),
)  # fmt: skip


def _cosine(setup: Setup) -> None:
    setup.scheduler = lambda optimizer: CosineAnnealingLR(optimizer, 160)


def _warm_up(setup: Setup) -> None:
    setup.scheduler = lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, 1.0, 60)


def _edge(setup: Setup) -> None:
    setup.rate *= 2.5


def _fine_tuned(setup: Setup) -> None:
    optimizer = setup.optimizer()
    for step in range(80):
        inputs, targets = setup.batch(step)
        optimizer.zero_grad()
        setup.loss(setup.model(inputs), targets).backward()
        optimizer.step()
    setup.model.zero_grad(set_to_none=True)
    setup.model = copy.deepcopy(setup.model)
    setup.rate /= 20


def _clipped(setup: Setup) -> None:
    setup.clip = 1.0


def _frozen_backbone(setup: Setup) -> None:
    parameters = list(setup.model.parameters())
    with torch.no_grad():
        for parameter in parameters[: len(parameters) // 2]:
            parameter.add_(torch.randn_like(parameter) * 0.05)
            parameter.requires_grad_(False)


def _validated(setup: Setup) -> None:
    setup.validates = "eval"


def _smaller_rate(setup: Setup) -> None:
    setup.rate /= 5


def _log_softmax(setup: Setup) -> None:
    if _classifies(setup):
        setup.loss = lambda output, targets: F.nll_loss(output.log_softmax(-1), targets)


def _between_zero_and_one(setup: Setup) -> None:
    if _images(setup):
        setup.inputs = (setup.inputs - setup.inputs.min()) / (setup.inputs.max() - setup.inputs.min())


def _summed_to_match(setup: Setup) -> None:
    loss = setup.loss
    setup.loss = lambda output, targets: loss(output, targets) * len(targets)
    if setup.kind in ("sgd", "momentum"):
        setup.rate /= setup.task.batch_size


def _warm_restarts(setup: Setup) -> None:
    setup.scheduler = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 40)


def _smoothed(setup: Setup) -> None:
    if _classifies(setup):
        setup.loss = lambda output, targets: F.cross_entropy(output, targets, label_smoothing=0.1)


def _large_batch(setup: Setup) -> None:
    count, size = len(setup.inputs) - HELD_OUT, 3 * setup.task.batch_size
    setup.order = lambda step: torch.randint(count, (size,))


def _small_batch(setup: Setup) -> None:
    count, size = len(setup.inputs) - HELD_OUT, setup.task.batch_size // 4
    setup.order = lambda step: torch.randint(count, (size,))
    setup.rate /= 4 if setup.kind in ("sgd", "momentum") else 2


def _zero_head(setup: Setup) -> None:
    if _classifies(setup):
        nn.init.zeros_([module for module in setup.model.modules() if isinstance(module, nn.Linear)][-1].weight)


def _decayed(setup: Setup) -> None:
    setup.decay = 0.1 if setup.kind == "adamw" else 1e-3


def _accumulated(setup: Setup) -> None:
    setup.micro_batches = 2


def _half_precision(setup: Setup) -> None:
    _scaled_loss(setup, 2.0**12)


def _in_epochs(setup: Setup) -> None:
    """Take the samples in turn, each once in an epoch, as a loader does."""
    count, size = len(setup.inputs) - HELD_OUT, setup.task.batch_size
    orders: dict[int, Tensor] = {}

    def order(step: int) -> Tensor:
        epoch, place = divmod(step, count // size)
        if epoch not in orders:
            orders[epoch] = torch.randperm(count)
        return orders[epoch][place * size :][:size]

    setup.order = order


#: Healthy trainings, most of them close to a fault.
CONTROLS: dict[str, Callable[[Setup], None]] = {
    "plain": lambda setup: None,
    "cosine": _cosine,
    "warm-up": _warm_up,
    "edge of stability": _edge,
    "fine-tuning": _fine_tuned,
    "clipping": _clipped,
    "frozen backbone": _frozen_backbone,
    "validation": _validated,
    "small rate": _smaller_rate,
    "log-softmax and NLL": _log_softmax,
    "inputs in [0, 1]": _between_zero_and_one,
    "summed loss, rate to match": _summed_to_match,
    "warm restarts": _warm_restarts,
    "label smoothing": _smoothed,
    "large batch": _large_batch,
    "small batch": _small_batch,
    "head at zero": _zero_head,
    "weight decay": _decayed,
    "accumulation": _accumulated,
    "epochs": _in_epochs,
    "gradient scaler": _half_precision,
}

__all__ = ["CONTROLS", "FAULTS", "MIDDLE", "Fault", "Setup", "reconstruction"]
