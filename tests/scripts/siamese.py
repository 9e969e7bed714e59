"""Metric learning: one net called three times, a triplet loss."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(3)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
by_class = [images[digits.target == c] for c in range(10)]
embed = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8))
optimizer = torch.optim.Adagrad(embed.parameters(), lr=0.02)
loss_fn = nn.TripletMarginLoss(margin=1.0)


def pick(classes):
    return torch.stack([by_class[c][torch.randint(len(by_class[c]), ()).item()] for c in classes])


for step in range(15):
    anchors = torch.randint(10, (32,)).tolist()
    others = [(c + int(torch.randint(1, 10, ()))) % 10 for c in anchors]
    loss = loss_fn(embed(pick(anchors)), embed(pick(anchors)), embed(pick(others)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        print(f"{step} {loss.item():.5f}")
torch.save(embed.state_dict(), sys.argv[1])
