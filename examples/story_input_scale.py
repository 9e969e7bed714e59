"""A story: a run that crawls, because the inputs have different scales.

scikit-learn's wines are described by thirteen numbers with units of their own: proline is about 750, hue about 1. All of them are
divided by 100, as one divides pixels by 255, and a linear classifier is trained. It stands still at two wines out of three.

Why, the two Taylor terms of a step say. By the gradient term e g'g each step should lower the loss, by the curvature term
1/2 e^2 g'Hg the curvature takes a part of that back. Here it takes back a third, step after step, although the loss hardly moves:
the steps go back and forth across the one steep direction, that of proline, and so the learning rate cannot be raised much. Along
all other directions it is far too small. The cockpit calls that CL403 ill-conditioning.

The cure is in the data: centre every column and divide it by its own standard deviation. With the same learning rate the
curvature term all but vanishes, and the loss falls.

Usage: python examples/story_input_scale.py [STEPS]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

from cockpit_lite import Cockpit, Every, load_run

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300

wine = load_wine()
order = np.random.default_rng(0).permutation(len(wine.target))
columns = torch.as_tensor(wine.data[order], dtype=torch.float32)
labels = torch.as_tensor(wine.target[order])


def train(inputs: Tensor) -> None:
    """Train a linear classifier on these inputs and show the two terms of its steps."""
    torch.manual_seed(0)
    model = nn.Linear(13, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.04)
    loss_fn = nn.CrossEntropyLoss()

    # "full" measures the spectrum too, so that the cockpit can tell one steep direction from many.
    with Cockpit(model, optimizer, loss_fn, instruments="full", schedule=Every(4), budget=None) as cockpit:
        for _ in range(steps):
            batch = torch.randint(128, (64,))
            optimizer.zero_grad()
            loss_fn(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(inputs[128:]).argmax(1) == labels[128:]).float().mean()
        cockpit.log(validation_accuracy=accuracy)

    run = load_run(cockpit.folder)
    measured, gradient_terms = run.series("taylor_gradient_term")
    _, curvature_terms = run.series("taylor_curvature_term")
    _, losses = run.series("loss")  # of every step
    print("\n step    loss    gradient term    curvature term    taken back")
    for step, gradient_term, curvature_term in list(zip(measured, gradient_terms, curvature_terms, strict=True))[::8]:
        share = curvature_term / gradient_term
        print(f"{step:5d} {losses[step]:7.3f} {gradient_term:16.2g} {curvature_term:17.2g} {share:13.1%}")
    print(f"Validation accuracy: {accuracy:.1%}")


print("Every column divided by 100")
train(columns / 100)

print("\nEvery column centred and divided by its standard deviation")
train((columns - columns[:128].mean(0)) / columns[:128].std(0))
