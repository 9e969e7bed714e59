"""What benchmarks/curvature.py compares finds the same eigenvalue."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from benchmarks.curvature import Task, curvature_instruments, eigenvalues, least, methods


def small() -> Task:
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 6, generator=draw), torch.randint(3, (64,), generator=draw)
    return Task(
        "small",
        lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)),
        inputs,
        targets,
        32,
        lambda model: SGD(model.parameters(), lr=0.1),
    )


def test_all_methods_agree_on_the_largest_eigenvalue() -> None:
    found, plain = eigenvalues(small(), 11)
    assert plain > 0
    assert set(methods()) < set(found)
    for name, method in found.items():
        assert len(method.products) == len(method.errors) == len(method.seconds) == 2
        if "of the batch" not in name:
            assert max(method.errors) < 0.05, name
    assert max(found["scipy eigsh"].products) > max(found["cockpit-lite"].products)


def test_the_least_that_a_step_can_take() -> None:
    along, three = least([0.7, 0.5, 1.5, 0.25, 0.4], 4)
    assert along == 1.7
    assert three == 1 + 0.5 + 4 * 1.5 + 0.25 + 0.4


def test_all_instruments_that_look_at_second_derivatives_are_counted() -> None:
    names = curvature_instruments()
    assert {"max_eigenvalue", "hessian_trace", "hessian_diagonal", "tic_diag", "sharpness_limit"} <= set(names)
    assert "grad_norm" not in names
