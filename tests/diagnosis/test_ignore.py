from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cockpit_lite import Cockpit, Every, SetupError, load_run


def findings(run: Path, ignore: list[str]) -> dict[str, tuple[str, ...]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model[2:].parameters(), lr=0.01)
    with Cockpit(model, optimizer, run=run, instruments=["wiring"], schedule=Every(1), budget=None, ignore=ignore) as cockpit:
        for _ in range(3):
            model(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
    return {alert.name: alert.where for alert in cockpit.alerts}


def test_codes_names_and_modules(tmp_path: Path) -> None:
    both = {"parameter-not-optimized": ("0.weight", "0.bias"), "gradients-not-zeroed": ()}
    assert findings(tmp_path / "all", []) == both
    assert findings(tmp_path / "code", ["CL101", "parameter-not-optimized"]) == {}
    assert findings(tmp_path / "module", ["CL101", "CL103@*.weight"]) == {"parameter-not-optimized": ("0.bias",)}
    assert findings(tmp_path / "modules", ["CL101", "CL103@0.*"]) == {}


def test_the_report_says_so(tmp_path: Path) -> None:
    findings(tmp_path / "run", ["CL101"])
    not_checked = {check.code: check.reason for check in load_run(tmp_path / "run").report().not_checked}
    assert "ignored" in not_checked["CL101"]


@pytest.mark.parametrize("ignore", [["CL999"], ["exploding"], "CL101"])
def test_what_is_no_finding(ignore: list[str]) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(SetupError, match="ignore="):
        Cockpit(model, torch.optim.SGD(model.parameters(), lr=0.1), ignore=ignore)
