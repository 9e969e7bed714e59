"""The examples are run as their reader runs them: each in a process of its own, from a folder that is not theirs."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cockpit_lite import load_run
from cockpit_lite.run import Run

FOLDER = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Told:
    """What an example left behind: its output and its runs, in the order they were made."""

    text: str
    runs: list[Run]


def tell(name: str, length: int, folder: Path) -> Told:
    """Run an example in ``folder``, shortened to ``length``. Warnings are errors there as they are here."""
    command = [sys.executable, "-W", "error", str(FOLDER / name), str(length)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    runs = sorted(map(load_run, folder.glob("runs/*")), key=lambda run: run.info["created"])
    assert all((run.folder / "report.html").is_file() for run in runs)
    return Told(ended.stdout, runs)


def alerts(run: Run) -> list[str]:
    return [alert.name for alert in run.report().findings]


def accuracy(run: Run) -> float:
    return run.series("validation_accuracy")[1][-1].item()


def test_the_first_script_says_where_its_report_is(tmp_path: Path) -> None:
    told = tell("first_script.py", 3, tmp_path)
    (run,) = told.runs
    (place,) = re.findall(r"^The report of the run: (.*)$", told.text, flags=re.MULTILINE)
    assert tmp_path / place == run.folder / "report.html"
    assert len(run.series("loss")[0]) == 3 * 24
    assert alerts(run) == []
    assert accuracy(run) > 0.8


def test_the_learning_rate_that_follows_from_the_measured_limit_learns(tmp_path: Path) -> None:
    told = tell("story_learning_rate.py", 120, tmp_path)
    broken, mended = told.runs
    assert alerts(broken)[0] == "learning-rate-too-high"
    assert len(broken.series("loss")[0]) < 120  # stopped at the alert
    evidence = broken.report().findings[0].evidence
    measured = evidence["limit of a plain step"]
    assert mended.series("learning_rate")[1][0] == pytest.approx(evidence["suggested learning rate"])
    assert f"{measured:.2g} was the limit" in told.text.replace("\n", " ")  # the advice is shown, and names the same number
    assert alerts(mended) == []
    assert accuracy(broken) < 0.5 < 0.85 < accuracy(mended)


def test_centred_inputs_leave_the_curvature_nothing_to_take_back(tmp_path: Path) -> None:
    told = tell("story_input_scale.py", 150, tmp_path)
    crawling, mended = told.runs
    assert alerts(crawling)[0] == "ill-conditioning"
    assert alerts(mended) == []
    taken_back = [
        (run.series("taylor_curvature_term")[1] / run.series("taylor_gradient_term")[1])[10:].mean() for run in told.runs
    ]
    assert taken_back[0] > 0.1 > 0.02 > taken_back[1]
    assert accuracy(crawling) < 0.8 < 0.9 < accuracy(mended)
    assert told.text.count("taken back") == 2


def test_the_readme_names_every_example() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+\.py)\)", text)) == {path.name for path in FOLDER.glob("*.py")}
