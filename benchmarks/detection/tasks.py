"""What is trained: seven small architectures on digits, on text, and on reconstruction."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One architecture and its data.

    Attributes:
        name: Short.
        model: Makes the model.
        data: All inputs and targets.
        loss: Of output and targets.
        rates: Learning rate that suits, by optimizer.
        batch_size: Samples a step.
        held_out: Whether thresholds were chosen without looking at it.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    rates: dict[str, float]
    batch_size: int = 32
    held_out: bool = False


@lru_cache(maxsize=1)
def digits() -> Batch:
    """Return images (1797, 1, 8, 8), mean 0 and variance 1, and labels."""
    found = load_digits()
    images = torch.as_tensor(found.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.as_tensor(found.target)


def reconstruction() -> Batch:
    """Return images twice: as input and as target."""
    images = digits()[0].flatten(1)
    return images, images


@lru_cache(maxsize=1)
def text() -> Batch:
    """Return windows of 33 characters of Python's own documentation, shifted by one: inputs and targets (N, 32)."""
    whole = "".join(list(pydoc_data.topics.topics.values())[:12])[:60_000]
    alphabet = {character: number + 1 for number, character in enumerate(sorted(set(whole)))}
    codes = torch.tensor([alphabet[character] for character in whole])
    windows = codes[: len(codes) // 33 * 33].reshape(-1, 33)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def vocabulary() -> int:
    """Return the number of characters, padding (0) included."""
    return int(max(part.max() for part in text())) + 1


def by_token(output: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


def mlp() -> nn.Module:
    """Return three layers with ReLU and dropout."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 10)
    )


def conv_batch_norm() -> nn.Module:
    """Return convolutions with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block with group normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.act = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images and what the branch adds."""
        return images + self.second(self.act(self.first(self.norm(images))))


def residual() -> nn.Module:
    """Return a small residual net."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Block(16), Block(16), nn.GroupNorm(4, 16), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


class Positions(nn.Module):
    """Adds what is learnt of each position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 32) / 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows and their positions."""
        return rows + self.weight


class RowTransformer(nn.Module):
    """Two encoder layers over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.positions = nn.Linear(8, 32), Positions()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        layer.self_attn.dropout = 0.0  # with it, per-sample statistics take a backward pass a sample
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.encoder(self.positions(self.rows(images[:, 0]))).mean(1))


class LanguageModel(nn.Module):
    """A causal transformer with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary(), 48), nn.Embedding(32, 48)
        nn.init.normal_(self.tokens.weight, std=0.05)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, vocabulary(), bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, T, vocabulary)."""
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        hidden = self.tokens(tokens) + self.positions(torch.arange(length))
        return self.head(self.norm(self.blocks(hidden, mask=mask)))


class RowLSTM(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.layer(images[:, 0])[0][:, -1])


def autoencoder() -> nn.Module:
    """Return an autoencoder with a bottleneck of eight."""
    return nn.Sequential(
        nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 8), nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 64),
    )  # fmt: skip


def _rates(sgd: float, adam: float) -> dict[str, float]:
    return {"sgd": sgd, "momentum": sgd / 4, "adam": adam, "adamw": adam}


TASKS: tuple[Task, ...] = (
    Task("mlp", mlp, digits, F.cross_entropy, _rates(0.1, 2e-3)),
    Task("conv_batch_norm", conv_batch_norm, digits, F.cross_entropy, _rates(0.05, 2e-3)),
    Task("lstm", RowLSTM, digits, F.cross_entropy, _rates(0.3, 3e-3)),
    Task("language_model", LanguageModel, text, by_token, _rates(0.3, 2e-3), batch_size=16),
    Task("residual", residual, digits, F.cross_entropy, _rates(0.05, 2e-3), held_out=True),
    Task("transformer", RowTransformer, digits, F.cross_entropy, _rates(0.1, 2e-3), held_out=True),
    Task("autoencoder", autoencoder, reconstruction, F.mse_loss, _rates(0.5, 2e-3), held_out=True),
)
