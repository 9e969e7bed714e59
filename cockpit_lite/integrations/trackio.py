"""Trackio: readings into the run that is open, alerts as its alerts. Needs ``cockpit-lite[trackio]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.integrations.need import need
from cockpit_lite.sink import Sink


class TrackioSink(Sink):
    """Logs ``cockpit/<name>`` into a run of trackio; one that is begun here is finished at the end.

    Args:
        project: The project of a run that is begun here.
        layers: Readings of single layers, too.
        settings: Handed to ``trackio.init`` where no run is open.
    """

    name = "trackio"

    def __init__(self, project: str = "cockpit-lite", layers: bool = False, **settings: Any):
        super().__init__(layers)
        self._settings = {"project": project, **settings}
        self._run: Any = None
        self._ours = False

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        trackio = need("trackio", "trackio")
        self._run = trackio.context_vars.current_run.get()
        self._ours = self._run is None
        if self._run is None:
            self._run = trackio.init(**{"name": folder.name, **self._settings})

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"cockpit/{name}": value for name, value in values.items()}, step=step)

    def alert(self, alert: Alert) -> None:
        trackio = need("trackio", "trackio")
        level = {"error": trackio.AlertLevel.ERROR, "warning": trackio.AlertLevel.WARN, "note": trackio.AlertLevel.INFO}
        self._run.alert(title=f"{alert.code} {alert.name}", text=f"{alert}\n{alert.advice}", level=level[alert.severity])

    def close(self) -> None:
        if self._ours:
            need("trackio", "trackio").finish()  # that of ours, and forgets it
