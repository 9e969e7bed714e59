from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from cockpit_lite import Cockpit, Every, load_run, plots
from cockpit_lite.plots.histograms import Bins, histograms, quantile
from cockpit_lite.probes.bins import SymmetricBins
from cockpit_lite.run import Run
from tests.plots.synthetic import readings_run
from tests.plots.test_panel import words

ONE = Bins(-2, 1, 1)
TWO = (Bins(-1, 0, 1), Bins(-2, 1, 1))


def module(name: str) -> ModuleType:
    """Return the file of a gauge; the package's attribute of that name is the function."""
    return importlib.import_module(f"cockpit_lite.plots.{name}")


def run_1d(folder: Path, *histograms: list[float], layers: dict[str, list[float]] | None = None, **options: Any) -> Run:
    """Return a run with these histograms of nine bins, in shares of the elements."""
    readings: dict[str, Any] = {"grad_hist_1d": [[1e6 * share for share in shares] for shares in histograms]}
    readings["grad_hist_1d_bins"] = [[ONE.low, ONE.high, ONE.per_decade]] * len(histograms)
    readings |= {f"grad_hist_1d/{name}": [[1e6 * share for share in shares]] for name, shares in (layers or {}).items()}
    return readings_run(folder, readings, **options)


def run_2d(folder: Path, shares: np.ndarray) -> Run:
    """Return a run with one joint histogram, shape (5, 9)."""
    bins = [[axis.low, axis.high, axis.per_decade] for axis in TWO]
    return readings_run(folder, {"grad_hist_2d": [(1e6 * shares).tolist()], "grad_hist_2d_bins": [bins]})  # type: ignore[list-item]


def one(**bins: float) -> list[float]:
    """Return a histogram with shares in bins b0 to b8."""
    return [bins.get(f"b{number}", 0.0) for number in range(ONE.count)]


@pytest.mark.parametrize("bins", [(-10, 4, 2), (-4, 1, 1), (-1, 2, 3)])
def test_bins_are_those_of_the_instruments(bins: tuple[int, int, int]) -> None:
    drawn, measured = Bins(*bins), SymmetricBins(*bins)
    assert drawn.count == measured.count == len(drawn.edges) + 1
    assert np.allclose(drawn.edges, measured.edges().numpy(), rtol=1e-12)
    index = measured.index(torch.tensor(np.sort(np.unique(drawn.magnitudes))))
    middle = drawn.count // 2
    assert index.tolist() == list(range(middle, drawn.count)), "the middle of each bin is in it"


def test_a_quantile_leaves_zeros_out() -> None:
    shares = np.array(one(b4=0.9, b3=0.02, b5=0.03, b6=0.05))
    assert quantile(shares, ONE, 0.4) == pytest.approx(10**-1.5)
    assert quantile(shares, ONE, 0.6) == pytest.approx(10**-0.5)
    assert quantile(np.array(one(b4=1.0)), ONE, 0.5) is None
    assert quantile(np.array(one(b0=1.0)), ONE, 0.5) == np.inf


def test_what_is_no_histogram_is_none(tmp_path: Path) -> None:
    assert histograms(readings_run(tmp_path / "a", {"loss": [1.0]}), "grad_hist_1d") is None
    assert histograms(readings_run(tmp_path / "b", {"grad_hist_1d": [1.0], "grad_hist_1d_bins": [2.0]}), "grad_hist_1d") is None
    other = {"grad_hist_1d": [[1.0, 2.0]], "grad_hist_1d_bins": [[-2.0, 1.0, 1.0]]}
    assert histograms(readings_run(tmp_path / "c", other), "grad_hist_1d") is None  # type: ignore[arg-type]
    without = {"grad_hist_1d": [one(b4=1.0)]}
    assert histograms(readings_run(tmp_path / "d", without), "grad_hist_1d") is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["grad_hist_1d", "grad_hist_2d"])
def test_a_missing_histogram_is_explained(name: str, tmp_path: Path) -> None:
    run = readings_run(tmp_path / "run", {"loss": [1.0]}, not_measured={name: "of a reason"})
    ax = Figure().add_subplot()
    getattr(plots, name)(run, ax)
    assert "not measured, because of a reason" in " ".join(words(ax).split())
    assert module(name).verdict(run) is None
    assert not ax.images


def test_the_strip_shows_what_is_where_and_when(tmp_path: Path) -> None:
    """Positive bins are on top; bins that are never used are left out on both sides."""
    ax = Figure(figsize=(5, 3)).add_subplot()
    plots.grad_hist_1d(run_1d(tmp_path / "run", one(b5=1.0), one(b3=0.5, b4=0.5), one(b2=1.0)), ax)
    (image,) = ax.images
    pixels = np.asarray(image.get_array())
    assert pixels.shape[0] == 7, "three bins and the empty one beyond them, at least, on each side"
    darkest = pixels[..., :3].sum(-1)
    assert darkest[:, 0].argmin() == 2
    assert set(np.flatnonzero(darkest[:, 1] == darkest[:, 1].min())) == {3, 4}
    assert darkest[:, -1].argmin() == 5
    outline = next(line for line in ax.lines if len(line.get_xdata()) == 2 * 7)
    lengths = np.asarray(outline.get_xdata())[::2]
    assert set(np.flatnonzero(lengths == lengths.max())) == {2, 5}, "a mean over the last steps"
    assert ax.get_xlim()[1] > 2.2, "beside the strip"
    assert all(tick <= 2 for tick in ax.get_xticks())


def test_a_strip_grows_with_its_run(tmp_path: Path) -> None:
    ax = Figure(figsize=(5, 3)).add_subplot()
    for count in (1, 2, 50):
        plots.grad_hist_1d(run_1d(tmp_path / str(count), *[one(b4=0.5, b5=0.5)] * count), ax)
        ax.figure.canvas.draw()
        assert len(ax.images) == 1
        assert len(ax.collections) == 1
    assert "0" in words(ax)
    assert "1e-1" in words(ax)
    assert "−1e-1" in words(ax)


@pytest.mark.parametrize(
    ("last", "health", "said"),
    [
        (one(b4=0.2, b5=0.8), "neutral", "median 0.032 (first 0.032)"),
        (one(b4=0.2, b5=0.8), "neutral", "80 % within 0 decades, 20 % zero"),
        (one(b4=0.95, b5=0.05), "watch", "95 % of the elements are zero"),
        (one(b5=0.9, b8=0.1), "trouble", "10 % of the elements are beyond 1e1"),
        (one(b5=0.9), "trouble", "10 % of the elements are NaN"),
    ],
)
def test_the_verdict_of_a_histogram(last: list[float], health: str, said: str, tmp_path: Path) -> None:
    verdict = module("grad_hist_1d").verdict(run_1d(tmp_path / "run", *[last] * 6))
    assert said in verdict.text
    assert verdict.health == health


def test_layers_that_are_far_apart_are_told(tmp_path: Path) -> None:
    folder, gauge = tmp_path / "run", module("grad_hist_1d")
    run = run_1d(folder, one(b5=1.0), layers={"a": one(b5=1.0), "b": one(b7=0.5, b4=0.5), "c": one(b4=1.0)})
    assert gauge.layers_apart(run) == pytest.approx(100)
    assert gauge.verdict(run).health == "neutral"
    gauge_limit, gauge.APART = gauge.APART, 50
    try:
        assert gauge.verdict(run).text == "elements of the layers are 100 times apart"
    finally:
        gauge.APART = gauge_limit


def joint(**cells: float) -> np.ndarray:
    """Return a joint histogram with shares at cells r<row>c<column>."""
    shares = np.zeros((5, 9))
    for cell, share in cells.items():
        row, column = cell[1:].split("c")
        shares[int(row), int(column)] = share
    return shares


@pytest.mark.parametrize(
    ("shares", "health", "said"),
    [
        (joint(r1c3=0.25, r3c5=0.25, r2c5=0.5), "healthy", "alike"),
        (joint(r2c5=0.5, r3c6=0.5), "healthy", "within 10 times"),
        (joint(r2c5=0.5, r3c7=0.5), "watch", "large weights get up to 100 times"),
        (joint(r2c7=0.5, r3c5=0.5), "watch", "small weights get up to 100 times"),
        (joint(r3c5=0.995, r2c7=0.005), "neutral", "all of one magnitude"),
        (joint(r3c5=0.5), "trouble", "50 % of the pairs are NaN"),
    ],
)
def test_the_verdict_of_a_joint_histogram(shares: np.ndarray, health: str, said: str, tmp_path: Path) -> None:
    verdict = module("grad_hist_2d").verdict(run_2d(tmp_path / "run", shares))
    assert said in verdict.text
    assert verdict.health == health


def test_the_matrix_has_large_weights_on_top_and_large_gradients_right(tmp_path: Path) -> None:
    ax = Figure(figsize=(5, 3)).add_subplot()
    plots.grad_hist_2d(run_2d(tmp_path / "run", joint(r4c0=0.9, r0c8=0.1)), ax)
    (image,) = ax.images
    pixels = np.asarray(image.get_array())
    assert pixels.shape == (5, 9, 4)
    assert (pixels[..., 3] > 0).nonzero()[0].tolist() == [0, 4]
    assert (pixels[..., 3] > 0).nonzero()[1].tolist() == [0, 8]
    assert tuple(image.get_extent()) == (-0.5, 8.5, -0.5, 4.5)
    ax.figure.canvas.draw()
    assert "−1e1" in [tick.get_text() for tick in ax.get_xticklabels()]
    assert {"weight", "gradient"} <= set(words(ax).split())


def test_another_gauge_may_take_the_same_axes(tmp_path: Path) -> None:
    ax = Figure(figsize=(5, 3)).add_subplot()
    first, second = run_1d(tmp_path / "1", one(b4=1.0)), run_2d(tmp_path / "2", joint(r2c4=1.0))
    curve = readings_run(tmp_path / "3", {"loss": [1.0, 2.0, 3.0]})
    for _ in range(2):
        plots.grad_hist_1d(first, ax)
        ax.figure.canvas.draw()
        plots.grad_hist_2d(second, ax)
        ax.figure.canvas.draw()
        assert len(ax.images) == 1
        plots.loss(curve, ax)
        ax.figure.canvas.draw()
        assert not ax.images


def test_gauges_of_a_real_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments = ["grad_hist_1d", "grad_hist_2d", "tangent_kernel"]
    cockpit = Cockpit(model, optimizer, run=tmp_path / "run", instruments=instruments, schedule=Every(1), budget=None)
    cockpit._write_results = lambda: None  # type: ignore[method-assign]
    with cockpit:
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(40, 6)), torch.arange(40) % 3).backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    for name in instruments:
        ax = Figure(figsize=(5, 3)).add_subplot()
        getattr(plots, name)(run, ax)
        ax.figure.canvas.draw()
        verdict = module(name).verdict(run)
        assert verdict.text in words(ax)
        assert len(verdict.text) < 70


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ([0.0, 0.001, 0.002] * 5, "lazy so far"),
        (list(np.linspace(0, 0.4, 40)), "still moving"),
        ([*np.linspace(0, 0.4, 10), *[0.4] * 30], "has settled"),
    ],
)
def test_the_verdict_of_a_drift(drift: list[float], said: str, tmp_path: Path) -> None:
    verdict = module("tangent_kernel").verdict(readings_run(tmp_path / "run", {"tangent_kernel": drift}))
    assert said in verdict.text
    assert verdict.health == "neutral"
