"""A training loop as you have one, on scikit-learn's digits, with one line more: ``with Cockpit(...)``.

Usage: python examples/first_script.py [EPOCHS]
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from cockpit_lite import Cockpit

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
torch.manual_seed(0)

digits = load_digits()
images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
dataset = TensorDataset(images, torch.as_tensor(digits.target))
training, validation = random_split(dataset, [1500, 297])
loader = DataLoader(training, batch_size=64, shuffle=True)
held_out_images, held_out_labels = next(iter(DataLoader(validation, batch_size=len(validation))))

model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 3 * 3, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
loss_fn = nn.CrossEntropyLoss()

with Cockpit(model, optimizer, loss_fn) as cockpit:
    for epoch in range(epochs):
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()

        model.eval()
        with torch.no_grad():
            accuracy = (model(held_out_images).argmax(1) == held_out_labels).float().mean()
        cockpit.log(validation_accuracy=accuracy)  # optional: a number of your own beside the readings
        print(f"epoch {epoch + 1:2d}: loss {loss.item():.3f}, validation accuracy {accuracy:.1%}")

print(f"The report of the run: {cockpit.folder / 'report.html'}")
