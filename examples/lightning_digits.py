"""Lightning: one callback more, on scikit-learn's digits. Needs ``pip install "cockpit-lite[lightning,demo]"``.

Usage: python examples/lightning_digits.py [EPOCHS]
"""

from __future__ import annotations

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from cockpit_lite.integrations.lightning import CockpitCallback


class Digits(lightning.LightningModule):
    """A small convolutional net."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 3 * 3, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss and the accuracy on held-out images."""
        images, labels = batch
        outputs = self.net(images)
        self.log("val_loss", nn.functional.cross_entropy(outputs, labels))
        self.log("val_acc", (outputs.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
lightning.seed_everything(0, verbose=False)
digits = load_digits()
images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
training, validation = random_split(TensorDataset(images, torch.as_tensor(digits.target)), [1500, 297])

callback = CockpitCallback()
trainer = lightning.Trainer(
    max_epochs=epochs,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    callbacks=[callback],
)
trainer.fit(Digits(), DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=297))

assert callback.cockpit is not None
print(f"The report of the run: {callback.cockpit.folder / 'report.html'}")
