"""Per-sample gradients made up by hand, as the per-sample instruments find them on a step."""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics
from cockpit_lite.step import Step


def gradients(samples: int = 7, elements: int = 11, spread: float = 1.0, seed: int = 0) -> Tensor:
    """Return an (N, D) float64 matrix of g_n around a common direction."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, elements, generator=generator, dtype=torch.float64)
    return torch.randn(elements, generator=generator, dtype=torch.float64) + spread * noise


def step_with(g: Tensor, conditional: bool = False) -> Step:
    """Return a step of two parameters that saw the samples' gradients ``g``; the loss is their mean."""
    step = Step(0, {})
    contributions = {"a": g[:, :4] / len(g), "b": g[:, 4:] / len(g)}
    mean = {name: values.sum(0) for name, values in contributions.items()}
    statistics = PerSampleStatistics(
        batch_size=len(g),
        squared_norms={name: values.pow(2).sum(1) for name, values in contributions.items()},
        products={name: values @ mean[name] for name, values in contributions.items()},
        conditional={"a": "batch normalisation"} if conditional else {},
    )
    step.observed.update(gradient=mean, per_sample=statistics)
    return step
