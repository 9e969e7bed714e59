"""The gradient where a step began, for the slope along it: copied only where somebody overwrites it."""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.probes.last_step import GradientAtStart


def taken(probe: GradientAtStart, gradient: dict[str, Tensor], overwrite: bool) -> list[float] | None:
    probe.keep(gradient)
    if overwrite:
        gradient["weight"].zero_()
    found = probe.unchanged()
    return None if found is None else found["weight"].tolist()


def test_a_gradient_that_nobody_overwrites_is_not_copied() -> None:
    probe, gradient = GradientAtStart(), {"weight": torch.tensor([1.0, 2.0])}
    assert taken(probe, gradient, overwrite=False) == [1.0, 2.0]
    kept = probe.keep(gradient)
    assert kept["weight"] is gradient["weight"]
    assert probe.unchanged() is kept


def test_one_that_is_overwritten_is_right_or_lost() -> None:
    probe = GradientAtStart()
    steps = [(False, [1.0]), (True, None), (True, [1.0]), (False, [1.0]), (True, None)]
    for overwrite, expected in steps:  # lost where it comes as a surprise, and copied on the step after
        assert taken(probe, {"weight": torch.ones(1)}, overwrite) == expected


def test_without_a_gradient_there_is_none() -> None:
    probe = GradientAtStart()
    assert probe.keep({}) == {}
    assert probe.unchanged() is None
    assert taken(probe, {"weight": torch.ones(1)}, overwrite=True) == [1.0], "the first look is on the safe side"
    assert probe.unchanged() is None, "it is asked for once"
