"""Two processes inside Lightning, Accelerate and the Hugging Face Trainer, started by torchrun: one run, the readings of one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cockpit_lite import Cockpit, Every, Run, load_run
from tests.integrations import ddp_worker as worker

ROOT = Path(__file__).resolve().parents[2]


#: What a plain loop in one process, with the same 16 samples a step, must show too.
SAME_AS_ONE = ("loss", "grad_norm", "norm_test", "gradient_noise_scale", "update_size", "distance")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    model = worker.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Cockpit(model, optimizer, run=folder, schedule=Every(1), budget=None):
        for inputs, targets in zip(*(part.split(16) for part in worker.data()), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return load_run(folder)


@pytest.mark.parametrize(
    "framework",
    ["lightning", "lightning manual", "lightning sharded", "lightning manual sharded", "accelerate", "huggingface"],
)
def test_processes_measure_together(framework: str, alone: Run, tmp_path: Path) -> None:
    pytest.importorskip({"huggingface": "transformers"}.get(framework, framework.split()[0]))
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
    if framework != "huggingface":
        for reading in SAME_AS_ONE:
            assert runs[0].series(reading)[1] == pytest.approx(alone.series(reading)[1], rel=1e-3, abs=1e-6), reading
    else:
        # A classifier's head leaves num_items_in_batch alone, and the Trainer multiplies with the number of processes what it
        # takes for a part of the sum over all items: so it trains on twice the mean.
        trained = [json.loads((tmp_path / f"trained-{rank}.json").read_text()) for rank in range(2)]
        assert runs[0].series("loss")[1] == pytest.approx([sum(losses) / 2 for losses in zip(*trained, strict=True)], rel=1e-5)
        assert runs[0].series("loss")[1][0] == pytest.approx(2 * math.log(3), rel=0.1)
