"""What every test runs under: one thread, a fixed seed, no display, an empty working directory."""

from __future__ import annotations

import os

# Before torch and matplotlib are imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from collections.abc import Iterator

import pytest
import torch
from torch.nn.modules import module as module_registry

#: Where torch keeps hooks on all modules.
_HOOKS = [name for name in vars(module_registry) if name.startswith("_global_") and isinstance(vars(module_registry)[name], dict)]

torch.set_num_threads(1)  # small nets are faster so, and sums come out in the same order on every machine


@pytest.fixture(autouse=True)
def _repeatable(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch, and work in an empty folder: a test that forgets ``run=`` leaves no run in the repository."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    if hasattr(os, "nice"):
        monkeypatch.setattr(os, "nice", lambda increment: 0)  # a viewer makes way for good, and here it would be the tests


@pytest.fixture(autouse=True)
def _no_hook_stays(_repeatable: None) -> Iterator[None]:
    """Hooks on all modules at once end with what placed them: one that stays would act in every training of the process."""
    yield
    left = [name for name in _HOOKS if getattr(module_registry, name)]
    for name in left:  # and would make the tests after this one fail
        getattr(module_registry, name).clear()
    assert not left, f"global hooks were left behind: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
