"""What measuring costs, by budget account. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cockpit_lite.schedule import Budget


class CostBook:
    """Books every step and tells the budget.

    Attributes:
        seconds: Seconds spent measuring, by budget account.
        training_seconds: Seconds between the steps that were not spent measuring.
    """

    def __init__(self, budget: Budget | None):
        self.seconds: dict[str, float] = {}
        self.training_seconds = 0.0
        self._budget = budget

    @property
    def overhead(self) -> float:
        """Seconds spent measuring over seconds spent training, so far."""
        return sum(self.seconds.values()) / self.training_seconds if self.training_seconds else 0.0

    def book(
        self,
        training_seconds: float,
        costs: Mapping[str, float] = MappingProxyType({}),
        company: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Book one step: what training took, what each account spent on measuring, and might have without the others."""
        self.training_seconds += training_seconds
        if costs:
            for name, seconds in costs.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._budget is not None:
            self._budget.end_step(training_seconds, costs, company)

    def summary(self) -> dict[str, object]:
        """Return what goes into ``run.json``."""
        return {
            "measuring_seconds": sum(self.seconds.values()),
            "training_seconds": self.training_seconds,
            "share": self.overhead,
            "instruments": dict(self.seconds),
        }
