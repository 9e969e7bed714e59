"""A training loop with one feature that people use: a script of its own, and what the tests of the frameworks are made of.

Usage: python tests/features.py FEATURE WEIGHTS
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

STEPS = 8
BATCH = 16
#: What the loop below can do -> how many optimizer steps it then takes.
FEATURES = {
    "accumulation": STEPS // 2,
    "clipping": STEPS,
    "bf16": STEPS,
    "fp16": STEPS - 3,  # the gradients of the first three overflow, and their steps are skipped
    "compile": STEPS,
    "compile fullgraph": STEPS,
    "activation checkpointing": STEPS,
    "resume": STEPS,
    "scheduler": STEPS,
    "averaged weights": STEPS,
    "validation": STEPS,
    "torch.func": STEPS,
}


class Net(nn.Module):
    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(0.1)
        self.checkpointing = checkpointing

    def block(self, x: Tensor) -> Tensor:
        return self.dropout(self.middle(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        hidden = checkpoint(self.block, hidden, use_reentrant=False) if self.checkpointing else self.block(hidden)
        return self.last(hidden).float()  # as Accelerate makes of every model in half precision


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(BATCH, 10, generator=generator)
    return x, x[:, :3].argmax(1)


def unwatched(model: nn.Module, optimizer: Any, **settings: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def train(
    feature: str, watch: Callable[..., contextlib.AbstractContextManager[Any]] = unwatched, accelerator: Any = None
) -> nn.Module:
    """Train and return the model; ``watch`` makes the context that the loop runs in."""
    torch.manual_seed(0)
    model: Any = Net(checkpointing=feature == "activation checkpointing")
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=feature == "fp16" and accelerator is None, init_scale=2.0**21)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) if feature == "scheduler" else None
    own, called = model, model
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
        called = model
    if feature.startswith("compile"):
        torch._dynamo.reset()
        called = torch.compile(model, backend="aot_eager", fullgraph=feature == "compile fullgraph")
    averaged = AveragedModel(own, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if feature == "averaged weights" else None
    backward = (lambda loss: scaler.scale(loss).backward()) if accelerator is None else accelerator.backward

    def loss_of(number: int) -> Tensor:
        x, y = batch(number)
        if feature == "torch.func":
            return nn.functional.cross_entropy(torch.func.functional_call(own, dict(own.named_parameters()), (x,)), y)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(feature) if accelerator is None else None
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            return nn.functional.cross_entropy(called(x), y)

    def steps(first: int, last: int, cockpit: Any) -> None:
        for step in range(first, last):
            if feature == "accumulation" and accelerator is not None:
                with accelerator.accumulate(model):
                    backward(loss_of(step))
                    optimizer.step()
                    optimizer.zero_grad()
                continue
            parts = [2 * step, 2 * step + 1] if feature == "accumulation" else [step]
            optimizer.zero_grad()
            for part in parts:
                backward(loss_of(part) / len(parts))
            if feature == "clipping":
                (nn.utils if accelerator is None else accelerator).clip_grad_norm_(own.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            if scheduler is not None:
                scheduler.step()
            if averaged is not None:
                averaged.update_parameters(own)
            if feature == "validation" and step % 3 == 2:
                own.eval()
                with torch.no_grad():
                    value = loss_of(100).item()
                own.train()
                if hasattr(cockpit, "log"):
                    cockpit.log(validation_loss=value)

    each = STEPS // 2 if feature == "accumulation" and accelerator is None else STEPS
    if feature != "resume":
        with watch(called, optimizer) as cockpit:
            steps(0, each, cockpit)
        return own
    with watch(called, optimizer) as cockpit:
        steps(0, 4, cockpit)
    saved = {"model": own.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    torch.manual_seed(1)  # as in a process of its own
    own = model = called = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
        called = model
    own.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    with watch(called, optimizer, resume=4) as cockpit:
        steps(4, each, cockpit)
    return own


if __name__ == "__main__":
    torch.save(train(sys.argv[1]).state_dict(), sys.argv[2])
