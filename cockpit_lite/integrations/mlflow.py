"""MLflow: readings as metrics, alerts as tags, the report as an artifact. Needs ``cockpit-lite[mlflow]``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.integrations.need import need
from cockpit_lite.sink import Sink


class MLflowSink(Sink):
    """Logs ``cockpit/<name>`` into the run that is active, or into one of its own that is ended with the cockpit's.

    Args:
        layers: Readings of single layers, too.
    """

    name = "mlflow"

    def __init__(self, layers: bool = False):
        super().__init__(layers)
        self._client: Any = None
        self._run_id = ""
        self._ours = False

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        mlflow = need("mlflow", "mlflow")
        active = mlflow.active_run()
        self._ours = active is None
        self._run_id = (active or mlflow.start_run(run_name=folder.name)).info.run_id
        self._client = mlflow.MlflowClient()
        self._client.set_tag(self._run_id, "cockpit.run", str(folder))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"cockpit/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def alert(self, alert: Alert) -> None:
        self._client.set_tag(self._run_id, f"cockpit.alert.{alert.code}", f"{alert.severity}: {alert} {alert.advice}"[:5000])

    def close(self) -> None:
        if self._ours:
            need("mlflow", "mlflow").end_run()
