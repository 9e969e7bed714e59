"""Fit a sine with LBFGS: an optimizer that calls a closure."""

import math
import sys

import torch

torch.manual_seed(0)
x = torch.linspace(-math.pi, math.pi, 200)
y = torch.sin(x)
xx = x.unsqueeze(-1).pow(torch.tensor([1, 2, 3]))
model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0, 1))
loss_fn = torch.nn.MSELoss(reduction="sum")
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)


def closure():
    optimizer.zero_grad()
    loss = loss_fn(model(xx), y)
    loss.backward()
    return loss


for t in range(8):
    print(t, round(optimizer.step(closure).item(), 5))
torch.save(model.state_dict(), sys.argv[1])
