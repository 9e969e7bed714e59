"""The examples inside of frameworks, run once as their reader runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit_lite import load_run
from cockpit_lite.run import Run

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def run_of(folder: Path, *command: str) -> Run:
    """Run an example in ``folder``; return the run that it says it has made."""
    ended = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    (place,) = re.findall(r"^The report of the run: (.*)$", ended.stdout, flags=re.MULTILINE)
    assert (folder / place).is_file()
    run = load_run((folder / place).parent)
    assert run.info["status"] == "completed"
    assert not [alert for alert in run.alerts if alert.severity == "error"], [str(alert) for alert in run.alerts]
    return run


@pytest.mark.parametrize(
    ("name", "library", "length", "steps"),
    [
        ("lightning_digits.py", "lightning", 2, 48),
        ("huggingface_text.py", "transformers", 6, 6),
        ("accelerate_digits.py", "accelerate", 1, 29),
    ],
)
def test_inside_a_framework(name: str, library: str, length: int, steps: int, tmp_path: Path) -> None:
    pytest.importorskip(library)
    run = run_of(tmp_path, str(FOLDER / name), str(length))
    assert len(run.series("loss")[0]) == steps
    assert "norm_test" in run.names, run.not_measured.get("norm_test")
    assert name == "accelerate_digits.py" or "validation_loss" in run.names


def test_several_processes(tmp_path: Path) -> None:
    """By torchrun itself; the readings are compared in tests/test_distributed.py."""
    if not pytest.importorskip("torch").distributed.is_available():
        pytest.skip("this PyTorch has no distributed training")
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run = run_of(tmp_path, *start, str(FOLDER / "several_processes.py"), "--shard", "1")
    assert run.ranks == [0, 1]
    assert len(run.series("loss")[0]) == 29
    assert run.series("grad_norm")[0].tolist()[:3] == [0, 5, 10]
