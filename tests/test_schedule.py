"""When to measure: schedules, and the budget on a simulated clock."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit_lite import Every, LogSpaced
from cockpit_lite.schedule import Budget

# ------------------------------------------------------------------------------------------------------------ schedules


def test_every() -> None:
    assert [step for step in range(12) if Every(4)(step)] == [0, 4, 8]
    assert all(map(Every(1), range(100)))
    assert repr(Every(4)) == "Every(4)"


@pytest.mark.parametrize("interval", [0, -1, 1.5, "3", True, None])
def test_every_takes_a_positive_integer(interval: object) -> None:
    with pytest.raises(ValueError, match="takes a positive integer"):
        Every(interval)  # type: ignore[arg-type]


@pytest.mark.parametrize("per_decade", [1, 5, 20, 100])
def test_log_spaced(per_decade: int) -> None:
    steps = [step for step in range(100_001) if LogSpaced(per_decade)(step)]
    assert steps[0] == 0
    for low, high in ((100, 1_000), (1_000, 10_000), (10_000, 100_000)):  # of the first steps there are fewer than that
        expected = per_decade if per_decade < 100 else pytest.approx(per_decade, rel=0.15)
        assert sum(low < step <= high for step in steps) == expected
    distances = [later / earlier for earlier, later in itertools.pairwise(steps) if earlier > 1_000]
    assert all(distance == pytest.approx(10 ** (1 / per_decade), rel=0.01) for distance in distances)


@pytest.mark.parametrize("per_decade", [0, -3])
def test_log_spaced_takes_a_positive_number(per_decade: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        LogSpaced(per_decade)


def test_schedules_keep_no_state() -> None:
    for schedule in (Every(3), LogSpaced(7)):
        steps = list(range(500))
        forward = {step: schedule(step) for step in steps}
        random.Random(0).shuffle(steps)
        assert {step: schedule(step) for step in steps} == forward


# --------------------------------------------------------------------------------------------------------------- budget


@dataclass
class Simulation:
    """A training with simulated durations, asked and booked in the way that the observer does it."""

    share: float
    costs: Mapping[str, float]
    step_seconds: float = 1.0
    jitter: float = 0.0
    unit: float = 1.0
    lots: Sequence[tuple[float, frozenset[str]]] = ()
    training: float = 0.0
    measured: dict[str, list[int]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    def run(self, steps: int) -> Simulation:
        budget, noise = Budget(self.share), random.Random(0)
        budget.postpone(self.lots)
        self.measured = {account: [] for account in self.costs}
        self.spent = dict.fromkeys(self.costs, 0.0)
        for step in range(steps):
            asked = () if budget.idle(step) else self.costs
            due = [account for account in asked if budget.allows(account, step)]
            spent = {account: self.unit * self.costs[account] * math.exp(noise.gauss(0, self.jitter)) for account in due}
            seconds = self.step_seconds * math.exp(noise.gauss(0, self.jitter))
            for account in due:
                self.measured[account].append(step)
                self.spent[account] += spent[account]
            self.training += seconds
            budget.end_step(seconds, spent)
        return self

    @property
    def overhead(self) -> float:
        return sum(self.spent.values()) / self.training


FIRST = sorted(Budget.first_steps)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(
    "costs",
    [{"cheap": 0.001}, {"cheap": 0.01, "dear": 0.5}, {"a": 0.1, "b": 0.1, "c": 0.1}, {"dear": 1.0}],
    ids=lambda costs: "+".join(costs),
)
def test_the_share_is_kept_over_2000_steps(costs: dict[str, float], share: float, jitter: float) -> None:
    """The first steps are on credit and paid back: what they cost beyond the share is all that may be left, if anything."""
    simulation = Simulation(share, costs, jitter=jitter).run(2_000)
    on_credit = sum(costs.values()) / 2_000  # at step 0, in any case
    assert simulation.overhead <= max(share, on_credit) * (1.02 if not jitter else 1.15)


@pytest.mark.parametrize("costs", [{"dear": 0.2}, {"cheap": 0.01, "dear": 0.2}, {"a": 0.2, "b": 0.2, "c": 0.2}], ids="+".join)
def test_the_share_is_used(costs: dict[str, float]) -> None:
    """A budget that is kept by hardly measuring would be no use."""
    simulation = Simulation(0.05, costs).run(2_000)
    assert simulation.overhead > 0.8 * 0.05


@pytest.mark.parametrize("costs", [{"cheap": 0.001}, {"cheap": 0.01, "dear": 1.0}], ids="+".join)
def test_the_first_steps_are_measured_on_credit(costs: dict[str, float]) -> None:
    simulation = Simulation(0.05, costs).run(100)
    assert FIRST == [0, 1, 2, 4, 8, 16, 32, 64]
    for account in costs:
        assert set(FIRST) <= set(simulation.measured[account])


def test_no_more_is_lent_than_some_hundred_steps_repay() -> None:
    simulation = Simulation(0.05, {"cheap": 0.01, "dear": 20.0, "dearest": 100.0}).run(20_000)
    assert set(FIRST) <= set(simulation.measured["cheap"])
    assert simulation.measured["dear"][0] == simulation.measured["dearest"][0] == 0
    assert min(step for step in simulation.measured["dearest"] if step) > 1_000


SMALL_NET = {"gradient": 0.2, "per_sample": 6.0, "data": 1.5, "activations": 1.0, "curvature": 0.5}
SPECTRA = {f"spectrum {number}": cost for number, cost in enumerate((0.7, 3.0, 10.0, 15.0, 28.0))}


@pytest.mark.parametrize(
    ("share", "costs"), [(0.01, SMALL_NET), (0.05, SMALL_NET), (0.05, SMALL_NET | SPECTRA)], ids=["1", "5", "5, spectra"]
)
def test_the_budget_of_short_steps_is_kept(share: float, costs: dict[str, float]) -> None:
    """Costs over the step's as they are on a small net, where spectra take ten to thirty steps."""
    simulation = Simulation(share, costs, step_seconds=0.003, unit=0.003).run(2_000)
    assert simulation.overhead <= {0.01: 0.012, 0.05: 0.055}[share]
    assert simulation.overhead >= 0.4 * share  # the rest is saved up for what is dear
    assert all(simulation.measured[name][0] == 0 for name in costs)
    assert set(FIRST) <= set(simulation.measured["gradient"])


#: What can wait of the spectra above, and what its first measurement is taken for.
LOTS = [
    (25.0, frozenset({"spectrum 2", "spectrum 3", "spectrum 4"})),
    (3.0, frozenset({"spectrum 0"})),
    (5.0, frozenset({"spectrum 1"})),
]


def test_what_can_wait_is_first_measured_when_it_has_been_saved_for_the_cheapest_first() -> None:
    few = Simulation(0.01, SMALL_NET | SPECTRA, 0.003, unit=0.003, lots=LOTS).run(2_000)
    assert few.overhead <= 0.0101
    assert all(few.measured[name][0] == 0 for name in SMALL_NET)
    assert not few.measured["spectrum 4"]
    first = {name: steps[0] for name, steps in Simulation(0.01, SMALL_NET | SPECTRA, lots=LOTS).run(30_000).measured.items()}
    assert 500 < first["spectrum 0"] < first["spectrum 1"] < first["spectrum 2"] == first["spectrum 3"] == first["spectrum 4"]


def test_nothing_waits_where_the_next_thousand_steps_can_pay_for_all_of_it() -> None:
    steps = Simulation(0.05, SMALL_NET | SPECTRA, lots=LOTS).run(1).measured
    assert all(measured == [0] for measured in steps.values())


@pytest.mark.parametrize("wrong_by", [0.01, 100.0])
def test_a_wrong_guess_starves_nobody(wrong_by: float) -> None:
    lots = [(0.5 * wrong_by, frozenset({"b"})), (0.5, frozenset({"c"}))]
    simulation = Simulation(0.01, {"a": 0.3, "b": 0.5, "c": 0.5}, lots=lots)
    with mock.patch.object(Budget, "paid_within", 0):  # both wait
        simulation.run(20_000)
    assert len(simulation.measured["b"]) > 20
    assert len(simulation.measured["c"]) > 50
    assert simulation.overhead <= 0.0101


def test_an_instrument_that_is_alone_can_wait_too() -> None:
    simulation = Simulation(0.001, {"dear": 20.0}, lots=[(25.0, frozenset({"dear"}))]).run(30_000)
    assert simulation.measured["dear"] == [25_000]


def test_the_debt_is_paid_back_before_the_next_measurement() -> None:
    simulation = Simulation(0.05, {"dear": 1.0}).run(1_000)
    (first_later, *later) = [step for step in simulation.measured["dear"] if step > 64]
    assert first_later >= 9 * 1.0 / 0.05 - 1  # eight on credit, and the ninth
    gaps = [b - a for a, b in itertools.pairwise(later)]
    assert gaps and all(gap == pytest.approx(20, abs=1) for gap in gaps)


def test_the_dear_ones_are_stretched_first() -> None:
    simulation = Simulation(0.05, {"cheap": 0.005, "middle": 0.04, "dear": 0.8}).run(4_000)
    counts = {account: sum(step > 1_000 for step in steps) for account, steps in simulation.measured.items()}
    assert counts["cheap"] == 2_999  # it costs less than its part of the share: at every step
    assert 3_000 * 0.45 < counts["middle"] < 3_000
    assert 0 < counts["dear"] < counts["middle"] / 5
    parts = {account: seconds / simulation.training for account, seconds in simulation.spent.items()}
    assert parts["dear"] > parts["cheap"]  # what the cheap one does not use goes to the dear one


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_what_can_be_afforded_at_every_step_is_measured_at_nearly_every_step(jitter: float) -> None:
    simulation = Simulation(0.05, {"cheap": 0.01}, jitter=jitter).run(2_000)
    assert sum(step >= 1_000 for step in simulation.measured["cheap"]) >= (1_000 if not jitter else 850)


def test_an_account_that_appears_late_is_measured_at_once() -> None:
    budget = Budget(0.05)
    for step in range(200):
        budget.end_step(1.0, {"old": 0.01} if step in Budget.first_steps else {})
    assert budget.allows("new", 200)


def test_a_measurement_that_becomes_cheap_is_made_more_often_again() -> None:
    budget = Budget(0.05)
    measured = []
    for step in range(3_000):
        cost = 1.0 if step < 100 else 0.001  # the first one compiles something, say
        due = not budget.idle(step) and budget.allows("x", step)
        if due:
            measured.append(step)
        budget.end_step(1.0, {"x": cost} if due else {})
    assert sum(step >= 2_000 for step in measured) > 900


def test_no_account_hoards() -> None:
    """After a long time without a measurement, because the schedule says so, there is no burst."""
    budget = Budget(0.05)
    budget.end_step(1.0, {"x": 0.5})
    for _ in range(10_000):
        budget.end_step(1.0, {})
    measured = 0
    for step in range(20_000, 20_020):
        if not budget.idle(step) and budget.allows("x", step):
            measured += 1
            budget.end_step(1.0, {"x": 0.5})
        else:
            budget.end_step(1.0, {})
    assert 1 <= measured <= Budget.most_saved + 1


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(1e-4, 2.0), min_size=1),
    st.floats(0.005, 0.5),
    st.floats(0.01, 3.0),
)
def test_idle_never_hides_a_step_on_which_something_is_allowed(costs: dict[str, float], share: float, seconds: float) -> None:
    budget = Budget(share)
    for step in range(300):
        if budget.idle(step):
            # A copy, since asking an account pays into it; and a little earlier, for the rounding.
            asked = copy.deepcopy(budget)
            asked._unpaid *= 1 - 1e-9
            assert not any(asked.allows(account, step) for account in costs)
            budget.end_step(seconds, {})
        else:
            budget.end_step(seconds, {account: costs[account] for account in costs if budget.allows(account, step)})


def test_an_idle_budget_is_not_idle_for_good() -> None:
    """Whatever the steps' durations do, the time that passes wakes it."""
    budget = Budget(0.05)
    budget.end_step(1.0, {"x": 1.0})
    passed, step = 0.0, 100
    while budget.idle(step):
        duration = 0.1 if step % 2 else 2.0
        budget.end_step(duration, {})
        passed, step = passed + duration, step + 1
    assert budget.allows("x", step)
    assert passed == pytest.approx(2 * 1.0 / 0.05, abs=2.1)  # one to pay back, one for the next


@pytest.mark.parametrize("share", [0, -0.1, math.nan])
def test_a_share_is_positive(share: float) -> None:
    with pytest.raises(ValueError, match="is not positive"):
        Budget(share)


def test_steps_that_take_no_time() -> None:
    budget = Budget(0.05)
    for step in range(200):
        due = not budget.idle(step) and budget.allows("x", step)
        budget.end_step(0.0, {"x": 0.0} if due else {})
    assert not math.isnan(budget._credit["x"])


def test_what_another_account_has_worked_out_is_not_taken_for_cheap() -> None:
    """Of two searches for eigenvalues the second finds the work done; without the first one it takes as long."""
    budget = Budget(0.05)
    budget.end_step(1.0, {"condition": 50.0, "eigenvalue": 0.01}, {"condition": 0.0, "eigenvalue": 50.0})
    assert not budget.allows("eigenvalue", 1)
    trusting = Budget(0.05)
    trusting.end_step(1.0, {"condition": 50.0, "eigenvalue": 0.01})
    assert trusting.allows("eigenvalue", 1)  # which would cost as much again


def test_what_an_account_costs_alone_is_believed_when_it_was_alone() -> None:
    budget = Budget(0.05)
    budget.end_step(1.0, {"condition": 50.0, "trace": 0.4}, {"trace": 50.0})
    for _ in range(12):
        budget.end_step(1.0, {"trace": 0.5}, {"trace": 0.0})
    alone = budget._cost["trace"]
    assert alone == pytest.approx(0.5, rel=0.05)
    budget.end_step(1.0, {"condition": 50.0, "trace": 0.4}, {"trace": 50.0})
    assert budget._cost["trace"] == alone  # nothing new is known of it
    budget.end_step(1.0, {"condition": 50.0, "trace": 1.5}, {"trace": 50.0})
    assert budget._cost["trace"] > alone


def test_an_account_that_is_forgotten_is_paid_nothing_and_its_debt_is_paid() -> None:
    budget = Budget(0.1)
    budget.end_step(1.0, {"cheap": 0.01, "dear": 1.0, "void": 4.0})
    budget.forget("void")
    budget.forget("never heard of")
    spent, total = {"cheap": 0.01, "dear": 1.0}, 5.01
    for step in range(1, 2000):
        due = {account: spent[account] for account in spent if budget.allows(account, step)}
        budget.end_step(1.0, due)
        total += sum(due.values())
    assert total <= 0.1 * 2000 * 1.02
    assert total >= 0.1 * 2000 * 0.9
    budget.forget("dear")
    budget.forget("cheap")
    assert not budget.idle(2000)  # nobody is waited for
