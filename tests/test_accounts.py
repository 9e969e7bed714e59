"""Budget accounts: who pays for what on a measured step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cockpit_lite import Cockpit, load_run
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


class Later(torch.nn.Module):
    """Attends from some step on."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.attend = torch.nn.Linear(4, 4), False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = self.read(inputs)
        if self.attend:
            tokens = (tokens @ tokens.transpose(-2, -1)).softmax(-1) @ tokens
        return tokens


def test_what_a_net_does_not_have_is_no_reason_to_measure(tmp_path: Path) -> None:
    """Neither attention nor blocks; when attention comes, it is seen."""
    torch.manual_seed(0)
    model = Later()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    tracked: list[list[str]] = []
    instruments = ["attention", "residual_growth", "grad_norm"]
    with Cockpit(model, optimizer, run=tmp_path / "run", instruments=instruments, budget=50.0) as cockpit:
        for step in range(80):
            assert cockpit._observer is not None
            under_way = cockpit._observer._tracked
            tracked.append([] if under_way is None else [instrument.name for instrument in under_way.due])
            model.attend = step >= 40
            optimizer.zero_grad()
            model(torch.randn(2, 5, 4)).square().mean().backward()
            optimizer.step()
    assert set(tracked[0]) == {"attention", "residual_growth", "grad_norm"}
    assert all(not names or "grad_norm" in names for names in tracked[:40])
    before = [step for step, names in enumerate(tracked[:40]) if "attention" in names]
    assert 2 <= len(before) <= 6
    run = load_run(tmp_path / "run")
    assert run.series("attention_entropy")[0].min() >= 40
    assert set(run.info["cost"]["instruments"]) == {"gradient+update", "attention", "blocks"}
