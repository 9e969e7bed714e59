"""Training in several processes: the readings are those of one process with the same batch, and nobody waits in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cockpit_lite import Cockpit, Every, SetupError, load_run
from cockpit_lite.run import Run
from tests import distributed_worker as worker

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available() or not hasattr(os, "fork"):
    pytest.skip("needs gloo and fork", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
READINGS = (
    "loss", "grad_norm", "norm_test", "inner_product_test", "orthogonality_test", "gradient_noise_scale", "gsnr",
    "early_stopping", "gradient_alignment", "conflicting_samples", "cabs", "batch_size", "update_size", "alpha",
    "curvature_along_gradient",
)  # fmt: skip
#: What follows from products with the Hessian.
OF_PRODUCTS = (
    "curvature_along_gradient", "max_eigenvalue", "min_eigenvalue", "top_eigenvalues", "hessian_trace", "spectral_density",
    "eigenvector_overlap", "sharpness_ratio", "taylor_curvature_term",
)  # fmt: skip
#: What follows from parts of the parameters.
OF_PARTS = ("loss", "grad_norm", "grad_norm_clipped", "clip_ratio", "update_size", "update_ratio", "distance", "learning_rate")
#: And what where these are whole while a module is called.
OF_CALLS = (*worker.OF_NORMS, "batch_size")
#: How many processes -> what they do
STARTED = {2: [*worker.SCENARIOS, *worker.FAILURES], 4: ["uneven", "sharded", "sharded blocks", "curved"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Everything that runs in several processes, at once."""
    folders = {processes: tmp_path_factory.mktemp(f"{processes}-processes") for processes in STARTED}
    for processes, names in STARTED.items():
        ended = subprocess.run(
            [sys.executable, "-m", "tests.distributed_worker", str(folders[processes]), str(processes), *names],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
        assert ended.returncode == 0, ended.stderr
    return folders


def told(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@cache
def alone(name: str, processes: int, folder: Path, sampled: tuple[str, ...] = ()) -> Run:
    """The same training in one process: the loss is the mean of those of the parts."""
    make, loop, _, uneven = worker.SCENARIOS[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def mean_over_parts(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pairs = zip(worker.parts(outputs, processes, bool(uneven)), worker.parts(labels, processes, bool(uneven)), strict=True)
        return sum(torch.nn.functional.cross_entropy(*pair) for pair in pairs) / processes  # type: ignore[return-value]

    run = folder / " ".join([name, "alone", *sampled])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "cross_entropy", mean_over_parts)
        patch.setattr(Cockpit, "_write_results", lambda self: None)
        measuring = worker.instruments(name, sampled)
        with Cockpit(model, optimizer, run=run, schedule=Every(1), budget=None, instruments=measuring):
            for step in range(worker.STEPS):
                optimizer.zero_grad()
                loop(model, lambda values: values, step)
                optimizer.step()
    return load_run(run)


def assert_same_histograms(together: Run, single: Run) -> None:
    """But for an element or two that rounding moves across the edge of a bin."""
    assert single.layers("grad_hist_1d")
    for name in ("grad_hist_1d", *(f"grad_hist_1d/{layer}" for layer in single.layers("grad_hist_1d"))):
        for values, wanted in zip(together.series(name)[1], single.series(name)[1], strict=True):
            assert wanted.sum() == pytest.approx(1e6, rel=1e-4)
            assert np.abs(values - wanted).sum() < 0.01e6, name


def assert_same_readings(together: Run, single: Run, names: tuple[str, ...]) -> None:
    for reading in names:
        assert (reading in together.names) == (reading in single.names), (reading, together.not_measured.get(reading))
        if reading in single.names:
            steps, values = together.series(reading)
            np.testing.assert_array_equal(steps, single.series(reading)[0], err_msg=reading)
            is_estimate = any("standard_error" in about for about in single.how(reading).values())
            tolerance = 6e-3 if is_estimate else 2e-3  # the log writes fewer digits where less is known, three at least
            np.testing.assert_allclose(values, single.series(reading)[1], rtol=tolerance, atol=1e-6, err_msg=reading)
    layered = ("layerwise_curvature", "layerwise_max_eigenvalue") if "max_eigenvalue" in names else ()
    for reading in ("grad_norm", "update_ratio", *layered):
        assert single.layers(reading)
        for layer in single.layers(reading):
            found, wanted = (run.series(f"{reading}/{layer}") for run in (together, single))
            np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=2e-6, err_msg=layer)


SOUND = [name for name in worker.SCENARIOS if name != "apart"]
EVERYTHING = [(processes, name) for processes, names in STARTED.items() for name in names if name in SOUND]


@pytest.mark.parametrize(("processes", "name"), EVERYTHING)
def test_readings_are_those_of_one_process(processes: int, name: str, runs: dict[int, Path]) -> None:
    for rank in range(processes):
        assert told(runs[processes], name, rank) == {"same": True, "error": "", "warnings": []}
    whole = name not in (*worker.BY_FSDP, "tensor-parallel")
    single = alone(name, processes, runs[processes])
    clips = worker.SCENARIOS[name][1] is worker.clipped  # else there is none, or that of sharded parameters, which always is
    readings = (*READINGS, *OF_PRODUCTS) if name == "curved" else READINGS
    of_parts = tuple(reading for reading in OF_PARTS if clips or reading != "grad_norm_clipped")
    of_parts += OF_CALLS if name in worker.BY_FSDP else ()
    for rank in {0, processes - 1}:
        assert_same_readings(load_run(runs[processes] / name, rank), single, readings if whole else of_parts)
        if whole and name != "unused":  # there the head that is not used has its turn, too
            assert_same_histograms(load_run(runs[processes] / name, rank), single)


@pytest.mark.parametrize("name", ["sharded", "tensor-parallel"])
def test_what_needs_whole_parameters_is_named(name: str, runs: dict[int, Path]) -> None:
    run = load_run(runs[2] / name)
    for reading in ("gsnr", "alpha", "curvature_along_gradient", *(() if name == "sharded" else ("norm_test",))):
        assert run.not_measured[reading] == "it is not measured of sharded parameters"
    assert "each process holds a part" in run.not_measured["gradient_scale"]
    if name == "sharded":
        assert "the first axis of the model's input is taken for the samples" in run.how("norm_test")[0]["note"]
    assert run.not_measured["ranks_apart"] == "the parameters are sharded, and different everywhere"


def test_one_run_with_the_readings_of_every_process(runs: dict[int, Path]) -> None:
    run = load_run(runs[2] / "usual")
    assert run.ranks == [0, 1]
    assert run.info["processes"] == 2
    assert "loss" in run.info["data_parallel"]["reduced"] and "data" in run.info["data_parallel"]["local"]
    assert run.info["status"] == "completed"
    assert (run.folder / "report.html").is_file()
    np.testing.assert_allclose(load_run(run.folder, 1).series("norm_test")[1], run.series("norm_test")[1], rtol=1e-6)
    assert not run.alerts, [str(alert) for alert in run.alerts]


def test_processes_that_train_for_themselves_are_a_finding(runs: dict[int, Path]) -> None:
    assert told(runs[2], "apart", 0)["same"]
    (alert,) = [alert for alert in load_run(runs[2] / "apart").alerts if alert.name == "ranks-disagree"]
    assert alert.evidence["ranks that differ"] == 1.0
    assert "gradient is not the mean" in load_run(runs[2] / "apart").not_measured["norm_test"]


def measured(folder: Path, rank: int, reading: str) -> list[int]:
    run = load_run(folder, rank)
    return run.series(reading)[0].tolist() if reading in run.names else []


def test_an_instrument_that_fails_in_one_process_is_missing_there(runs: dict[int, Path]) -> None:
    name = "instrument fails"
    (warning,) = told(runs[2], name, 1)["warnings"]
    assert "'fails' failed at step 2" in warning
    assert told(runs[2], name, 0) == {"same": True, "error": "", "warnings": []}
    assert told(runs[2], name, 1)["same"]
    assert [measured(runs[2] / name, rank, "fails") for rank in range(2)] == [[0, 1, 2, 3], [0, 1]]
    assert measured(runs[2] / name, 0, "norm_test") == [0, 1, 2, 3]


def test_curvature_that_fails_in_one_process_is_missing_at_that_step(runs: dict[int, Path]) -> None:
    name = "curvature fails"
    (warning,) = told(runs[2], name, 1)["warnings"]
    assert "'fails_halfway' failed at step 1" in warning
    assert told(runs[2], name, 0) == {"same": True, "error": "", "warnings": []}
    for rank in range(2):
        assert measured(runs[2] / name, rank, "fails_halfway") == [0]
        assert measured(runs[2] / name, rank, "max_eigenvalue") == [0, 2, 3]
        assert measured(runs[2] / name, rank, "norm_test") == [0, 1, 2, 3]
    values = [load_run(runs[2] / name, rank).series("max_eigenvalue")[1] for rank in range(2)]
    np.testing.assert_array_equal(*values)
    assert "one of the processes does not measure it" in load_run(runs[2] / name).not_measured["fails_halfway"]


def test_the_second_of_two_steps_is_tracked_by_all(runs: dict[int, Path]) -> None:
    """Else the others would wait there for the process whose instrument was the reason to track it, and was switched off."""
    assert told(runs[2], "fails between", 0) == {"same": True, "error": "", "warnings": []}
    for rank in range(2):
        assert measured(runs[2] / "fails between", rank, "norm_test") == [0, 2]
    assert measured(runs[2] / "fails between", 0, "fails_between") == [0, 1, 2, 3]


def test_the_sampled_gauss_newton_matrix_is_that_of_all_samples(runs: dict[int, Path]) -> None:
    together, single = load_run(runs[2] / "curved"), alone("curved", 2, runs[2], worker.SAMPLED)
    for step in range(worker.STEPS):
        how = [run.how("ggn_trace")[step]["standard_error"] for run in (together, single)]
        values = [run.series("ggn_trace")[1][step] for run in (together, single)]
        assert abs(values[0] - values[1]) < 4 * float(np.hypot(*how))
        assert values[0] == load_run(together.folder, 1).series("ggn_trace")[1][step]
        assert 0.5 < how[0] / how[1] < 2  # as much is known from as many samples
    assert "tic_diag" in together.names


def test_a_cockpit_that_fails_in_one_process_leaves_the_others(runs: dict[int, Path]) -> None:
    name = "cockpit fails"
    for rank, why in enumerate(("another process has gone", "the cockpit of this process has failed")):
        there = told(runs[2], name, rank)
        assert there["same"], there
        assert len([warning for warning in there["warnings"] if why in warning]) == 1
    run = load_run(runs[2] / name)
    assert measured(run.folder, 0, "norm_test") == [0, 1]
    assert "do not measure together any more: another process has gone" in run.not_measured["norm_test"]
    assert measured(run.folder, 0, "loss") == [0, 1, 2, 3]  # from then on that of its own part
    assert measured(run.folder, 0, "update_size") == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["training fails", "is killed"])
def test_a_process_that_ends_leaves_readable_logs_and_nobody_waiting(name: str, runs: dict[int, Path]) -> None:
    assert told(runs[2], name, 0)["error"] == "RuntimeError"  # of the training's own communication
    run = load_run(runs[2] / name)
    assert run.info["status"] == "failed"
    for rank in range(2):
        assert measured(run.folder, rank, "loss")[:2] == [0, 1][: 2 if rank == 0 or name == "training fails" else 0]
    ended = json.loads((runs[2] / "ended.json").read_text())
    assert ended == [0, 0, 0, 0, 0, -9]


def test_a_group_that_is_none_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(SetupError, match=r"process_group= takes a group of torch\.distributed"):
        Cockpit(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / "run", process_group="world")


def test_what_is_sent_is_what_the_documentation_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = torch.distributed
    sent: list[int] = []

    def counted(function: Any, place: int) -> Any:
        def call(*tensors: Any, **settings: Any) -> Any:
            sent.append(tensors[place].numel())
            return function(*tensors, **settings)

        return call

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = worker.network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monkeypatch.setattr(Cockpit, "_write_results", lambda self: None)
        schedule = {0: True, 1: True}.get
        with Cockpit(model, optimizer, run=tmp_path / "run", schedule=schedule, process_group=distributed.group.WORLD):
            monkeypatch.setattr(distributed, "all_reduce", counted(distributed.all_reduce, 0))
            monkeypatch.setattr(distributed, "all_gather", counted(distributed.all_gather, 1))
            for step in range(2):
                optimizer.zero_grad()
                worker.usual(model, lambda values: values, step)
                optimizer.step()
                if step == 0:
                    sent.clear()  # of the second step, when the slopes along the first are known
    finally:
        distributed.destroy_process_group()
    tensors, elements, samples = 4, sum(parameter.numel() for parameter in model.parameters()), 16
    agreement, loss, histograms = 2 + 3 * tensors + 16, 1, elements * samples
    gradient_and_product, curvature = 2 * (elements + 8), 1 + 16
    assert sum(sent) == agreement + loss + (2 * tensors + 2) * samples + elements + curvature + gradient_and_product + histograms


def test_what_is_local_is_said(tmp_path: Path) -> None:
    """Without a group the gradient is that of all processes, since it is averaged before anybody looks; the loss is not."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        with Cockpit(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / "run") as cockpit:
            info = load_run(cockpit.folder).info["data_parallel"]
    finally:
        distributed.destroy_process_group()
    assert "gradient" in info["reduced"] and "loss" in info["local"]
    plain = torch.nn.Linear(2, 2)
    with Cockpit(plain, torch.optim.SGD(plain.parameters(), lr=0.1), run=tmp_path / "plain"):
        pass
    assert "data_parallel" not in load_run(tmp_path / "plain").info


def test_flat_parameters_are_refused(tmp_path: Path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.warns(UserWarning, match="NO_SHARD"):
            model = FullyShardedDataParallel(torch.nn.Linear(2, 2), device_id=torch.device("cpu"))
        with pytest.raises(SetupError, match="fully_shard, which follows it, can be watched"):
            Cockpit(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / "run")
    finally:
        distributed.destroy_process_group()
