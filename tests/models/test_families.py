"""Real model families: per-sample statistics are exact or named, and watching a training leaves no trace.

Run by ``make test-models``, which installs the packages; ``make test`` leaves this folder out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from tests.identity import Watch, assert_identical
from tests.models.families import FAMILIES, MISSING
from tests.models.precision import Float64Throughout
from tests.per_sample.verdicts import verdicts

#: Parameters that are not covered, and why they cannot be.
NOT_COVERED: dict[str, set[str]] = {}
STEPS = 3
BATCH = 8  # with fewer samples batch normalisation leaves too little of them


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are small
    yield
    torch.set_num_threads(threads)


def test_all_packages_are_installed() -> None:
    assert not MISSING, "pip install -e '.[models]'"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_or_named(name: str, dtype: torch.dtype) -> None:
    with Float64Throughout() if dtype == torch.float64 else nullcontext():
        found, reasons = verdicts(FAMILIES[name], dtype)
    assert [parameter for parameter, verdict in found.items() if verdict not in ("exact", "named")] == []
    assert set(reasons) == NOT_COVERED.get(name, set()), reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_is_watched_without_a_trace(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]

    def step(model: nn.Module, optimizer: SGD, number: int) -> None:
        optimizer.zero_grad()
        family.loss(model, family.batch(BATCH, torch.Generator().manual_seed(number))).backward()
        optimizer.step()

    def train(watch: Watch) -> None:
        model = family.build()
        optimizer = SGD(model.parameters(), lr=0.01)
        with watch(model, optimizer):
            for number in range(STEPS):
                step(model, optimizer, number)

    model = family.build()
    step(model, SGD(model.parameters(), lr=0.01), 0)  # what a package imports or says once must not be taken for ours
    run = assert_identical(train, tmp_path / "run")  # an instrument that is switched off warns, and that is a difference
    for reading in ("loss", "grad_norm", "update_size"):
        assert run.series(reading)[0].tolist() == list(range(STEPS)), run.not_measured
    assert "norm_test" in run.names, run.not_measured
