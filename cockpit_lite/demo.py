"""The demo: a small convolutional net on real images, healthy or broken on purpose.

scikit-learn's digits: 1,797 grey images of 8 x 8 pixels (Alpaydin and Kaynak, UCI machine learning repository,
1998). They come with the package, so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cockpit_lite.cockpit import Cockpit
from cockpit_lite.errors import SetupError
from cockpit_lite.run import Run, load_run

BATCH_SIZE = 64
TRAINING_IMAGES = 1500
VALIDATE_EVERY = 25
STEPS = 200


def _standardised(images: Tensor) -> Tensor:
    """Mean about 0, standard deviation about 1."""
    return (images - 5) / 6


class Offset(nn.Module):
    """Moves the signal far from zero: its mean becomes thirty times its spread, as with years or kelvins."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, moved."""
        return images + 30


@dataclass(frozen=True)
class Variant:
    """What is different from the healthy training.

    Attributes:
        alert: Name of the alert that must name it.
        story: What was done, in a sentence.
    """

    alert: str | None = None
    story: str = "A small convolutional net with a learning rate that suits it."
    learning_rate: float = 0.02
    momentum: float = 0.9
    activation: Callable[[], nn.Module] = nn.ReLU
    depth: int = 2
    initial_scale: float | None = None
    offset: bool = False


VARIANTS: dict[str | None, Variant] = {
    None: Variant(),
    "exploding": Variant(
        "exploding-gradients",
        "Ten layers whose weights start three times too large, so that the signal grows from layer to layer.",
        depth=10, initial_scale=3.0,
    ),
    "vanishing": Variant(
        "vanishing-gradients",
        "Ten layers with sigmoid activations, each of which passes on a quarter of the gradient at most.",
        depth=10, activation=nn.Sigmoid,
    ),
    "ill-conditioned": Variant(
        "ill-conditioning",
        "The first layer works on pixels far from zero, by thirty times their spread, and larger learning rates diverge.",
        offset=True, learning_rate=0.003, momentum=0.0, activation=lambda: nn.LeakyReLU(0.2),
    ),
    "lr-too-high": Variant("learning-rate-too-high", "The learning rate is 250 times too high.", learning_rate=5.0),
    "lr-too-low": Variant("learning-rate-too-low", "The learning rate is 20,000 times too low.", learning_rate=1e-6),
}  # fmt: skip


class DigitsNet(nn.Sequential):
    """Layers in a row, under a name of their own in the cockpit."""


def build_model(variant: Variant) -> DigitsNet:
    """Return the net: ``variant.depth`` convolutions, two of them followed by pooling, and a linear layer."""
    layers: list[nn.Module] = [Offset()] if variant.offset else []
    channels = 1
    for number in range(variant.depth):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), variant.activation()]
        channels = 16
        if number in (0, variant.depth - 1):
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(16 * 4, 10)]
    if variant.initial_scale is not None:
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                layer.weight.data *= variant.initial_scale
    return DigitsNet(*layers)


def load_images() -> tuple[Tensor, Tensor]:
    """Return images, shape (1797, 1, 8, 8), and labels, shape (1797,).

    Raises:
        SetupError: if scikit-learn, which brings the data, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SetupError("The demo trains on scikit-learn's digits: pip install scikit-learn") from error
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    return _standardised(images), torch.as_tensor(digits.target)


def run_demo(
    broken: str | None = None,
    run: str | Path | None = None,
    steps: int | None = None,
    live: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Run:
    """Train, watched by a cockpit, and return the run.

    Args:
        broken: One of the keys of :data:`VARIANTS`; None: healthy.
        run: Run folder; default as for Cockpit.
        steps: Optimizer steps; default 200.
        live: As for Cockpit.
        seed: Of initialisation and batches.
        progress: Whether to show a progress bar.

    Raises:
        SetupError: if ``broken`` is unknown, ``steps`` negative or scikit-learn missing.
    """
    if broken not in VARIANTS:
        raise SetupError(f"There is no way to break the demo called {broken!r}; known: {', '.join(filter(None, VARIANTS))}.")
    count = STEPS if steps is None else steps
    if count < 0:
        raise SetupError(f"The demo cannot train for {count} steps.")
    variant = VARIANTS[broken]
    torch.manual_seed(seed)
    images, labels = load_images()
    order = torch.randperm(len(images))
    training, held_out = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    model = build_model(variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=variant.learning_rate, momentum=variant.momentum)
    loss_fn = nn.CrossEntropyLoss()
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    cockpit = Cockpit(model, optimizer, loss_fn, run=run, instruments="full", schedule=_often_at_first, budget=None, live=live)
    with cockpit, Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("training", total=count, loss="")
        for step in range(count):
            batch = training[torch.randint(len(training), (BATCH_SIZE,))]
            optimizer.zero_grad()
            loss = loss_fn(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            bar.update(task, advance=1, loss=f"{loss.item():.3g}")
            if (step + 1) % VALIDATE_EVERY == 0:
                with torch.no_grad():
                    outputs = model(images[held_out])
                    accuracy = (outputs.argmax(1) == labels[held_out]).float().mean()
                    cockpit.log(validation_loss=loss_fn(outputs, labels[held_out]), validation_accuracy=accuracy)
    return load_run(cockpit.folder)


def _often_at_first(step: int) -> bool:
    """Most faults show in the first steps."""
    return step < 20 or step % 4 == 0
