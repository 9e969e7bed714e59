"""Cross-validation: three models, one after the other."""

import sys

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import KFold
from torch import nn

torch.manual_seed(0)
features, labels = load_iris(return_X_y=True)
features = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
labels = torch.tensor(labels)
states = []
for fold, (train, test) in enumerate(KFold(3, shuffle=True, random_state=0).split(features)):
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.CrossEntropyLoss()
    for _ in range(10):
        optimizer.zero_grad()
        loss_fn(model(features[train]), labels[train]).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(features[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"fold {fold} accuracy {accuracy:.3f}")
    states.append(model.state_dict())
torch.save(states, sys.argv[1])
