"""A sink that keeps everything in memory."""

from typing import ClassVar

from cockpit_lite import Alert, Sink


class MemorySink(Sink):
    """Keeps the readings in ``MemorySink.steps`` and the alerts in ``MemorySink.alerts``."""

    name = "memory"
    steps: ClassVar[dict[int, dict[str, float]]] = {}
    alerts: ClassVar[list[Alert]] = []

    def step(self, step, values):
        self.steps.setdefault(step, {}).update(values)

    def alert(self, alert):
        self.alerts.append(alert)
