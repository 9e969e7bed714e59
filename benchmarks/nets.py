"""The nets that are timed, each with a batch of synthetic data: what a step costs does not depend on the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Net:
    """A net and what it is trained on.

    Attributes:
        name: With the batch size.
        factory: Makes the model.
        inputs: One batch.
        targets: Classes, for the last axis of the model's output.
    """

    name: str
    factory: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor


class Transformer(nn.Module):
    """Two encoder layers over embedded tokens, and a class for every token."""

    def __init__(self, vocabulary: int = 256, width: int = 128, length: int = 64):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) / 10)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape (N, T, vocabulary)."""
        logits: Tensor = self.head(self.encoder(self.tokens(tokens) + self.positions))
        return logits


class Recurrent(nn.Module):
    """An LSTM over a sequence, and a class for the last state."""

    def __init__(self, features: int = 32, width: int = 128, classes: int = 10):
        super().__init__()
        self.lstm = nn.LSTM(features, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape (N, classes)."""
        logits: Tensor = self.head(self.lstm(inputs)[0][:, -1])
        return logits


class Residual(nn.Module):
    """The basic block of a ResNet: two 3 x 3 convolutions with batch norm, and a skip around both."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.skip = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape (N, width, height / stride, width / stride)."""
        inner = torch.relu(self.first_norm(self.first(images)))
        return torch.relu(self.second_norm(self.second(inner)) + self.skip(images))


def resnet(width: int = 32) -> nn.Module:
    """Return a ResNet-18 for small images: four stages of two blocks, of ``width`` to 8 times ``width`` channels."""
    blocks: list[nn.Module] = []
    for stage in range(4):
        channels = width * 2**stage
        before = channels if stage == 0 else channels // 2
        blocks += [Residual(before, channels, 1 if stage == 0 else 2), Residual(channels, channels, 1)]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def mlp() -> nn.Module:
    """Return 784-256-128-10 with ReLU."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def conv() -> nn.Module:
    """Return 3C3D, three convolutions and three linear layers, as DeepOBS has it for CIFAR-10."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(), nn.LazyLinear(512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def nets() -> list[Net]:
    """Return all of them."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (16, 65), generator=draw)
    return [
        Net("MLP 784-256-128-10, batch 128", mlp, torch.randn(128, 784, generator=draw), _classes(draw, 128)),
        Net("3C3D, batch 64", conv, torch.randn(64, 3, 32, 32, generator=draw), _classes(draw, 64)),
        Net("transformer, 2 layers, 64 tokens, batch 16", Transformer, tokens[:, :-1], tokens[:, 1:]),
        Net("LSTM, 32 steps, batch 32", Recurrent, torch.randn(32, 32, 32, generator=draw), _classes(draw, 32)),
    ]


def _classes(draw: torch.Generator, count: int) -> Tensor:
    return torch.randint(10, (count,), generator=draw)
