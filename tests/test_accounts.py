"""Budget accounts: who pays for what on a measured step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cockpit_lite import Cockpit
from cockpit_lite.cost import CostBook
from cockpit_lite.presets import resolve
from cockpit_lite.tracked_step import account


def booked(monkeypatch: pytest.MonkeyPatch, run: Path, instruments: list[str]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Train two steps and return what was booked: costs and company, by account."""
    found = []
    book = CostBook.book

    def note(self: CostBook, seconds: float, *costs: dict[str, float]) -> None:
        found.append((dict(costs[0]), dict(costs[1])))
        book(self, seconds, *costs)

    monkeypatch.setattr(CostBook, "book", note)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Cockpit(model, optimizer, run=run, instruments=instruments, budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(6, 4)), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
            optimizer.step()
    return found


def test_what_is_measured_cheaply_shares_an_account() -> None:
    """To make a measured step of it costs more than each of them: apart they would each pay for that."""
    light = [instrument for instrument in resolve("light") if instrument.name not in ("loss", "learning_rate", "step_time")]
    assert {account(instrument) for instrument in light} == {"gradient+update"}
    accounts = {instrument.name: account(instrument) for instrument in resolve("full")}
    assert accounts["loss_inputs"] == accounts["inputs"] == "data"
    assert accounts["norm_test"] == accounts["alpha"] == "per_sample"
    assert accounts["max_eigenvalue"] != accounts["min_eigenvalue"]


def test_an_account_is_told_who_may_have_done_its_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for costs, company in booked(monkeypatch, tmp_path / "run", ["max_eigenvalue", "min_eigenvalue", "grad_norm"]):
        assert set(costs) == {"max_eigenvalue", "min_eigenvalue", "gradient+update"}
        assert set(company) == {"max_eigenvalue", "min_eigenvalue"}
        first, second = company.values()
        assert first == 0.0 and 0.0 < second <= costs[next(iter(company))]
