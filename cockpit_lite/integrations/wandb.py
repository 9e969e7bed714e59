"""Weights & Biases: readings into the run that is open, alerts as its alerts. Needs ``cockpit-lite[wandb]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.integrations.need import need
from cockpit_lite.sink import Sink

_LEVELS = {"error": "ERROR", "warning": "WARN", "note": "INFO"}


class WandbSink(Sink):
    """Logs ``cockpit/<name>`` over ``cockpit/step``: the step counter of the run itself stays yours.

    A run that is open is used and left open; otherwise one is begun, and finished at the end.

    Args:
        layers: Readings of single layers, too.
        settings: Handed to ``wandb.init`` where no run is open.
    """

    name = "wandb"

    def __init__(self, layers: bool = False, **settings: Any):
        super().__init__(layers)
        self._settings = settings
        self._run: Any = None
        self._ours = False

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        wandb = need("wandb", "wandb")
        self._ours = wandb.run is None
        self._run = (
            wandb.init(**{"dir": str(folder), "config": {"cockpit": dict(info)}, **self._settings}) if self._ours else wandb.run
        )
        self._run.define_metric("cockpit/step", hidden=True)
        self._run.define_metric("cockpit/*", step_metric="cockpit/step")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"cockpit/step": step, **{f"cockpit/{name}": value for name, value in values.items()}}, commit=self._ours)

    def alert(self, alert: Alert) -> None:
        self._run.alert(title=f"{alert.code} {alert.name}", text=f"{alert}\n{alert.advice}", level=_LEVELS[alert.severity])

    def close(self) -> None:
        if self._ours:
            self._run.finish()
