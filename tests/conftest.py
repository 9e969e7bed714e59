"""What every test runs under: one thread, a fixed seed, no display, an empty working directory."""

from __future__ import annotations

import os

# Before torch and matplotlib are imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

torch.set_num_threads(1)  # small nets are faster so, and sums come out in the same order on every machine


@pytest.fixture(autouse=True)
def _repeatable(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch, and work in an empty folder: a test that forgets ``run=`` leaves no run in the repository."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
