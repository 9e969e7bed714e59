"""When to measure: a schedule says at which steps, a budget how much time it may cost. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

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
    first. The first steps, thinning out like 0, 1, 2, 4, 8, ... 64, are measured on credit, since most faults show there: step 0
    in any case, the others as far as the next few hundred steps can repay, the cheap measurements first. Debts are paid
    back before anything else: until then most of the share goes to them.

    Args:
        share: Greatest share of training time, such as 0.05.

    Raises:
        ValueError: if ``share`` is not positive.
    """

    first_steps = frozenset({0, 1, 2, 4, 8, 16, 32, 64})

    #: So many steps must be able to repay what is lent: a dear measurement of short steps would otherwise be over any budget.
    repaid_within = 250

    #: So many steps pay for what is lent at one of the first steps in any case: the cheapest measurements.
    always_lent = 40

    #: Of the share, what goes to debts as long as there are any.
    repayment = 0.8

    #: Of what is left of the share, what the cheapest may take, however many others there are.
    favour = 0.1

    #: An account cannot hoard: so many measurements' worth at most. Two would leave none to spare for one that costs a little
    #: more than expected, and what could be measured at every step would be measured at every other.
    most_saved = 3

    def __init__(self, share: float):
        if not share > 0:
            raise ValueError(
                f"budget is the share of training time that measuring may cost, such as 0.05; {share!r} is not positive."
            )
        self.share = share
        self._cost: dict[str, float] = {}
        self._credit: dict[str, float] = {}
        self._step_seconds = 0.0
        self._unpaid = 0.0
        self._wait = 0.0

    def idle(self, step: int) -> bool:
        """Return whether no account can be due at ``step``; costs nothing, for the many steps where that is so."""
        return self._unpaid < self._wait and step not in self.first_steps

    def allows(self, account: str, step: int) -> bool:
        """Return whether a measurement may be made at ``step``; the first time in any case, to know what it costs."""
        if account not in self._cost:
            return True
        if step in self.first_steps and self._lends(account):
            return True
        self._pay()
        return self._credit[account] >= self._cost[account]

    def _lends(self, account: str) -> bool:
        income = self.share * self._step_seconds
        needed = sum(cost for cost in self._cost.values() if cost <= self._cost[account])  # cheaper ones are served first
        if needed <= income * self.always_lent:
            return True  # next to nothing, whatever else is owed
        return needed - sum(min(credit, 0.0) for credit in self._credit.values()) <= income * self.repaid_within

    def end_step(
        self, training_seconds: float, spent: Mapping[str, float], company: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Book one step.

        Args:
            training_seconds: What training took.
            spent: What each account spent on measuring.
            company: What it could have taken more without the others, of accounts that use what another one has worked out.
        """
        self._unpaid += training_seconds
        self._step_seconds += (training_seconds - self._step_seconds) * (0.05 if self._step_seconds else 1.0)
        if not spent:
            return
        self._pay()
        for account, seconds in spent.items():
            known = self._cost.get(account)
            alone = seconds + company.get(account, 0.0)
            if known is None:
                self._cost[account] = alone
            elif alone < known:  # the first ones are dear, while everything is cold: what is cheaper now is believed sooner
                self._cost[account] += 0.5 * (alone - known)
            else:  # how much of what lies between the two was spared nobody knows
                self._cost[account] += 0.3 * max(seconds - known, 0.0)
            self._credit[account] = self._credit.get(account, 0.0) - seconds
        self._plan()

    def forget(self, account: str) -> None:
        """Nothing more is to be measured on this account: it is paid nothing, and what it owes is paid by the dearest."""
        self._cost.pop(account, None)
        credit = self._credit.pop(account, 0.0)
        if self._cost and credit < 0:
            self._credit[max(self._cost, key=self._cost.__getitem__)] += credit
        self._plan()

    def _pay(self) -> None:
        """Pay the share of the training time since the last payment into the accounts."""
        seconds, self._unpaid = self._unpaid, 0.0
        if seconds and self._cost:
            for account, share in self._shares().items():
                self._credit[account] = min(self._credit[account] + share * seconds, self.most_saved * self._cost[account])
            self._plan()

    def _plan(self) -> None:
        """Work out how much training time must pass before the next account is due."""
        shares = self._shares()
        waits = [(self._cost[account] - self._credit[account]) / max(shares[account], 1e-12) for account in self._cost]
        self._wait = min(waits, default=0.0)

    def _shares(self) -> dict[str, float]:
        """Divide the share among the accounts: nobody gets more than it could use, the rest goes to the dearer ones."""
        debts = {account: -credit for account, credit in self._credit.items() if credit < 0}
        left = self.share * (1 - self.repayment) if debts else self.share
        shares = {}
        by_cost = sorted((account for account in self._cost if account not in debts), key=self._cost.__getitem__)
        for position, account in enumerate(by_cost):
            demand = self._cost[account] / self._step_seconds if self._step_seconds else math.inf  # measured at every step
            shares[account] = min(demand, left * max(1 / (len(by_cost) - position), self.favour))
            left -= shares[account]
        owed = sum(debts.values())
        for_debts = self.share - sum(shares.values())
        shares.update({account: for_debts * debt / owed for account, debt in debts.items()})
        return shares

    def __repr__(self) -> str:
        return f"Budget({self.share})"
