"""When to measure: a schedule says at which steps, a budget how much time it may cost. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

#: step -> whether to measure at it
Schedule = Callable[[int], bool]


class Every:
    """Measure at every ``interval``-th step: 0, n, 2n, ...

    Raises:
        ValueError: if ``interval`` is not a positive integer.
    """

    def __init__(self, interval: int):
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f"Every(n) takes a positive integer, not {interval!r}.")
        self.interval = interval

    def __call__(self, step: int) -> bool:
        return step % self.interval == 0

    def __repr__(self) -> str:
        return f"Every({self.interval})"


class LogSpaced:
    """Measure at steps that are evenly spaced on a logarithmic axis: densely at the start, ever more rarely later.

    Args:
        per_decade: How many steps between 10 and 100, 100 and 1000, and so on.

    Raises:
        ValueError: if ``per_decade`` is not positive.
    """

    def __init__(self, per_decade: int = 20):
        if per_decade <= 0:
            raise ValueError(f"LogSpaced(per_decade) takes a positive number, not {per_decade!r}.")
        self.per_decade = per_decade

    def __call__(self, step: int) -> bool:
        # A step counts if it is the first one at or after a point of the logarithmic grid.
        return step == 0 or self._cell(step + 1) > self._cell(step)

    def _cell(self, step: int) -> int:
        return math.floor(self.per_decade * math.log10(step) + 1e-9)

    def __repr__(self) -> str:
        return f"LogSpaced({self.per_decade})"


class Budget:
    """Keeps the time spent measuring under a share of the training time: an account for each measurement.

    Every step pays its share of time into the accounts; a measurement is due when its account covers what it is
    expected to cost. Cheap measurements are served first and in full (max-min fairness), so the dear ones are stretched
    first. The first steps, thinning out like 0, 1, 2, 4, 8, ... 64, are measured on credit, since most faults show there; the
    debt is paid back before the next measurement.

    Args:
        share: Greatest share of training time, such as 0.05.

    Raises:
        ValueError: if ``share`` is not positive.
    """

    first_steps = frozenset({0, 1, 2, 4, 8, 16, 32, 64})

    def __init__(self, share: float):
        if not share > 0:
            raise ValueError(f"budget is the share of training time that measuring may cost, such as 0.05; {share!r} is not positive.")
        self.share = share
        self._cost: dict[str, float] = {}
        self._credit: dict[str, float] = {}

    def allows(self, account: str, step: int) -> bool:
        """Return whether a measurement may be made at ``step``."""
        if step in self.first_steps or account not in self._cost:
            return True
        return self._credit[account] >= self._cost[account]

    def end_step(self, training_seconds: float, spent: Mapping[str, float]) -> None:
        """Settle one step: what training took, and what each account spent on measuring."""
        for account, seconds in spent.items():
            known = self._cost.get(account)
            self._cost[account] = seconds if known is None else 0.7 * known + 0.3 * seconds
            self._credit[account] = self._credit.get(account, 0.0) - seconds
        for account, share in self._shares(training_seconds).items():
            # An account cannot hoard: two measurements' worth at most.
            self._credit[account] = min(self._credit[account] + share * training_seconds, 2 * self._cost[account])

    def _shares(self, training_seconds: float) -> dict[str, float]:
        """Divide the share among the accounts: nobody gets more than it could use, the rest goes to the dearer ones."""
        left = self.share
        shares = {}
        by_cost = sorted(self._cost, key=self._cost.__getitem__)
        for position, account in enumerate(by_cost):
            demand = self._cost[account] / training_seconds if training_seconds > 0 else left
            # In debt, an account may use more than its running cost.
            if self._credit[account] < 0:
                demand = math.inf
            shares[account] = min(demand, left / (len(by_cost) - position))
            left -= shares[account]
        return shares

    def __repr__(self) -> str:
        return f"Budget({self.share})"
