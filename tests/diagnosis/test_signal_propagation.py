from __future__ import annotations

import math

import pytest

from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.signal_propagation import ExplodingGradients, VanishingGradients
from tests.diagnosis.histories import falling, first_alert, history, level, readable

VANISHING, EXPLODING = VanishingGradients(), ExplodingGradients()


def geometric(count: int, factor: float, last: float = 0.01) -> dict[str, float]:
    """Gradients that change by ``factor`` from each layer to the one before."""
    return {f"layer{number}": last * factor ** (count - 1 - number) for number in range(count)}


# Vanishing


@pytest.mark.parametrize("count", [6, 12, 40])
def test_a_geometric_fall_is_found_at_the_first_step(count: int) -> None:
    alert = VANISHING.check(history(1, layers=geometric(count, 0.15)))
    assert alert is not None and alert.step == 0 and alert.where == ("layer0.weight", f"layer{count - 1}.weight")
    assert alert.evidence["factor a layer"] == pytest.approx(1 / 0.15)
    assert "6.7" in alert.cause
    readable(alert)


def test_one_layer_out_of_line_does_not_hide_it() -> None:
    layers = geometric(12, 0.2)
    layers["layer4"] = layers["layer5"] * 1.1
    assert VANISHING.check(history(1, layers=layers)) is not None


@pytest.mark.parametrize(
    "layers",
    [
        geometric(3, 0.05),  # a shallow sigmoid net
        geometric(4, 0.01),
        geometric(20, 0.8),  # pre-norm transformer: some decay, far from geometric ruin
        {"a": 1e-9, **geometric(10, 0.95)},  # an embedding of which few rows were looked up
        {f"layer{n}": 10.0 ** (-(n % 5)) for n in range(20)},  # a U-Net: large and small by turns
        geometric(8, 4.0),  # grows
        {f"layer{n}": 0.0 for n in range(8)},  # zero-initialised head: nothing arrives at the first step
        {},
    ],
)
def test_depth_alone_is_not_vanishing(layers: dict[str, float]) -> None:
    assert VANISHING.check(history(3, layers=layers)) is None


def test_biases_and_norms_are_not_compared_with_weights() -> None:
    made = history(1, layers=geometric(10, 0.1), shape=(10,))
    assert VANISHING.check(made) is None


def test_layers_that_are_not_finite_or_missing_are_left_out() -> None:
    layers = {**geometric(10, 0.1), "layer3": math.nan, "layer7": math.inf}
    alert = VANISHING.check(history(1, layers=layers))
    assert alert is not None and alert.evidence["layers"] == 8
    assert VANISHING.check(history(5, without=("grad_norm",), layers=geometric(10, 0.1))) is None
    assert VANISHING.check(History()) is None


# Exploding


def test_a_gradient_that_dwarfs_the_weights_and_throws_them_away() -> None:
    layers = {"first": 1.0, "middle": 3.0, "last": 2.0}
    alert = EXPLODING.check(history(1, 1e4, grad_norm=5e4, update_ratio=40.0, layers=layers))
    assert alert is not None and alert.step == 0 and alert.where == ("middle.weight",) and "5e+03 times" in alert.cause
    readable(alert)


def test_the_same_where_the_loss_doubles() -> None:
    alert = first_alert(EXPLODING, 20, lambda step: 100 * 1.5**step, grad_norm=5e4, update_ratio=0.1)
    assert alert is not None and alert.step == 3
    readable(alert)


def test_growth_with_depth_that_does_harm() -> None:
    alert = EXPLODING.check(history(1, layers=geometric(10, 2.0), update_ratio=0.5))
    assert alert is not None and alert.where == ("layer0.weight", "layer9.weight") and "factor of 2 " in alert.cause
    readable(alert)


def test_far_above_its_own_history_for_good() -> None:
    alert = first_alert(
        EXPLODING, 120, lambda step: 1.0 if step < 60 else 1.5 ** (step - 59), grad_norm=lambda step: 0.5 if step < 60 else 100.0
    )
    assert alert is not None and 62 <= alert.step <= 66 and "0.5" in alert.cause
    readable(alert)


def test_a_slow_excursion_below_the_first_loss_is_found_if_it_stays() -> None:
    loss, norm = (lambda step: 9.0 if step < 20 else 3.0 if step < 300 else 8.0), (lambda step: 1.0 if step < 300 else 90.0)
    alert = first_alert(EXPLODING, 400, loss, grad_norm=norm)
    assert alert is not None and 311 <= alert.step <= 320


@pytest.mark.parametrize(
    "case",
    [
        dict(loss=falling(2.3, 0.1)),
        # a single spike, and one of several steps that falls again while it lasts
        dict(loss=lambda step: 50.0 if step == 60 else 1.0, grad_norm=lambda step: 500.0 if step == 60 else 0.5),
        dict(
            loss=lambda step: 1.0 if not 60 <= step < 72 else 1.8 * 0.95 ** (step - 60),
            grad_norm=lambda step: 0.5 if not 60 <= step < 72 else 40.0,
        ),
        # large and harmless: clipped; a summed loss with a small learning rate; Adam
        dict(loss=falling(300, 5), grad_norm=level(3000, 0.5), update_ratio=0.01),
        dict(loss=falling(2.3, 0.1), grad_norm=level(5000), update_ratio=1e-3, optimizers=("Adam",)),
        # growth with depth and widening layers, as in VGG, that does no harm
        dict(loss=falling(2.3, 0.1), layers=geometric(16, 1.5), update_ratio=0.005),
        # gradients that rise late in training while the loss is falling
        dict(loss=falling(2.3, 0.01), grad_norm=lambda step: 0.01 if step < 100 else 1.0),
        # converged, with single hard batches
        dict(loss=lambda step: 0.05 if step % 7 == 0 else 1e-4, grad_norm=lambda step: 5.0 if step % 7 == 0 else 0.01),
    ],
    ids=["healthy", "spike", "spike that falls", "summed", "adam", "vgg", "late rise", "converged"],
)
def test_silent_on_controls(case: dict) -> None:
    assert first_alert(EXPLODING, 200, **case) is None


def test_what_a_long_step_has_done_is_not_the_gradients_fault() -> None:
    """Learning rate too high: first the step is long, then the gradient is large."""
    loss, norm = (lambda step: 2.3 if step == 0 else 1e5), (lambda step: 2.0 if step == 0 else 1e5)
    assert first_alert(EXPLODING, 10, loss, grad_norm=norm, update_ratio=lambda step: 5.0) is None
    layers_late = history(10, loss, grad_norm=norm, update_ratio=5.0, layers=geometric(10, 2.0))
    assert EXPLODING.check(layers_late) is None


@pytest.mark.parametrize("missing", ["loss", "grad_norm", "update_ratio"])
def test_silent_without_readings(missing: str) -> None:
    """Without the update ratio there is no weight norm to compare with, and no long step."""
    assert EXPLODING.check(history(30, 5.0, grad_norm=1e5, update_ratio=0.9, without=(missing,))) is None
    assert EXPLODING.check(History()) is None
