"""What can wait for its first measurement where a budget is tight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cockpit_lite import Instrument, load_run
from cockpit_lite.first_costs import first_costs
from cockpit_lite.instrument import CURVATURE, GRADIENT, Readings
from cockpit_lite.presets import resolve
from cockpit_lite.step import Step
from cockpit_lite.tracked_step import account
from tests.identity import cockpit


def test_nothing_of_standard_can_wait() -> None:
    assert first_costs(resolve("standard"), account) == []


def test_of_full_what_takes_passes_of_its_own_can_wait() -> None:
    lots = {min(accounts): steps for steps, accounts in first_costs(resolve("full"), account)}
    assert lots == {"condition": 25.0, "ggn_diagonal": 5.0, "probe_batch": 5.0, "replay": 5.0}
    waiting = {name for _, accounts in first_costs(resolve("full"), account) for name in accounts}
    there = {account(instrument) for instrument in resolve("standard")} | {account(resolve("effective_rank")[-1])}
    assert not waiting & there


class Slope(Instrument):
    """Has the needs of an instrument that cannot wait, or not."""

    name = "slope"
    needs = (CURVATURE, GRADIENT)

    def measure(self, step: Step) -> Readings:
        raise NotImplementedError


def test_an_account_waits_with_all_that_share_it() -> None:
    assert first_costs([Slope()], account) == [(25.0, frozenset({"slope"}))]
    assert first_costs([Slope(), *resolve("light")], lambda instrument: "one") == []


@pytest.mark.parametrize(("budget", "there"), [(0.01, False), (0.05, True)])
def test_a_tight_budget_measures_all_but_the_dear_ones_at_step_0(budget: float, there: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments = ["light", "curvature_along_gradient", "effective_rank", "norm_test", "max_eigenvalue", "trust_ratio"]
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=instruments, budget=budget):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 3).backward()
        optimizer.step()
    run = load_run(tmp_path / "run")
    assert {"norm_test", "curvature_along_gradient", "effective_rank", "update_ratio"} <= set(run.names)
    for name in ("max_eigenvalue", "trust_ratio"):
        assert (name in run.names) is there
        assert ("waits until that has been saved" in run.not_measured.get(name, "")) is not there
