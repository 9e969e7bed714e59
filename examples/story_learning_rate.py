"""A story: a run that will not learn.

The loss of a small convolutional net on scikit-learn's digits jumps about and does not come down. The same picture has many
causes (labels, initialisation, a bug in the loss); the cockpit raises CL401 learning-rate-too-high and says how long a step may
be, because it has measured the curvature along the gradient. The loop stops at the alert, takes the learning rate that follows
from the measurement, and trains again.

Usage: python examples/story_learning_rate.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from cockpit_lite import Cockpit, Every

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200

digits = load_digits()
images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
labels = torch.as_tensor(digits.target)


def train(learning_rate: float) -> Cockpit:
    """Train from the same start with this learning rate, until the cockpit raises an error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 3 * 3, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()

    print(f"\nTraining with a learning rate of {learning_rate:.2g}")
    with Cockpit(model, optimizer, loss_fn, schedule=Every(2), budget=None) as cockpit:
        for step in range(steps):
            batch = torch.randint(1500, (64,))
            optimizer.zero_grad()
            loss = loss_fn(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                print(f"step {step:3d}: loss {loss.item():.3f}")
            if any(alert.severity == "error" for alert in cockpit.alerts):
                print(f"step {step:3d}: loss {loss.item():.3f}, stopped: there is no use in going on")
                break
        with torch.no_grad():
            accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
        cockpit.log(validation_accuracy=accuracy)
    print(f"Validation accuracy: {accuracy:.1%}")
    return cockpit


learning_rate = 2.0
cockpit = train(learning_rate)

for alert in cockpit.alerts:
    if alert.name == "learning-rate-too-high":
        print(f"\nThe cockpit says: {alert.cause}\nand advises: {alert.advice}")
        # A quarter of twice the inverse of the curvature along the gradient: there a plain step would begin to raise the loss.
        train(alert.evidence["suggested learning rate"])
