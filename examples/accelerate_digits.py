"""Accelerate: what ``prepare`` returns is handed over as it is, on scikit-learn's digits, with accumulation and clipping.

Needs ``pip install "cockpit-lite[huggingface,demo]"``.

Usage: python examples/accelerate_digits.py [EPOCHS]
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cockpit_lite import Cockpit

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
torch.manual_seed(0)
digits = load_digits()
pixels = torch.as_tensor(digits.data, dtype=torch.float32) / 8 - 1
dataset = TensorDataset(pixels, torch.as_tensor(digits.target))

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(dataset, batch_size=32, shuffle=True))

with Cockpit(model, optimizer) as cockpit:
    for _ in range(epochs):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

print(f"The report of the run: {cockpit.folder / 'report.html'}")
