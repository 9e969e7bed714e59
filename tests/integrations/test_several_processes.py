"""Two processes inside Lightning and the Hugging Face Trainer, started by torchrun: one run, the same readings in both."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit_lite import load_run
from tests.integrations import ddp_worker as worker

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("framework", "library"), [("lightning", "lightning"), ("huggingface", "transformers")])
def test_processes_measure_together(framework: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "tests.integrations.ddp_worker", framework, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    runs = [load_run(tmp_path / "run", rank) for rank in range(2)]
    assert runs[0].ranks == [0, 1]
    assert runs[0].info["status"] == "completed"
    assert runs[0].series("batch_size")[1].tolist() == [16.0] * worker.STEPS
    for reading in ("loss", "grad_norm", "norm_test"):
        first, second = (run.series(reading) for run in runs)
        assert first[0].tolist() == second[0].tolist() == list(range(worker.STEPS)), runs[0].not_measured.get(reading)
        assert first[1] == pytest.approx(second[1], rel=1e-6)
    assert runs[0].report().ranks is not None
    if framework == "huggingface":
        # A classifier's head leaves num_items_in_batch alone, and the Trainer multiplies with the number of processes what it
        # takes for a part of the sum over all items: so it trains on twice the mean.
        trained = [json.loads((tmp_path / f"trained-{rank}.json").read_text()) for rank in range(2)]
        assert runs[0].series("loss")[1] == pytest.approx([sum(losses) / 2 for losses in zip(*trained, strict=True)], rel=1e-5)
        assert runs[0].series("loss")[1][0] == pytest.approx(2 * math.log(3), rel=0.1)
