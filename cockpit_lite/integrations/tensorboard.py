"""TensorBoard: readings as scalars, alerts as text. Needs ``cockpit-lite[tensorboard]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.integrations.need import need
from cockpit_lite.sink import Sink


class TensorBoardSink(Sink):
    """Writes event files: readings under ``cockpit/<name>``, alerts under the text ``cockpit/alerts``.

    Args:
        folder: Where to. Default: ``tensorboard`` in the run folder. The folder of your own writer puts the curves beside yours.
        layers: Readings of single layers, too.
    """

    name = "tensorboard"

    def __init__(self, folder: str | Path | None = None, layers: bool = False):
        super().__init__(layers)
        self._folder = folder
        self._writer: Any = None

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder or folder / "tensorboard"))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"cockpit/{name}", value, step)

    def alert(self, alert: Alert) -> None:
        # Text is shown as Markdown there.
        self._writer.add_text("cockpit/alerts", f"**{alert.severity}: {alert}**\n\n{alert.advice}", alert.step)

    def close(self) -> None:
        self._writer.close()
