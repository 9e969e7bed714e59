"""Synthetic runs of known content, written through the real writer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import RunWriter

SGD = {"class": "SGD", "lr": 0.05, "momentum": 0.0, "nesterov": False}

ALERTS: dict[str, dict[str, Any]] = {
    "learning-rate-too-high": {
        "code": "CL402",
        "name": "learning-rate-too-high",
        "severity": "error",
        "step": 180,
        "cause": "The largest eigenvalue, 96, is 2.4 times the limit 2 / learning rate = 40, and the loss rises with every step.",
        "advice": "Lower the learning rate to 0.02.",
        "where": ["features.0.weight"],
        "confidence": 0.9,
    },
    "exploding-gradients": {
        "code": "CL302",
        "name": "exploding-gradients",
        "severity": "error",
        "step": 195,
        "cause": "The gradient norm is 340 times its median and the loss rises.",
        "advice": "Clip the gradient.",
    },
    "ill-conditioning": {
        "code": "CL404",
        "name": "ill-conditioning",
        "severity": "warning",
        "step": 120,
        "cause": "Curvature eats half of the gain while the gradient norm stays.",
        "advice": "Normalise the inputs.",
    },
}


def readings_run(
    folder: Path,
    readings: Mapping[str, Sequence[float]],
    *,
    optimizer: object = SGD,
    how: Mapping[str, Mapping[str, Any]] | None = None,
    alerts: Sequence[Mapping[str, Any]] = (),
    not_measured: Mapping[str, str] | None = None,
    status: str = "completed",
    model: object = "Net",
) -> Run:
    """Return a run with exactly these readings, one value a step from step 0 on."""
    writer = RunWriter(folder, {"model": model, "optimizer": optimizer, "status": "running"})
    for step in range(max(map(len, readings.values()), default=0)):
        writer.step(step, {name: values[step] for name, values in readings.items() if step < len(values)}, how)
    if not_measured:
        writer.not_measured(0, not_measured)
    for alert in alerts:
        writer.alert(alert)
    writer.close(status=status)
    return load_run(folder)


#: Layers of the net that :func:`training_run` pretends to train.
LAYERS = ("0", "1", "3", "4", "7")


def depth_readings(progress: float, noisy: Callable[[float, float], float]) -> dict[str, float]:
    """Return layerwise readings, and the scalar of each."""
    found: dict[str, float] = {}
    for name, value, per_layer in (
        ("activation_mean", 0.4, 0.1),
        ("activation_std", 0.8, 0.05),
        ("dead_units", 0.05 + 0.2 * progress, 0.02),
        ("saturation", 0.3 * progress, 0.05),
        ("effective_rank", 0.6 - 0.3 * progress, -0.04),
        ("gradient_scale", 0.3 - 0.2 * progress, 0.02),
        ("gsnr", 0.5 - 0.4 * progress, 0.02),
        ("residual_growth", 1.3, -0.05),
    ):
        layers = {f"{name}/{layer}": noisy(value + per_layer * index, 0.05) for index, layer in enumerate(LAYERS)}
        found |= layers
        found.setdefault(name, min(layers.values()) if name == "effective_rank" else max(layers.values()))
    return found


def training_run(
    folder: Path,
    steps: int = 300,
    *,
    every: int = 1,
    full: bool = True,
    nan_from: int | None = None,
    alerts: Sequence[str] = (),
    layer_names: Sequence[str] = ("0.weight", "0.bias", "3.weight", "3.bias"),
    model: object = "ConvNet",
    optimizer: object = SGD,
    status: str = "completed",
    seed: int = 0,
) -> Run:
    """Return a run that looks like SGD on a small classifier; from ``nan_from`` on the loss and what follows from it is NaN."""
    writer = RunWriter(folder, {"model": model, "optimizer": optimizer, "status": "running"})
    random = np.random.default_rng(seed)
    distance = 0.0
    for step in range(0, steps, every):

        def noisy(value: float, spread: float) -> float:
            return value * math.exp(spread * random.standard_normal())

        progress = step / max(300, steps)
        norm = noisy(1.6 * math.exp(-2.2 * progress) + 0.15, 0.25)
        rate = 0.05 * (0.55 + 0.45 * math.cos(math.pi * progress))
        eigenvalue = 12 + noisy(25 * (1 - math.exp(-5 * progress)), 0.05)
        distance = math.hypot(distance, 3 * rate * norm) + 0.3 * rate * norm
        values = {
            "loss": noisy(2.25 * math.exp(-4 * progress), 0.12) + 0.08,
            "learning_rate": rate,
            "grad_norm": norm,
            "update_size": rate * norm,
            "update_ratio": rate * norm / 14,
            "distance": distance,
            "step_time": noisy(0.011, 0.1),
            "overhead": noisy(0.035, 0.1),
        }
        for index, name in enumerate(layer_names):
            values[f"grad_norm/{name}"] = noisy(norm * (0.2 + 0.6 / (1 + index)), 0.15)
        how: dict[str, dict[str, Any]] = {}
        if full:
            scale = noisy(40 + 900 * progress, 0.5)
            values |= {
                "batch_size": 64.0,
                "gsnr": noisy(0.5 - 0.4 * progress, 0.2),
                "cabs": noisy(10 + 90 * progress, 0.3),
                "early_stopping": -3 * (1 - progress) + 0.3 * random.standard_normal(),
                "gradient_alignment": noisy(0.3 - 0.25 * progress, 0.2),
                "conflicting_samples": 0.2 + 0.15 * progress,
                "gradient_scale": noisy(0.3 - 0.2 * progress, 0.1),
                "gradient_growth": noisy(0.9, 0.05),
                "norm_test": math.sqrt(scale / 64),
                "inner_product_test": 0.45 * math.sqrt(scale / 64),
                "orthogonality_test": 0.9 * math.sqrt(scale / 64),
                "gradient_noise_scale": scale,
                "suggested_batch_size_lower": 0.6 * scale,
                "suggested_batch_size_upper": 1.9 * scale,
                "alpha": -0.3 + 0.3 * random.standard_normal(),
                "label_noise": math.exp(-6 * progress),
                "batch_accuracy": 0.97 - 0.85 * math.exp(-6 * progress),
                "attention_entropy": noisy(0.7 - 0.2 * progress, 0.03),
                "attention_logit": noisy(2 + 6 * progress, 0.1),
                "graph_cut": 0.0,
                "modules_in_eval_mode": 0.0,
                "softmax_twice": 0.0,
                "gradient_left_over": 0.0,
                "hardest_samples": noisy(0.05 + 0.1 * progress, 0.2),
                "hardest_by_gradient": [[9.0 - row, 2.0 / (row + 1), 5.0 - row / 2] for row in range(8)],
                "taylor_gradient_term": rate * norm**2,
                "taylor_curvature_term": noisy(0.2 * rate**2 * norm**2 * eigenvalue, 0.2),
                "curvature_along_gradient": 0.4 * eigenvalue,
            }
            values |= depth_readings(progress, noisy)
            how["gradient_noise_scale"] = {"kind": "estimated", "standard_error": 0.3 * scale}
            if step % 10 == 0:
                values |= {"max_eigenvalue": eigenvalue, "hessian_trace": noisy(6 * eigenvalue, 0.1)}
                values |= {
                    "min_eigenvalue": -0.1 * eigenvalue,
                    "max_magnitude_eigenvalue": eigenvalue,
                    "sharpness_ratio": eigenvalue * rate / 2,
                    "max_learning_rate": 2 / eigenvalue,
                    "eigenvector_overlap": 0.8,
                    "tangent_kernel": 0.3 * progress,
                    "tangent_kernel_growth": 1 + progress,
                    "gradient_in_top_subspace": 0.4,
                    "curvature_noise": 0.2,
                    "trust_ratio": noisy(0.95, 0.05),
                    "actual_decrease": rate * norm**2,
                    "predicted_decrease": rate * norm**2,
                    **{f"layerwise_curvature/{name}": noisy(eigenvalue, 0.2) for name in layer_names},
                    **{f"ggn_diagonal/{name}": noisy(eigenvalue / 1_000, 0.5) for name in layer_names},
                    **{f"hessian_diagonal/{name}": noisy(eigenvalue / 1_000, 0.5) for name in layer_names},
                    "negative_curvature": 0.1,
                    "ggn_trace": noisy(5 * eigenvalue, 0.05),
                    "tic_trace": noisy(3.0, 0.3),
                    "tic_diag": noisy(4_000.0, 0.5),
                    "condition": noisy(900 + 20 * eigenvalue, 0.3),
                    "outliers_over_bulk": noisy(2 * eigenvalue, 0.1),
                    "flat_directions": 0.97,
                    "spectral_density": [[-0.1 * eigenvalue, 0.0, 0.1, eigenvalue], [1e-4, 0.97, 0.0298, 1e-4]],
                }
                how["hessian_trace"] = {"kind": "estimated", "standard_error": 0.4 * eigenvalue}
            if step % 50 == 0:
                values["validation_overlap"] = 0.0
                values["validation_loss"] = 2.25 * math.exp(-3.4 * progress) + 0.12
                values["validation_accuracy"] = 0.97 - 0.85 * math.exp(-6 * progress)
        if nan_from is not None and step >= nan_from:
            broken = ("loss", "grad_norm", "update_size", "update_ratio", "distance")
            values |= {name: math.nan for name in values if name.split("/")[0] in broken}
        writer.step(step, values, how)
    for name in alerts:
        writer.alert(ALERTS[name])
    writer.close(status=status)
    return load_run(folder)
