"""One entry of the families: an architecture like those of the zoo, from a class of another package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo import Architecture, BatchMaker, Loss, cross_entropy

CLASSES = 4


def family(
    name: str, factory: Callable[[], nn.Module], make_batch: BatchMaker, loss: Loss = cross_entropy, **points: Any
) -> Architecture:
    """Return the family, with the samples on the first axis of every input.

    Many models begin with zeros: heads, gates, scales of residual branches. Behind these all gradients vanish, and nothing would
    be compared. So all parameters are moved a little.
    """

    def moved() -> nn.Module:
        model = factory()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    inputs = make_batch(2, torch.Generator()).inputs
    return Architecture(name, moved, make_batch, loss, input_axes=(0,) * len(inputs), **points)
