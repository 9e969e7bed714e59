"""Data-parallel training in several processes: the readings are those of one process with the same batch, to rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cockpit_lite import Cockpit, Every, SetupError, load_run
from tests import distributed_worker as worker

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
READINGS = (
    "loss", "grad_norm", "norm_test", "inner_product_test", "orthogonality_test", "gradient_noise_scale", "gsnr",
    "early_stopping", "gradient_alignment", "conflicting_samples", "cabs", "batch_size", "update_size",
)  # fmt: skip


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    ended = subprocess.run(
        [*command, "-m", "tests.distributed_worker", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    (folder / "processes").write_text(str(request.param))
    return folder


def alone(name: str, processes: int, run: Path) -> None:
    """The same training in one process: the loss is the mean of those of the parts."""
    make, loop, _, uneven = worker.SCENARIOS[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def mean_over_parts(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pairs = zip(worker.parts(outputs, processes, uneven), worker.parts(labels, processes, uneven), strict=True)
        return sum(torch.nn.functional.cross_entropy(*pair) for pair in pairs) / processes  # type: ignore[return-value]

    original, worker.cross_entropy = worker.cross_entropy, mean_over_parts
    try:
        with Cockpit(model, optimizer, run=run, schedule=Every(1), budget=None):
            for step in range(worker.STEPS):
                optimizer.zero_grad()
                loop(model, lambda values: values, step)
                optimizer.step()
    finally:
        worker.cross_entropy = original


@pytest.mark.parametrize("name", worker.SCENARIOS)
def test_readings_are_those_of_one_process(name: str, folder: Path, tmp_path: Path) -> None:
    processes = int((folder / "processes").read_text())
    assert [(folder / f"{name}-{rank}.txt").read_text() for rank in range(processes)] == ["same"] * processes
    alone(name, processes, tmp_path / "alone")
    together, single = load_run(folder / name), load_run(tmp_path / "alone")
    for reading in READINGS:
        assert (reading in together.names) == (reading in single.names), (reading, together.not_measured.get(reading))
        if reading in single.names:
            steps, values = together.series(reading)
            np.testing.assert_array_equal(steps, single.series(reading)[0], err_msg=reading)
            np.testing.assert_allclose(values, single.series(reading)[1], rtol=2e-3, atol=1e-6, err_msg=reading)
    for layer in single.layers("grad_norm"):
        found, wanted = (run.series(f"grad_norm/{layer}") for run in (together, single))
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-7, err_msg=layer)


def test_one_run_with_the_readings_of_every_process(folder: Path) -> None:
    processes = int((folder / "processes").read_text())
    run = load_run(folder / "usual")
    assert run.ranks == list(range(processes))
    assert run.info["processes"] == processes
    assert run.info["status"] == "completed"
    assert (run.folder / "report.html").is_file()
    assert "several processes" in run.not_measured["curvature_along_gradient"]
    for rank in run.ranks[1:]:
        np.testing.assert_allclose(load_run(folder / "usual", rank).series("norm_test")[1], run.series("norm_test")[1], rtol=1e-6)
    assert not run.alerts, [str(alert) for alert in run.alerts]


def test_a_group_that_is_none_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(SetupError, match=r"process_group= takes a group of torch\.distributed"):
        Cockpit(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / "run", process_group="world")
