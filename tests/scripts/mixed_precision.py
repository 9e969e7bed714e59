"""Mixed precision with a gradient scaler, accumulation over two batches, clipping, and an averaged copy of the weights."""

import sys

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(5)
teacher = nn.Linear(16, 4)
net = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 4))
ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.95))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
for step in range(12):
    for _ in range(2):
        inputs = torch.randn(32, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(net(inputs), teacher(inputs).detach()) / 2
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    ema.update_parameters(net)
print(f"loss {loss.item():.5f}")
torch.save({"net": net.state_dict(), "ema": ema.state_dict()}, sys.argv[1])
