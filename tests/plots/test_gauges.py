from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure

from cockpit_lite import plots
from cockpit_lite.plots.curve import Area
from cockpit_lite.run import Run
from tests.plots.synthetic import SGD, readings_run, training_run
from tests.plots.test_panel import words

GAUGES = [name for name in plots.__all__ if name.islower() and name not in ("save_page", "pages", "reading", "animate")]
GAUGES = [name for name in GAUGES if not name.startswith("grad_hist")]  # of arrays: they have tests of their own
NEW_LAYERWISE = ["activation_mean", "activation_std", "dead_units", "saturation", "effective_rank", "gradient_scale", "gsnr"]
NEW_LAYERWISE += ["layerwise_curvature", "ggn_diagonal", "hessian_diagonal"]
NEW_READINGS = [*NEW_LAYERWISE, "cabs", "early_stopping", "gradient_alignment", "conflicting_samples", "gradient_growth"]
NEW_READINGS += ["min_eigenvalue", "max_magnitude_eigenvalue", "sharpness_ratio", "eigenvector_overlap", "trust_ratio"]
NEW_READINGS += ["tangent_kernel", "tangent_kernel_growth"]
NEW_READINGS += ["curvature_noise", "gradient_in_top_subspace", "max_learning_rate"]
NEW_READINGS += ["condition", "outliers_over_bulk", "flat_directions", "ggn_trace", "tic_trace", "tic_diag"]
NEW_READINGS += ["attention_entropy", "attention_logit", "label_noise", "batch_accuracy", "validation_overlap"]
NEW_READINGS += ["residual_growth", "graph_cut", "softmax_twice", "symmetric_units"]
ADAM = {"class": "Adam", "lr": 0.001}


def module(name: str) -> ModuleType:
    """Return the file of a gauge; the package's attribute of that name is the function."""
    import importlib

    return importlib.import_module(f"cockpit_lite.plots.{name}")


def cases(folder: Path) -> dict[str, Run]:
    every = [
        "loss",
        "learning_rate",
        "grad_norm",
        "grad_norm/a",
        "grad_norm/b",
        "grad_norm_clipped",
        "update_size",
        "update_ratio",
        "distance",
    ]
    every += [
        "step_time",
        "overhead",
        "norm_test",
        "inner_product_test",
        "orthogonality_test",
        "gradient_noise_scale",
        "batch_size",
        "suggested_batch_size_lower",
        "suggested_batch_size_upper",
        "alpha",
        "hardest_samples",
        "hardest_by_gradient",
    ]
    every += ["hessian_trace", "max_eigenvalue", "curvature_along_gradient", "taylor_gradient_term", "taylor_curvature_term"]
    every += [*NEW_READINGS, *(f"{name}/{layer}" for name in NEW_LAYERWISE for layer in ("a", "b", "c"))]
    return {
        "healthy": training_run(folder / "healthy"),
        "sparse": training_run(folder / "sparse", every=13),
        "one step": training_run(folder / "one", steps=1),
        "NaN in the end": training_run(folder / "nan", nan_from=100, alerts=["exploding-gradients"]),
        "no step": training_run(folder / "none", steps=0),
        "all NaN": readings_run(folder / "all-nan", {name: [math.nan] * 5 for name in every}),
        "all Inf": readings_run(folder / "all-inf", {name: [math.inf] * 80 for name in every}),
        "all zero": readings_run(folder / "zero", {name: [0.0] * 5 for name in every}),
        "negative": readings_run(folder / "negative", {name: [-1.0, -2.0, -1e300] for name in every}),
        "huge": readings_run(folder / "huge", {name: [1e-320, 1.0, 1.7e308] for name in every}),
        "arrays": readings_run(folder / "arrays", {name: [[1.0, 2.0]] * 3 for name in every}),  # type: ignore[dict-item, list-item]
        "hostile names": training_run(folder / "names", steps=30, layer_names=["$x$", "_hidden", "\\frac{", "名前", "<b>" * 200]),
    }


@pytest.mark.parametrize("name", GAUGES)
def test_a_gauge_draws_every_run(name: str, tmp_path: Path) -> None:
    ax = Figure(figsize=(5, 2)).add_subplot()
    for case, run in cases(tmp_path).items():  # on the same axes: each must also replace the one before
        getattr(plots, name)(run, ax)
        if case != "hostile names":
            ax.figure.canvas.draw()
        said = words(ax)
        assert ("not measured, because" in said) == (case in ("no step", "arrays")), case


@pytest.mark.parametrize("name", GAUGES)
def test_a_gauge_has_a_title_and_a_verdict(name: str, tmp_path: Path) -> None:
    run = training_run(tmp_path)
    ax = Figure().add_subplot()
    getattr(plots, name)(run, ax)
    verdict = module(name).verdict(run)
    assert verdict.text in words(ax)
    assert len(verdict.text) < 70
    assert ax.images or any(len(line.get_xdata()) > 5 for line in ax.lines)


@pytest.mark.parametrize("name", GAUGES)
def test_nothing_measured_means_no_verdict(name: str, tmp_path: Path) -> None:
    assert module(name).verdict(readings_run(tmp_path, {"something_else": [1.0]})) is None


def level(value: float) -> list[float]:
    return [value] * 40


def layers(name: str, *values: float) -> dict[str, list[float]]:
    """Return a layerwise reading that stays where it is, and as the scalar the largest of the layers."""
    return {f"{name}/layer{index}": level(float(value)) for index, value in enumerate(values)} | {name: level(max(values))}


@pytest.mark.parametrize(
    ("gauge", "readings", "optimizer", "health", "said"),
    [
        ("loss", {"loss": list(np.linspace(2, 1, 100))}, SGD, "healthy", "still falling"),
        ("loss", {"loss": list(np.linspace(1, 2, 100))}, SGD, "trouble", "worse than at the start"),
        ("loss", {"loss": [*np.linspace(2, 1, 80), *np.linspace(1, 1.5, 20)]}, SGD, "watch", "rising lately"),
        ("loss", {"loss": [2.3, 2.31, 2.29, 2.3] * 25}, SGD, "watch", "has not fallen yet"),
        ("loss", {"loss": [2.3, 2.31, 2.29, 2.3] * 5}, SGD, "neutral", "has not fallen yet"),
        ("gradient_tests", {"norm_test": [1.0, math.nan]}, SGD, "trouble", "NaN since step 1"),
        ("gradient_noise_scale", {"gradient_noise_scale": [1.0, math.nan]}, SGD, "trouble", "NaN since step 1"),
        ("gradient_noise_scale", {"gradient_noise_scale": [1.0, math.inf]}, SGD, "watch", "drowns the gradient since step 1"),
        (
            "gradient_noise_scale",
            {
                "gradient_noise_scale": [500.0] * 30,
                "batch_size": [64.0] * 30,
                "suggested_batch_size_lower": [300.0] * 30,
                "suggested_batch_size_upper": [900.0] * 30,
            },
            SGD,
            "watch",
            "noise dominates: batch 64, suggested 512 (300 to 900)",
        ),
        (
            "gradient_noise_scale",
            {
                "gradient_noise_scale": [60.0] * 30,
                "batch_size": [64.0] * 30,
                "suggested_batch_size_lower": [30.0] * 30,
                "suggested_batch_size_upper": [math.inf] * 30,
            },
            SGD,
            "healthy",
            "batch 64 suits a noise scale of 60 (at least 30)",
        ),
        ("alpha", {"alpha": [-0.4] * 35 + [3.0] * 5}, SGD, "healthy", "12 % go up the other side"),
        ("alpha", {"alpha": [-0.4] * 40}, SGD, "healthy", "before the minimum"),
        ("alpha", {"alpha": [-1.0] * 40}, SGD, "neutral", "a larger rate may do"),
        ("alpha", {"alpha": [0.4] * 40}, SGD, "watch", "beyond the minimum"),
        ("alpha", {"alpha": [1.4] * 40}, SGD, "trouble", "lower the learning rate"),
        ("alpha", {"alpha": [0.4, math.nan]}, SGD, "trouble", "NaN since step 1"),
        (
            "hardest_samples",
            {"hardest_samples": [0.1] * 9, "hardest_by_gradient": [[[4.0, 2.5, 9.0], [1.0, math.nan, 8.0]]] * 9},
            SGD,
            "healthy",
            "step 8: #4 (loss 2.5), #1",
        ),
        (
            "hardest_samples",
            {
                "hardest_samples": [0.7] * 8 + [0.1],
                "batch_size": [64.0] * 9,
                "hardest_by_gradient": [[[4.0, 2.5, 9.0]]] * 8 + [[[5.0, 0.1, 9.0]]],
            },
            SGD,
            "watch",
            "#4 (loss 2.5) outweighs all others at step 7: look at it",
        ),
        ("hardest_samples", {"hardest_samples": [0.7] * 9, "batch_size": [2.0] * 9}, SGD, "healthy", "70 % in one sample"),
        (
            "hardest_samples",
            {"hardest_samples": [0.1, math.nan], "hardest_by_gradient": [[[4.0, math.nan, math.nan]]] * 2},
            SGD,
            "trouble",
            "NaN since step 1, first in #4",
        ),
        ("loss", {"loss": [1.0, math.nan, math.inf]}, SGD, "trouble", "NaN since step 1"),
        ("loss", {"loss": [1.0, math.nan, 2.0]}, SGD, "neutral", "too few steps"),
        ("learning_rate", {"learning_rate": level(0.1), "max_eigenvalue": level(10.0)}, SGD, "healthy", "limit 0.2"),
        ("learning_rate", {"learning_rate": level(0.1), "max_eigenvalue": level(19.5)}, SGD, "watch", "edge of stability"),
        ("learning_rate", {"learning_rate": level(0.1), "max_eigenvalue": level(60.0)}, SGD, "trouble", "3 times the limit"),
        ("learning_rate", {"learning_rate": level(0.1), "max_eigenvalue": level(60.0)}, ADAM, "neutral", "0.1"),
        ("max_eigenvalue", {"learning_rate": level(0.1), "max_eigenvalue": level(10.0)}, SGD, "healthy", "limit 20"),
        ("max_eigenvalue", {"learning_rate": level(0.1), "max_eigenvalue": level(60.0)}, SGD, "trouble", "3 times the limit"),
        (
            "max_eigenvalue",
            {"learning_rate": level(0.1), "max_eigenvalue": level(30.0)},
            SGD | {"momentum": 0.9},
            "healthy",
            "limit 38",
        ),
        (
            "max_eigenvalue",
            {"learning_rate": level(0.1), "max_eigenvalue": level(60.0)},
            ADAM,
            "neutral",
            "Adam has no fixed limit",
        ),
        ("grad_norm", {"grad_norm": level(1.0)}, SGD, "healthy", "median 1"),
        ("grad_norm", {"grad_norm": level(1.0) + [50.0] * 10}, SGD, "trouble", "50 times its median"),
        ("grad_norm", {"grad_norm": level(1e-9)}, SGD, "trouble", "nothing left"),
        ("grad_norm", {"grad_norm": level(1.0), "grad_norm_clipped": level(0.01)}, SGD, "watch", "clipped to 0.01"),
        (
            "grad_norm",
            {"grad_norm": level(1.0), "grad_norm/a": level(1.0), "grad_norm/b": level(1e-6)},
            SGD,
            "watch",
            "1e6 times apart",
        ),
        ("update_ratio", {"update_ratio": level(1e-3)}, SGD, "healthy", "0.001"),
        ("update_ratio", {"update_ratio": level(0.1)}, SGD, "watch", "large steps"),
        ("update_ratio", {"update_ratio": level(1e-7)}, SGD, "watch", "hardly moves"),
        (
            "update_size",
            {"update_size": level(1.0), "distance": list(np.arange(1.0, 41.0) / 4)},
            SGD,
            "neutral",
            "10 from the start, 25 %",
        ),
        ("gradient_tests", {"inner_product_test": level(0.3)}, SGD, "healthy", "large enough"),
        ("gradient_tests", {"inner_product_test": level(3.0)}, SGD, "watch", "noise dominates"),
        ("gradient_tests", {"inner_product_test": level(0.3), "orthogonality_test": level(9.0)}, SGD, "watch", "sideways"),
        (
            "gradient_noise_scale",
            {"gradient_noise_scale": level(500.0), "batch_size": level(64.0)},
            SGD,
            "watch",
            "batch 64, suggested 512",
        ),
        ("gradient_noise_scale", {"gradient_noise_scale": level(60.0), "batch_size": level(64.0)}, SGD, "healthy", "suits"),
        ("gradient_noise_scale", {"gradient_noise_scale": level(2.0), "batch_size": level(64.0)}, SGD, "neutral", "2 would do"),
        ("gradient_noise_scale", {"gradient_noise_scale": level(-3.0), "batch_size": level(64.0)}, SGD, "watch", "too weak"),
        ("hessian_trace", {"hessian_trace": [*level(10.0), *level(40.0)]}, SGD, "neutral", "4 times sharper"),
        ("hessian_trace", {"hessian_trace": [*level(10.0), *level(-4.0)]}, SGD, "neutral", "downwards"),
        ("gsnr", {"gsnr": level(0.5), "batch_size": level(64.0)}, SGD, "healthy", "32 times what noise gives"),
        ("gsnr", {"gsnr": level(0.016), "batch_size": level(64.0)}, SGD, "neutral", "the samples cancel"),
        ("gsnr", {"gsnr": level(0.5)}, SGD, "neutral", "0.5 in the mean"),
        ("cabs", {"cabs": level(500.0), "batch_size": level(64.0)}, SGD, "watch", "500 would suit"),
        ("cabs", {"cabs": level(50.0), "batch_size": level(64.0)}, SGD, "healthy", "suits the learning rate"),
        ("cabs", {"cabs": level(0.1), "batch_size": level(64.0)}, SGD, "neutral", "1 would do"),
        ("cabs", {"cabs": level(500.0), "batch_size": level(64.0)}, ADAM, "neutral", "not Adam"),
        ("early_stopping", {"early_stopping": level(-2.0)}, SGD, "healthy", "signal left"),
        ("early_stopping", {"early_stopping": level(0.5)}, SGD, "watch", "time to stop"),
        ("early_stopping", {"early_stopping": [-1.0, 0.5, 0.5]}, SGD, "neutral", "noise alone"),
        ("gradient_alignment", {"gradient_alignment": level(0.3)}, SGD, "healthy", "helps the others"),
        ("gradient_alignment", {"gradient_alignment": level(0.001)}, SGD, "neutral", "does nothing"),
        ("gradient_alignment", {"gradient_alignment": level(-0.1)}, SGD, "watch", "undo each other"),
        ("conflicting_samples", {"conflicting_samples": level(0.2)}, SGD, "healthy", "20 %"),
        ("conflicting_samples", {"conflicting_samples": level(0.45)}, SGD, "neutral", "noise 50 %"),
        ("conflicting_samples", {"conflicting_samples": level(0.6)}, SGD, "watch", "noise dominates"),
        ("distance", {"distance": list(np.sqrt(np.arange(100.0)))}, SGD, "neutral", "random walk"),
        ("distance", {"distance": list(np.arange(100.0))}, SGD, "neutral", "one way"),
        ("distance", {"distance": list(np.arange(100.0) ** 3)}, SGD, "watch", "running away"),
        ("distance", {"distance": [0.0, *[5.0] * 99]}, SGD, "neutral", "settling"),
        ("dead_units", layers("dead_units", 0.0, 0.1), SGD, "healthy", "10 % dead in layer1"),
        ("dead_units", layers("dead_units", 0.0, 0.0), SGD, "healthy", "no unit is dead"),
        ("dead_units", layers("dead_units", 0.7, 0.1), SGD, "watch", "70 % dead in layer0"),
        ("dead_units", layers("dead_units", 0.7, 1.0), SGD, "trouble", "passes nothing on"),
        ("saturation", layers("saturation", 0.1, 0.0), SGD, "healthy", "10 % flat in layer0"),
        ("saturation", layers("saturation", 0.1, 0.6), SGD, "watch", "little gradient"),
        ("saturation", layers("saturation", 0.1, 0.99), SGD, "trouble", "do not learn"),
        ("effective_rank", layers("effective_rank", 0.6, 0.4), SGD, "healthy", "layer1 varies in 40 %"),
        ("effective_rank", layers("effective_rank", 0.6, 0.02), SGD, "watch", "collapsed"),
        ("effective_rank", layers("effective_rank", 0.0, 0.5), SGD, "trouble", "the same for every sample"),
        ("activation_std", layers("activation_std", 0.6, 1.4), SGD, "healthy", "between 0.6 and 1.4"),
        ("activation_std", layers("activation_std", 0.0, 1.4), SGD, "trouble", "layer0 puts out the same"),
        ("activation_std", layers("activation_std", *3.0 ** np.arange(5)), SGD, "watch", "grows 3 times a layer"),
        ("activation_std", layers("activation_std", *0.2 ** np.arange(6)), SGD, "trouble", "shrinks to 0.2 a layer"),
        ("activation_std", {"activation_std": [1.0, math.nan]}, SGD, "trouble", "NaN since step 1"),
        (
            "activation_mean",
            layers("activation_mean", -9.0, 1.0) | layers("activation_std", 1.0, 1.0),
            SGD,
            "watch",
            "layer0: mean 9 times the scatter",
        ),
        (
            "activation_mean",
            layers("activation_mean", 0.1, -0.5) | layers("activation_std", 1.0, 1.0),
            SGD,
            "healthy",
            "layer1: mean 0.5 times",
        ),
        ("activation_mean", {"activation_mean": level(0.5)}, SGD, "neutral", "0.5 in the mean"),
        (
            "gradient_scale",
            layers("gradient_scale", *[0.1] * 10) | {"gradient_growth": level(0.4)},
            SGD,
            "trouble",
            "falls to 0.4 from each layer to the one before: vanishing",
        ),
        (
            "gradient_scale",
            layers("gradient_scale", *[0.1] * 10) | {"gradient_growth": level(2.0)},
            SGD,
            "trouble",
            "grows 2 times",
        ),
        (
            "gradient_scale",
            layers("gradient_scale", *[0.1] * 3) | {"gradient_growth": level(0.4)},
            SGD,
            "healthy",
            "0.4 times",
        ),
        ("gradient_scale", layers("gradient_scale", 300.0, 1.0), SGD, "trouble", "out of proportion"),
        ("wiring", {"graph_cut": level(0.0), "softmax_twice": level(0.0)}, SGD, "healthy", "all 2 checks pass"),
        ("wiring", {"graph_cut": level(0.0), "softmax_twice": level(1.0)}, SGD, "trouble", "softmax twice"),
        ("wiring", {"batch_repeated": [1.0, 1.0, 0.0]}, SGD, "healthy", "all 1 checks pass"),
        ("label_noise", {"label_noise": level(0.2), "batch_accuracy": level(0.2)}, SGD, "neutral", "too little is learnt"),
        ("label_noise", {"label_noise": level(0.2), "batch_accuracy": level(0.7)}, SGD, "watch", "20 % of the labels"),
        ("label_noise", {"label_noise": level(0.0), "batch_accuracy": level(0.9)}, SGD, "healthy", "0 %"),
        # Of a short run the first steps, where nothing is learnt yet, say nothing.
        (
            "label_noise",
            {"label_noise": [0.9] * 30 + [0.0] * 10, "batch_accuracy": [0.1] * 30 + [0.9] * 10},
            SGD,
            "healthy",
            "0 %",
        ),
        ("validation_overlap", {"validation_overlap": [0.0, 0.0]}, SGD, "healthy", "no validation sample"),
        ("validation_overlap", {"validation_overlap": [0.0, 0.2]}, SGD, "trouble", "20 % of a validation"),
        ("validation_overlap", {"validation_overlap": [1.0]}, SGD, "watch", "training set"),
        ("residual_growth", layers("residual_growth", 1.4, 1.2) | {"residual_growth": [1.3]}, SGD, "healthy", "by 1.3"),
        ("residual_growth", layers("residual_growth", *[2.0] * 10), SGD, "trouble", "1000 in all"),
        ("attention", {"attention_entropy": level(0.5), "attention_logit": level(4.0)}, SGD, "healthy", "50 %, largest logit 4"),
        ("attention", {"attention_entropy": level(0.02)}, SGD, "watch", "one key each"),
        ("step_time", {"step_time": level(0.011), "overhead": level(0.04)}, SGD, "neutral", "11 ms a step, measuring costs 4 %"),
    ],
)
def test_a_verdict_says_what_is_there(
    gauge: str, readings: dict[str, Sequence[float]], optimizer: object, health: str, said: str, tmp_path: Path
) -> None:
    verdict = module(gauge).verdict(readings_run(tmp_path, readings, optimizer=optimizer))
    assert said in verdict.text
    assert verdict.health == health


@pytest.mark.parametrize(
    ("price", "health", "said"),
    [
        (0.1, "healthy", "10 %"),
        (0.7, "watch", "longer than the best step"),
        (1.5, "trouble", "worse"),
        (-0.2, "neutral", "downwards"),
    ],
)
def test_curvature_is_compared_with_the_gain(price: float, health: str, said: str, tmp_path: Path) -> None:
    run = readings_run(tmp_path, {"taylor_gradient_term": level(2.0), "taylor_curvature_term": level(2.0 * price)})
    verdict = module("curvature_along_gradient").verdict(run)
    assert said in verdict.text
    assert verdict.health == health


def test_terms_of_different_steps_are_not_compared(tmp_path: Path) -> None:
    from cockpit_lite.run import load_run
    from cockpit_lite.run_log import RunWriter

    writer = RunWriter(tmp_path / "run", {})
    writer.step(0, {"taylor_gradient_term": 1.0, "taylor_curvature_term": 0.2})
    writer.step(1, {"taylor_gradient_term": 100.0})
    writer.step(2, {"taylor_curvature_term": 50.0})
    writer.close()
    assert module("curvature_along_gradient").eaten_share(load_run(tmp_path / "run")) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (SGD, 2.0),
        ([SGD], 2.0),
        ({"class": "SGD", "momentum": 0.5}, 3.0),
        ({"class": "SGD", "momentum": 0.5, "nesterov": True}, 1.5),
        (ADAM, None),
        ([SGD, ADAM], None),
        ("SGD", 2.0),
        (None, None),
        ({}, None),
    ],
)
def test_only_gradient_descent_has_a_stability_limit(optimizer: object, factor: float | None, tmp_path: Path) -> None:
    assert module("facts").stability_factor(readings_run(tmp_path, {"loss": [1.0]}, optimizer=optimizer)) == factor


def test_the_stability_factor_is_where_momentum_diverges() -> None:
    """Gradient descent with momentum on a parabola of curvature 1 stays bounded just below the limit and not above."""

    def grows(momentum: float, nesterov: bool, rate: float) -> bool:
        weight, velocity = 1.0, 0.0
        for _ in range(3_000):
            velocity = momentum * velocity + weight
            weight -= rate * (weight + momentum * velocity if nesterov else velocity)
            if abs(weight) > 1e6:
                return True
        return False

    for momentum in (0.0, 0.5, 0.9):
        for nesterov in (False, True):
            factor = 2 * (1 + momentum) / ((1 + 2 * momentum) if nesterov else 1.0)
            assert not grows(momentum, nesterov, 0.99 * factor)
            assert grows(momentum, nesterov, 1.01 * factor)


def test_layers_measured_at_different_steps_are_compared_where_all_are_known(tmp_path: Path) -> None:
    from cockpit_lite.run import load_run
    from cockpit_lite.run_log import RunWriter

    writer = RunWriter(tmp_path / "run", {})
    for step in range(10):
        writer.step(step, {"grad_norm": 1.0, "grad_norm/a": 1.0 + step, **({"grad_norm/b": 0.5} if step % 3 == 0 else {})})
    writer.close()
    steps, low, high = module("grad_norm").layer_range(load_run(tmp_path / "run"))
    assert steps.tolist() == [0, 3, 6, 9]
    assert low.tolist() == [0.5] * 4
    assert high.tolist() == [1.0, 4.0, 7.0, 10.0]


def test_losses_and_accuracies_of_the_user_are_found(tmp_path: Path) -> None:
    readings = {"loss": [2.0, 1.0], "validation_loss": [2.5, 1.5], "validation_accuracy": [0.1, 0.9], "loss/head": [1.0, 1.0]}
    ax = Figure().add_subplot()
    plots.loss(readings_run(tmp_path, readings), ax)
    said = words(ax)
    assert "validation" in said
    assert len(ax.lines) == 2
    (right,) = [other for other in ax.figure.axes if other is not ax]
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [0.1, 0.9]


def test_every_group_has_its_learning_rate(tmp_path: Path) -> None:
    ax = Figure().add_subplot()
    plots.learning_rate(
        readings_run(tmp_path, {"learning_rate": [0.1, 0.1], "learning_rate/group1": [0.2, 0.3]}, optimizer=ADAM), ax
    )
    assert [np.asarray(line.get_ydata()).tolist() for line in ax.lines] == [[0.1, 0.1], [0.2, 0.3]]
    assert "group1" in words(ax)


def test_the_error_of_an_estimate_is_drawn(tmp_path: Path) -> None:
    how = {"hessian_trace": {"kind": "estimated", "standard_error": 2.0}}
    ax = Figure().add_subplot()
    plots.hessian_trace(readings_run(tmp_path, {"hessian_trace": [5.0, 6.0, 7.0]}, how=how), ax)
    (band,) = ax.collections
    assert isinstance(band, Area)
    heights = band.outlines[0][:, 1]
    assert (heights.min(), heights.max()) == (3.0, 9.0)


def test_every_reading_of_the_contract_has_a_gauge_of_its_name() -> None:
    contract = (
        "loss learning_rate grad_norm update_size distance alpha norm_test inner_product_test orthogonality_test cabs gsnr "
        "gradient_noise_scale early_stopping grad_hist_1d grad_hist_2d hessian_trace hessian_diagonal ggn_trace ggn_diagonal "
        "max_eigenvalue min_eigenvalue condition spectral_density curvature_along_gradient tic_diag tic_trace dead_units "
        "saturation activation_std update_ratio step_time overhead"
    )
    assert [name for name in contract.split() if not callable(getattr(plots, name, None))] == []


@pytest.mark.parametrize("name", ["overhead", "tic_diag", "orthogonality_test"])
def test_a_gauge_that_is_shared_shows_each_of_its_readings(name: str, tmp_path: Path) -> None:
    run = readings_run(tmp_path, {name: [0.5, 0.6, 0.7, 0.8, 0.9]})
    ax = Figure().subplots()
    getattr(plots, name)(run, ax)
    drawn = [np.asarray(line.get_ydata(), float) for axes in ax.figure.axes for line in axes.lines]
    assert any(np.allclose(values / values[0], [1.0, 1.2, 1.4, 1.6, 1.8]) for values in drawn if len(values) == 5)
