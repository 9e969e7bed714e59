"""What the curvature gauges say, and the strip of the spectrum."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cockpit_lite.plots.spectral_density import density_table, size_edges
from tests.plots.synthetic import readings_run


def module(name: str) -> ModuleType:
    return importlib.import_module(f"cockpit_lite.plots.{name}")


def level(value: float) -> list[float]:
    return [value] * 12


@pytest.mark.parametrize(
    ("gauge", "readings", "health", "said"),
    [
        ("trust_ratio", {"trust_ratio": 0.9, "predicted_decrease": 0.1, "actual_decrease": 0.09}, "healthy", "keeps 90 %"),
        ("trust_ratio", {"trust_ratio": 0.5}, "watch", "keeps 50 %"),
        ("trust_ratio", {"trust_ratio": 0.1, "predicted_decrease": 1.0, "actual_decrease": 0.1}, "trouble", "too long"),
        ("trust_ratio", {"trust_ratio": -2.0, "predicted_decrease": 1.0, "actual_decrease": -2.0}, "trouble", "go up"),
        ("trust_ratio", {"trust_ratio": 1.0, "predicted_decrease": -1.0, "actual_decrease": -1.0}, "watch", "downhill"),
        (
            "sharpness_limit",
            {"sharpness_ratio": 0.4, "max_learning_rate": 0.25},
            "healthy",
            "40 % of the limit, learning rate up to 0.25",
        ),
        ("sharpness_limit", {"sharpness_ratio": 1.0}, "watch", "edge of stability"),
        ("sharpness_limit", {"sharpness_ratio": 4.0}, "trouble", "4 times the limit"),
        ("sharpness_limit", {"sharpness_ratio": -1.0}, "neutral", "no limit"),
        ("curvature_noise", {"curvature_noise": 0.1}, "healthy", "10 %"),
        ("curvature_noise", {"curvature_noise": 0.5}, "neutral", "50 %"),
        ("curvature_noise", {"curvature_noise": 2.0}, "watch", "a few samples"),
        (
            "eigenvector_overlap",
            {"eigenvector_overlap": 0.9, "gradient_in_top_subspace": 0.5},
            "healthy",
            "90 % stays, they hold 50 %",
        ),
        ("eigenvector_overlap", {"eigenvector_overlap": 0.1}, "watch", "those of each batch"),
        ("eigenvector_overlap", {"gradient_in_top_subspace": 0.5}, "neutral", "hold 50 % of the gradient"),
        ("min_eigenvalue", {"min_eigenvalue": -1.0, "max_magnitude_eigenvalue": 50.0}, "healthy", "2 % of the largest"),
        ("min_eigenvalue", {"min_eigenvalue": -25.0, "max_magnitude_eigenvalue": 50.0}, "watch", "much negative curvature"),
        ("min_eigenvalue", {"min_eigenvalue": -60.0, "max_magnitude_eigenvalue": -60.0}, "watch", "more than up"),
        ("min_eigenvalue", {"min_eigenvalue": 0.1, "max_magnitude_eigenvalue": 5.0}, "healthy", "no bend downwards"),
        ("layerwise_curvature", {"layerwise_curvature/a": 9.0, "layerwise_curvature/b": 1.0}, "neutral", "a carries 90 %"),
        (
            "layerwise_curvature",
            {"layerwise_curvature/a": -1.0, "layerwise_curvature/b": -1.0},
            "neutral",
            "no layer bends upwards",
        ),
        (
            "condition",
            {"condition": 900.0, "outliers_over_bulk": 30.0},
            "healthy",
            "900 times the median direction, 30 times the bulk",
        ),
        ("condition", {"condition": 3e6}, "watch", "ill-conditioned"),
        ("condition", {"outliers_over_bulk": 30.0}, "neutral", "30 times the bulk"),
        ("ggn_trace", {"ggn_trace": 10.0, "hessian_trace": 15.0}, "neutral", "150 % of it"),
        ("ggn_trace", {"ggn_trace": 10.0}, "neutral", "10"),
        ("ggn_diagonal", {"ggn_diagonal/a": 9.0, "ggn_diagonal/b": 0.5}, "neutral", "a is the sharpest, 18 times"),
        ("ggn_diagonal", {"ggn_diagonal/a": 0.0}, "neutral", "no weight has an influence"),
        (
            "hessian_diagonal",
            {"hessian_diagonal/a": 9.0, "hessian_diagonal/b": -1.0, "negative_curvature": 0.2},
            "neutral",
            "a is the sharpest (9), 20 % of the weights bend down",
        ),
        ("tic_trace", {"tic_trace": 3.0}, "neutral", "3 effective parameters"),
        ("tic_trace", {"tic_diag": 400.0}, "neutral", "400 effective parameters"),
        ("spectral_density", {"flat_directions": 0.97}, "neutral", "97 % are flat"),
    ],
)
def test_a_verdict_says_what_is_there(gauge: str, readings: Mapping[str, float], health: str, said: str, tmp_path: Path) -> None:
    run = readings_run(tmp_path, {name: level(value) for name, value in readings.items()})
    verdict = module(gauge).verdict(run)
    assert said in verdict.text
    assert verdict.health == health


def test_a_criterion_that_grows_is_watched(tmp_path: Path) -> None:
    verdict = module("tic_trace").verdict(readings_run(tmp_path, {"tic_trace": [1.0] * 20 + [30.0] * 20}))
    assert "30 times its lowest" in verdict.text
    assert verdict.health == "watch"


@pytest.mark.parametrize(
    "gauge",
    ["trust_ratio", "curvature_noise", "eigenvector_overlap", "min_eigenvalue", "condition", "ggn_trace", "tic_trace"],
)
def test_what_is_not_finite_is_said(gauge: str, tmp_path: Path) -> None:
    verdict = module(gauge).verdict(readings_run(tmp_path, {gauge: [1.0, 2.0, float("nan")]}))
    assert "NaN since step 2" in verdict.text
    assert verdict.health == "trouble"


def spectra(folder: Path, values: Sequence[Any]) -> Any:
    return density_table(readings_run(folder, {"spectral_density": values, "flat_directions": level(0.9)[: len(values)]}))


def test_the_strip_keeps_every_eigenvalue_in_the_row_of_its_size(tmp_path: Path) -> None:
    table = spectra(tmp_path, [[[-1.0, 0.0, 10.0], [0.1, 0.85, 0.05]]])
    assert table.values.sum() == pytest.approx(1)
    sizes = np.array([float(name) for name in table.names])
    assert sizes[0] == pytest.approx(10, rel=0.2)
    assert sizes[-1] == pytest.approx(-1, rel=0.3)
    assert (np.diff(sizes) < 0).all()
    column = table.values[:, 0]
    assert column[sizes > 1].sum() == pytest.approx(0.05, rel=1e-3)
    assert column[np.abs(sizes) < 0.1].sum() == pytest.approx(0.85, rel=0.02)
    assert abs(sizes[column.argmax()]) < 0.02


def test_the_strip_shows_what_is_not_finite_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    nan = float("nan")
    table = spectra(tmp_path, [[[0.0, 1.0], [0.9, 0.1]], [[nan, nan], [nan, nan]]])
    assert np.isnan(table.values[:, 1]).all()
    assert table.known[:, 1].all()
    assert not table.known[:, 0].all()


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[[float("nan")], [float("nan")]]], [[[0.0, 0.0], [0.5, 0.5]]]])
def test_without_a_spectrum_there_is_no_strip(values: Any, tmp_path: Path) -> None:
    assert spectra(tmp_path, values) is None


def test_rows_reach_as_far_down_as_there_are_negative_eigenvalues() -> None:
    assert size_edges(2.0, 0.0)[0] == pytest.approx(-2e-3)
    assert size_edges(2.0, 0.5)[0] <= -1.0
    assert size_edges(2.0, 1.0)[0] == pytest.approx(-2.0)
    assert size_edges(2.0, 0.5)[-1] == pytest.approx(2.0)
