"""Small models that go wrong in one place each; also what ``--model`` names in the tests of the command."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Wrong(nn.Module):
    """Two layers with something between them.

    Args:
        between: What happens there.
    """

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.25)
        self.between = between
        self.last = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.between(self.drop(self.norm(self.first(inputs)))))


class Logarithm(nn.Module):
    """Of units that dropout and ReLU have put to zero."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.relu().log()


class Ratio(nn.Module):
    """Of zeros: 0/0."""

    def forward(self, inputs: Tensor) -> Tensor:
        positive = inputs.relu()
        return positive / (positive * 2)


class Overflow(nn.Module):
    """Beyond the range of float32; a softmax makes NaN of it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 8)
        nn.init.constant_(self.wide.weight, 1e20)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.softmax(self.wide(inputs * 1e20), 1)


class Root(nn.Module):
    """Finite forward; the derivative at zero is not."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.square().sqrt()


class Attention(nn.Module):
    """A small language model; the mask may leave a row nothing to attend to."""

    def __init__(self, nothing_left: bool = False) -> None:
        super().__init__()
        self.nothing_left = nothing_left
        self.embed = nn.Embedding(11, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor, *, scale: float = 0.25) -> dict[str, Tensor]:
        hidden = self.embed(tokens)
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) * scale
        hidden_ones = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        if self.nothing_left:
            hidden_ones[0, 0] = True
        weights = F.softmax(scores.masked_fill(hidden_ones, -torch.inf), dim=-1)
        return {"logits": self.head(self.norm(hidden + weights @ self.value(hidden)))}


def classifier(between: str = "Root") -> Wrong:
    """Return one of them by name."""
    return Wrong({"Logarithm": Logarithm, "Ratio": Ratio, "Overflow": Overflow, "Root": Root, "Tanh": nn.Tanh}[between]())


def root() -> Wrong:
    return classifier("Root")


def healthy() -> Wrong:
    return classifier("Tanh")


def loss_of_log(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy by hand: the logarithm of zero where a probability underflows."""
    probabilities = torch.softmax(output, 1)
    return F.nll_loss(probabilities.log(), target)
