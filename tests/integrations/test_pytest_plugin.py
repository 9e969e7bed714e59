"""The fixture as a project of a user's own would use it: pytest in a folder of its own, with the installed package."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cockpit_lite.cli import main
from tests.integrations.training import train

TESTS = """
import torch
import pytest
from torch import nn

def training(cockpit, last, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), *last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, **settings):
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
            optimizer.step()

def test_healthy(cockpit):
    training(cockpit, [])
    cockpit.assert_healthy(fail_on="warning")

def test_sick(cockpit):
    training(cockpit, [nn.Softmax(1)])

def test_sick_and_known(cockpit):
    training(cockpit, [nn.Softmax(1)])
    cockpit.assert_healthy(ignore=["softmax-twice", "loss-at-start"])

def test_sick_then_healthy(cockpit):
    training(cockpit, [nn.Softmax(1)])
    with pytest.raises(pytest.fail.Exception, match="softmax-twice"):
        cockpit.assert_healthy()
    training(cockpit, [])
"""


def test_a_training_with_findings_fails_its_test(tmp_path: Path) -> None:
    if not any(point.name == "cockpit_lite" for point in entry_points(group="pytest11")):
        pytest.skip("the package was installed before it had a pytest plug-in: install it again")
    (tmp_path / "test_training.py").write_text(TESTS)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_training.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "4 passed, 1 error" in ended.stdout, ended.stdout + ended.stderr
    assert "CL201 softmax-twice at step 0" in ended.stdout
    assert "ERROR at teardown of test_sick " in ended.stdout


def test_a_pytest_run_that_does_not_ask_for_it_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("import sys\n\ndef test_nothing():\n    assert 'torch' not in sys.modules\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cockpit_lite.integrations.pytest_plugin", "test_nothing.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 or "already registered" in ended.stderr + ended.stdout, ended.stdout + ended.stderr


def test_junit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run\x1b<&>")
    capsys.readouterr()
    assert main(["check", str(tmp_path / "run\x1b<&>"), "--junit", str(tmp_path / "junit.xml"), "--fail-on", "warning"]) == 1
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    cases = {case.get("name"): case for case in suite}
    assert cases["CL201 softmax-twice"].find("failure") is not None
    assert len(cases["CL102 optimizer-not-stepping"]) == 0  # passed
    skipped = [case.find("skipped") for case in suite if case.find("skipped") is not None]
    assert all("not checked, because" in reason.get("message", "") for reason in skipped if reason is not None)
    assert len(skipped) == int(suite.get("skipped", 0)) > 0
    assert int(suite.get("tests", 0)) == len(cases)
    assert int(suite.get("failures", 0)) == sum(case.find("failure") is not None for case in suite)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    train(tmp_path / "run")
    capsys.readouterr()
    assert main(["check", str(tmp_path / "run"), "--json"]) == 1
    assert "softmax-twice" in {finding["name"] for finding in json.loads(capsys.readouterr().out)["findings"]}
