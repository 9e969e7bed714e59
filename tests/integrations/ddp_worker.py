"""A training in two processes inside a framework: python -m tests.integrations.ddp_worker lightning|huggingface FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cockpit_lite import Every

STEPS = 4


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16 * STEPS, 10, generator=generator)
    return x, x[:, :3].argmax(1)


def inside_lightning(folder: Path) -> None:
    import lightning

    from cockpit_lite.integrations.lightning import CockpitCallback

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[CockpitCallback(together=True, run=folder / "run", schedule=Every(1))],
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(TensorDataset(*data()), batch_size=8))


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


if __name__ == "__main__":
    {"lightning": inside_lightning, "huggingface": inside_huggingface}[sys.argv[1]](Path(sys.argv[2]))
