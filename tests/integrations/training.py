"""A short training that has findings, for tests of everything that passes readings and alerts on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cockpit_lite import Cockpit


def train(folder: Path, steps: int = 4, **settings: Any) -> Cockpit:
    """Train with softmax twice: one warning at least."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(dim=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Cockpit(model, optimizer, run=folder, budget=None, **settings) as cockpit:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
            optimizer.step()
    return cockpit
