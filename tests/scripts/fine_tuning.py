"""Fine-tuning in two stages: first the head alone, then all of it with another optimizer."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(11)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.backbone(x))


def fit(optimizer, steps):
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.5f}")


model = Classifier()
for p in model.backbone.parameters():
    p.requires_grad_(False)
fit(torch.optim.Adam(model.head.parameters(), lr=1e-2), 10)
for p in model.backbone.parameters():
    p.requires_grad_(True)
fit(torch.optim.Adam(model.parameters(), lr=1e-3), 10)
torch.save(model.state_dict(), sys.argv[1])
