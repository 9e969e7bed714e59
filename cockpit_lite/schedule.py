"""When to measure: a schedule says at which steps, a budget how much time it may cost. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

#: The account that is saved on for what has never been measured; no instrument can have this name.
_FIRST = ""

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
    back before anything else: until then most of the share goes to them. Of what can wait (:meth:`postpone`) only as much is
    measured at step 0 as a thousand steps can pay for; the rest is first measured when it has been saved for, cheapest first.

    Args:
        share: Greatest share of training time, such as 0.05.

    Attributes:
        waiting: The accounts that wait for their first measurement.

    Raises:
        ValueError: if ``share`` is not positive.
    """

    first_steps = frozenset({0, 1, 2, 4, 8, 16, 32, 64})

    #: So many steps must be able to repay what is lent: a dear measurement of short steps would otherwise be over any budget.
    repaid_within = 250

    #: So many steps pay for what is lent at one of the first steps in any case: the cheapest measurements.
    always_lent = 40

    #: So many steps must be able to pay for step 0, or what can wait is left out there.
    paid_within = 1000

    #: What everything that cannot wait takes at step 0, in training steps: a guess, since nothing has been measured then.
    at_once = 8.0

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
        self._waiting: list[tuple[float, frozenset[str]]] = []
        self._first_debts_are_paid = False
        self.waiting: frozenset[str] = frozenset()

    def postpone(self, lots: Iterable[tuple[float, frozenset[str]]]) -> None:
        """Say what can wait for its first measurement, if that is too dear for the first step.

        Args:
            lots: What it takes to measure some accounts for the first time, in training steps, and these accounts, which share
                the work and are measured together. Only a guess: it says when, and what it really took is booked.
        """
        total = self.at_once
        for steps, accounts in sorted(lots, key=lambda lot: lot[0]):
            total += steps
            if total > self.share * self.paid_within:
                self._waiting.append((steps, accounts))
                self.waiting |= accounts

    def idle(self, step: int) -> bool:
        """Return whether no account can be due at ``step``; costs nothing, for the many steps where that is so."""
        return self._unpaid < self._wait and step not in self.first_steps

    def allows(self, account: str, step: int) -> bool:
        """Return whether a measurement may be made at ``step``; the first time in any case that cannot wait."""
        if account in self.waiting:
            self._pay()
            return account in self._waiting[0][1] and self._credit.get(_FIRST, 0.0) >= self._expected(_FIRST) > 0
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
        if self._waiting and self._waiting[0][1] & spent.keys():
            self._begin(spent)
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

    def _begin(self, spent: Mapping[str, float]) -> None:
        """What has waited longest is being measured for the first time: what was saved for it is theirs, by what they took."""
        _, accounts = self._waiting.pop(0)
        self.waiting -= accounts
        saved = self._credit.pop(_FIRST, 0.0)
        total = sum(spent[account] for account in accounts & spent.keys())
        for account in accounts & spent.keys():
            self._credit[account] = saved * spent[account] / total if total else 0.0

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
        if seconds and (self._cost or self._waiting):
            for account, share in self._shares().items():
                most = self.most_saved * self._expected(account)
                self._credit[account] = min(self._credit.get(account, 0.0) + share * seconds, most)
            if self._cost and min(self._credit.values()) >= 0:
                self._first_debts_are_paid = True
            self._plan()

    def _plan(self) -> None:
        """Work out how much training time must pass before the next account is due."""
        shares = self._shares()
        waits = [
            (self._expected(account) - self._credit.get(account, 0.0)) / max(share, 1e-12) for account, share in shares.items()
        ]
        self._wait = min(waits, default=0.0)

    def _expected(self, account: str) -> float:
        """Return how many seconds a measurement is expected to take."""
        return self._waiting[0][0] * self._step_seconds if account == _FIRST else self._cost[account]

    def _shares(self) -> dict[str, float]:
        """Divide the share among the accounts: nobody gets more than it could use, the rest goes to the dearer ones."""
        debts = {account: -credit for account, credit in self._credit.items() if credit < 0}
        left = self.share * (1 - self.repayment) if debts else self.share
        shares = {}
        weights = {account: 1 for account in self._cost if account not in debts}
        if self._waiting and (self._first_debts_are_paid or not self._cost):
            weights[_FIRST] = len(self.waiting)  # all that wait save for the one that is next
        weight = sum(weights.values())
        for account in sorted(weights, key=self._expected):
            demand = self._expected(account) / self._step_seconds if self._step_seconds else math.inf  # measured at every step
            shares[account] = min(demand, left * max(weights[account] / weight, self.favour))
            left -= shares[account]
            weight -= weights[account]
        owed = sum(debts.values())
        for_debts = self.share - sum(shares.values())
        shares.update({account: for_debts * debt / owed for account, debt in debts.items()})
        return shares

    def __repr__(self) -> str:
        return f"Budget({self.share})"
