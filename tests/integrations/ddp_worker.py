"""A training in two processes inside a framework: python -m tests.integrations.ddp_worker NAME FOLDER.

All but the Hugging Face Trainer's are one training, that of :func:`net` on :func:`data` in batches of 16, half in each process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cockpit_lite import Cockpit, Every

STEPS = 4


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16 * STEPS, 10, generator=generator)
    return x, x[:, :3].argmax(1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))


def inside_lightning(folder: Path, manual: bool = False, sharded: bool = False) -> None:
    import lightning
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from cockpit_lite.integrations.lightning import CockpitCallback

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.automatic_optimization = not manual

        def configure_model(self) -> None:
            if sharded:
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> DataLoader:
            samples = TensorDataset(*data())
            in_order = DistributedSampler(samples, shuffle=False)  # Lightning's own shuffles
            return DataLoader(samples, batch_size=8, sampler=in_order)

    shards = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    strategy = ModelParallelStrategy(**shards, process_group_backend="gloo") if sharded else DDPStrategy()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
        callbacks=[CockpitCallback(together=True, run=folder / "run", schedule=Every(1))],
    )  # fmt: skip
    trainer.fit(Net())


def inside_accelerate(folder: Path) -> None:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(TensorDataset(*data()), batch_size=8))
    everyone = torch.distributed.group.WORLD
    with Cockpit(model, optimizer, run=folder / "run", schedule=Every(1), budget=None, process_group=everyone):
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()


def inside_huggingface(folder: Path) -> None:
    import transformers

    from cockpit_lite.integrations.huggingface import CockpitCallback

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    tokens, labels = torch.randint(50, (64, 8)), torch.randint(3, (64,))
    arguments = transformers.TrainingArguments(
        str(folder / "output"), per_device_train_batch_size=8, max_steps=STEPS, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, logging_strategy="no", ddp_backend="gloo",
    )  # fmt: skip
    trained: list[float] = []

    class Tells(transformers.Trainer):
        """Keeps what the Trainer takes the gradient of, in this process."""

        def training_step(self, *args: Any, **settings: Any) -> Tensor:
            trained.append(float(loss := super().training_step(*args, **settings)))
            return loss

    rows = [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]
    callback = CockpitCallback(together=True, run=folder / "run", schedule=Every(1))
    Tells(transformers.BertForSequenceClassification(config), arguments, train_dataset=rows, callbacks=[callback]).train()
    (folder / f"trained-{torch.distributed.get_rank()}.json").write_text(json.dumps(trained))


INSIDE: dict[str, Callable[[Path], None]] = {
    "lightning": inside_lightning,
    "lightning manual": partial(inside_lightning, manual=True),
    "lightning sharded": partial(inside_lightning, sharded=True),
    "lightning manual sharded": partial(inside_lightning, manual=True, sharded=True),
    "accelerate": inside_accelerate,
    "huggingface": inside_huggingface,
}

if __name__ == "__main__":
    INSIDE[sys.argv[1]](Path(sys.argv[2]))
