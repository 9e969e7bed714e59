"""Several processes: data-parallel training, or with ``--shard`` FSDP2, on scikit-learn's digits; one run, one report.

Usage: torchrun --nproc-per-node 2 examples/several_processes.py [--shard] [EPOCHS]
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cockpit_lite import Cockpit, Every

parser = argparse.ArgumentParser()
parser.add_argument("epochs", nargs="?", type=int, default=10)
parser.add_argument("--shard", action="store_true")
options = parser.parse_args()

distributed.init_process_group("gloo")
torch.manual_seed(0)
digits = load_digits()
dataset = TensorDataset(torch.as_tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.as_tensor(digits.target))
sampler: DistributedSampler = DistributedSampler(dataset, seed=0)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)

net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
model = fully_shard(net) if options.shard else DistributedDataParallel(net)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

with Cockpit(model, optimizer, schedule=Every(5), process_group=distributed.group.WORLD) as cockpit:
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

if distributed.get_rank() == 0:
    print(f"The report of the run: {cockpit.folder / 'report.html'}")
distributed.destroy_process_group()
