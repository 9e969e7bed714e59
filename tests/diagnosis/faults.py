"""Small trainings, each broken in one way, or healthy but close to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cockpit_lite import Cockpit, Every
from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.ranking import rank


def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images of digits as (N, 64) with mean 0 and variance 1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.as_tensor(data.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.as_tensor(data.target)


def mlp(activation: type[nn.Module] = nn.ReLU, depth: int = 2, width: int = 48, outputs: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(64 if not number else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def sgd(model: nn.Module, rate: float = 0.05) -> Optimizer:
    return SGD(model.parameters(), lr=rate, momentum=0.5)


@dataclass
class Training:
    """One training; the fields are what a fault changes.

    Attributes:
        model: Makes the model.
        optimizer: Makes the optimizer.
        loss: Of (output, labels).
        inputs: What becomes of the images.
        labels: What becomes of the labels.
        order: Indices of the batch at a step; by default random.
        steps: How many.
        clip: Norm that the gradient is clipped to.
        scheduler: Makes one that is stepped every batch.
        instruments: What is measured.
        validation: Indices of the images that the model is validated on every ten steps; empty: it is not.
    """

    model: Callable[[], nn.Module] = mlp
    optimizer: Callable[[nn.Module], Optimizer] = sgd
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    inputs: Callable[[Tensor], Tensor] = lambda images: images
    labels: Callable[[Tensor], Tensor] = lambda labels: labels
    order: Callable[[int, Tensor], Tensor] | None = None
    steps: int = 60
    clip: float | None = None
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    validation: range = range(0)
    instruments: Sequence[str] = ("standard",)

    def findings(self, run: Path, seed: int = 0) -> list[Alert]:
        """Train under the standard cockpit, everything measured at every step, and return the ranked findings."""
        torch.manual_seed(seed)
        images, labels = digits()
        images, labels = self.inputs(images), self.labels(labels)
        model = self.model()
        optimizer = self.optimizer(model)
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        with Cockpit(model, optimizer, run=run, instruments=self.instruments, schedule=Every(1), budget=None) as cockpit:
            for step in range(self.steps):
                batch = torch.randint(len(images), (32,)) if self.order is None else self.order(step, labels)
                optimizer.zero_grad()
                self.loss(model(images[batch]), labels[batch]).backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                if self.validation and step % 10 == 9:
                    self._validate(model, images, labels, cockpit)
        return rank(cockpit.alerts, RULES)

    def _validate(self, model: nn.Module, images: Tensor, labels: Tensor, cockpit: Cockpit) -> None:
        model.eval()
        with torch.no_grad():
            for places in torch.tensor(self.validation).split(50):
                loss = self.loss(model(images[places]), labels[places])
        model.train()
        cockpit.log(validation_loss=loss)


def one_hot(output: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(labels, 10).float())


def constant(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    return model


def scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 0.0)
    return model


def imbalanced(step: int, labels: Tensor) -> Tensor:
    rare = torch.nonzero(labels == 8)[:, 0]
    common = torch.nonzero(labels == 1)[:, 0]
    batch = common[torch.randint(len(common), (32,))]
    if step % 2:
        batch[0] = rare[torch.randint(len(rare), ())]
    return batch


def columns_apart(images: Tensor) -> Tensor:
    return images * torch.logspace(-2, 2, 64)


def noisy(share: float) -> Callable[[Tensor], Tensor]:
    """Draw a share of the labels by lot."""
    return lambda labels: torch.where(torch.rand(len(labels)) < share, torch.randint(10, labels.shape), labels)


class Residual(nn.Module):
    """Adds a branch that is as large as its input."""

    def __init__(self, norm: bool, outer: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48) if norm else nn.Identity()
        self.inner, self.outer = nn.Linear(48, 96), nn.Linear(96, 48)
        for layer, kind in ((self.inner, "relu"), (self.outer, "linear")):
            nn.init.kaiming_normal_(layer.weight, nonlinearity=kind)
        with torch.no_grad():
            self.outer.weight.mul_(outer)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.outer(self.inner(self.norm(hidden)).relu())


def residual(norm: bool, outer: float = 1.0) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 48), *[Residual(norm, outer) for _ in range(8)], nn.Linear(48, 10))


class Attending(nn.Module):
    """Attention over the eight rows of an image; ``sharp`` multiplies the weights of queries and keys."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        with torch.no_grad():
            self.query.weight.mul_(sharp)
            self.key.weight.mul_(sharp)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.reshape(-1, 8, 8))
        query, key, value = (layer(rows).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.head((rows + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)).mean(1))


class Rows(nn.Module):
    """A plain recurrent net over the eight rows of an image, several times over."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.layer, self.head = nn.RNN(8, 48, nonlinearity="relu", batch_first=True), nn.Linear(48, 10)
        nn.init.orthogonal_(self.layer.weight_hh_l0, gain)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images.reshape(-1, 8, 8).repeat(1, 3, 1))[0][:, -1])


#: Fault -> trainings that show it.
BROKEN: dict[str, list[Training]] = {
    "softmax-twice": [
        Training(model=lambda: nn.Sequential(mlp(), nn.Softmax(1)), steps=3),
        Training(loss=lambda output, labels: F.cross_entropy(2 * output.softmax(1), labels), steps=3),
        Training(
            loss=lambda output, labels: F.binary_cross_entropy_with_logits(output.sigmoid(), F.one_hot(labels, 10).float()),
            steps=3,
        ),
    ],
    "nll-without-log-probabilities": [
        Training(loss=F.nll_loss, steps=3),
        Training(model=lambda: nn.Sequential(mlp(), nn.Softmax(1)), loss=F.nll_loss, steps=3),
    ],
    "bounded-regression-output": [
        Training(
            model=lambda: nn.Sequential(mlp(outputs=1), nn.ReLU()),
            loss=lambda output, labels: F.mse_loss(output, (labels - 4.5).float()[:, None]),
            steps=4,
        ),
        Training(
            model=lambda: nn.Sequential(mlp(outputs=1), nn.Sigmoid()),
            loss=lambda output, labels: F.mse_loss(output[:, 0], labels.float()),
            steps=4,
        ),
    ],
    "loss-summed": [Training(loss=lambda output, labels: F.cross_entropy(output, labels, reduction="sum"), steps=6)],
    "loss-at-start": [Training(model=lambda: nn.Sequential(*mlp()[:-1], scaled(nn.Linear(48, 10), 80.0)), steps=2)],
    "symmetric-init": [Training(model=lambda: constant(mlp()), steps=4)],
    "init-scale": [
        Training(model=lambda: scaled(mlp(depth=8), 0.35), steps=2),
        Training(model=lambda: scaled(mlp(nn.ReLU, depth=8), 6.0), steps=2),
    ],
    "exploding-recurrence": [Training(model=lambda: Rows(3.0), optimizer=lambda model: sgd(model, 0.01), steps=8)],
    "saturated-units": [Training(model=lambda: scaled(mlp(nn.Tanh), 40.0), steps=5)],
    "weight-decay-too-strong": [
        Training(optimizer=lambda model: SGD(model.parameters(), lr=0.05, weight_decay=1.0), steps=80),
        Training(optimizer=lambda model: AdamW(model.parameters(), lr=1e-3, weight_decay=50.0), steps=80),
    ],
    "clipping-too-tight": [Training(clip=1e-3, steps=40)],
    "learning-rate-schedule": [
        Training(scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8), steps=130),
        Training(scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), steps=130),
    ],
    "inputs-not-normalised": [
        Training(inputs=columns_apart, optimizer=lambda model: sgd(model, 1e-4), steps=4),
        Training(inputs=lambda images: images + 30, optimizer=lambda model: sgd(model, 1e-4), steps=4),
        Training(inputs=lambda images: images * 200, optimizer=lambda model: sgd(model, 1e-6), steps=4),
    ],
    "constant-batch": [Training(order=lambda step, labels: torch.arange(32), steps=6)],
    "data-sorted": [Training(order=lambda step, labels: labels.argsort()[(step * 32) % 1760 :][:32], steps=40)],
    "class-imbalance": [Training(order=imbalanced, optimizer=lambda model: sgd(model, 0.003), steps=80)],
    "labels-noisy": [Training(labels=noisy(0.15), steps=140, instruments=("labels", "label_noise", "loss_inputs"))],
    "validation-leak": [
        Training(
            order=lambda step, labels: torch.randint(1500, (32,)),
            validation=range(1400, 1600),
            steps=30,
            instruments=("inputs", "validation_overlap"),
        ),
        Training(
            order=lambda step, labels: torch.randint(1500, (32,)),
            validation=range(200),
            steps=30,
            instruments=("inputs", "validation_overlap"),
        ),
    ],
    "residual-growth": [Training(model=lambda: residual(False), optimizer=lambda model: sgd(model, 1e-5), steps=3)],
    "attention-collapse": [
        Training(model=lambda: Attending(20.0), optimizer=lambda model: sgd(model, 1e-5), steps=60, instruments=("attention",))
    ],
    "labels-unrelated": [
        Training(labels=lambda labels: labels[torch.randperm(len(labels))], steps=230, optimizer=lambda model: sgd(model, 0.02))
    ],
}

#: Name -> healthy trainings that come close to a fault.
HEALTHY: dict[str, Training] = {
    "plain": Training(steps=120),
    "adam": Training(optimizer=lambda model: Adam(model.parameters(), lr=2e-3), steps=120),
    "log-softmax twice": Training(loss=lambda output, labels: F.cross_entropy(output.log_softmax(1), labels)),
    "log-softmax and NLL": Training(loss=lambda output, labels: F.nll_loss(output.log_softmax(1), labels)),
    "sum with a learning rate for it": Training(
        loss=lambda output, labels: F.cross_entropy(output, labels, reduction="sum"), optimizer=lambda model: sgd(model, 0.0015)
    ),
    "sum with Adam": Training(
        loss=lambda output, labels: F.cross_entropy(output, labels, reduction="sum"),
        optimizer=lambda model: Adam(model.parameters(), lr=1e-3),
    ),
    "regression behind a sigmoid": Training(model=lambda: nn.Sequential(mlp(), nn.Sigmoid()), loss=one_hot),
    "zero head": Training(model=lambda: nn.Sequential(*mlp()[:-1], scaled(nn.Linear(48, 10), 0.0))),
    "usual weight decay": Training(optimizer=lambda model: AdamW(model.parameters(), lr=2e-3, weight_decay=0.1), steps=120),
    "usual clipping": Training(clip=1.0),
    "cosine": Training(scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120), steps=120),
    "warm restarts": Training(
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 30), steps=130
    ),
    "warm-up": Training(scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, 1.0, 40), steps=100),
    "pixels between 0 and 1": Training(inputs=lambda images: (images - images.min()) / (images.max() - images.min())),
    "deep tanh": Training(model=lambda: mlp(nn.Tanh, depth=4), steps=80),
    "a recurrent net": Training(model=lambda: Rows(0.9), optimizer=lambda model: sgd(model, 0.01), clip=1.0, steps=80),
    "a validation set of its own": Training(
        order=lambda step, labels: torch.randint(1500, (32,)), validation=range(1500, 1700), steps=30
    ),
    "residual branches behind a normalisation": Training(
        model=lambda: residual(True, 0.3), optimizer=lambda model: sgd(model, 0.003), steps=10
    ),
    "small residual branches": Training(
        model=lambda: residual(False, 8**-0.5), optimizer=lambda model: sgd(model, 0.003), steps=10
    ),
    "attention": Training(model=lambda: Attending(1.0), steps=30),
    "all the data": Training(order=lambda step, labels: torch.arange(len(labels)), steps=30),
}
