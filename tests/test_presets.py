"""What ``instruments=`` takes, and what it makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from cockpit_lite import Instrument, SetupError, UnknownInstrumentError
from cockpit_lite.instrument import CURVATURE, GRADIENT, LOSS
from cockpit_lite.instruments import INSTRUMENTS, GradientNoiseScale, HessianTrace
from cockpit_lite.presets import ALWAYS, PRESETS, resolve


class Mine(Instrument):
    """An instrument of a user."""

    name = "mine"
    needs = (GRADIENT,)

    def measure(self, step: Any) -> dict[str, float]:
        return {"mine": 1.0}


def names(instruments: Any) -> list[str]:
    return [instrument.name for instrument in resolve(instruments)]


def test_presets_include_the_ones_before() -> None:
    light, standard, full = (set(names(preset)) for preset in PRESETS)
    assert set(ALWAYS) < light < standard < full == set(INSTRUMENTS)
    assert {"loss", "learning_rate", "step_time", "grad_norm", "update_size", "distance", "update_ratio"} <= light
    assert {
        "norm_test",
        "inner_product_test",
        "orthogonality_test",
        "gradient_noise_scale",
        "curvature_along_gradient",
    } <= standard
    assert {"hessian_trace", "max_eigenvalue"} <= full - standard


def test_light_costs_no_backward_pass_of_its_own() -> None:
    assert not any(CURVATURE in instrument.needs or "per_sample" in " ".join(instrument.needs) for instrument in resolve("light"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("grad_norm", [*ALWAYS, "grad_norm"]),
        (["grad_norm"], [*ALWAYS, "grad_norm"]),
        (["grad_norm", "grad_norm", "loss"], [*ALWAYS, "grad_norm"]),
        (("distance", "grad_norm"), [*ALWAYS, "distance", "grad_norm"]),
        ([], [*ALWAYS]),
        (iter(["grad_norm"]), [*ALWAYS, "grad_norm"]),
        (Mine(), [*ALWAYS, "mine"]),
        (Mine, [*ALWAYS, "mine"]),
        ([Mine], [*ALWAYS, "mine"]),
        (["grad_norm", Mine()], [*ALWAYS, "grad_norm", "mine"]),
    ],
)
def test_names_objects_and_classes(given: Any, expected: list[str]) -> None:
    assert names(given) == expected


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_an_object_replaces_the_presets_of_its_name(order: list[int]) -> None:
    mine = HessianTrace(samples=11)
    entries = ["full", mine]
    found = {instrument.name: instrument for instrument in resolve([entries[index] for index in order])}
    assert found["hessian_trace"] is mine and set(found) == set(INSTRUMENTS)


def test_every_cockpit_gets_instruments_of_its_own() -> None:
    first, second = resolve("full"), resolve("full")
    assert not {id(instrument) for instrument in first} & {id(instrument) for instrument in second}


def test_two_of_one_name_are_refused_and_a_new_name_helps() -> None:
    with pytest.raises(SetupError, match="Two instruments are named 'gradient_noise_scale'; give one of them another name"):
        resolve([GradientNoiseScale(window=5), GradientNoiseScale(window=50)])
    slow = GradientNoiseScale(window=50)
    slow.name = "slow_noise_scale"
    assert names([GradientNoiseScale(window=5), slow]) == [*ALWAYS, "gradient_noise_scale", "slow_noise_scale"]


@pytest.mark.parametrize("given", ["grad_nrom", ["standard", "grad_nrom"], ["grad_nrom", Mine()]])
def test_an_unknown_name_lists_the_known_ones(given: Any) -> None:
    with pytest.raises(UnknownInstrumentError, match="no instrument or preset named 'grad_nrom'") as caught:
        resolve(given)
    assert isinstance(caught.value, SetupError)
    assert all(name in str(caught.value) for name in (*PRESETS, *INSTRUMENTS))


@pytest.mark.parametrize("given", [[3], [None], [{"grad_norm": 1}], [int], [object()]])
def test_what_is_no_instrument_is_refused(given: Any) -> None:
    with pytest.raises(SetupError, match="takes preset names, instrument names and Instrument objects"):
        resolve(given)


@pytest.mark.parametrize("given", [3, None, int, 0.5])
def test_no_list_at_all_is_refused(given: Any) -> None:
    with pytest.raises(SetupError, match="takes preset names, instrument names and Instrument objects"):
        resolve(given)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"name": ""}, r"Odd\.name must be a reading name"),
        ({"name": "a/b"}, r"Odd\.name must be a reading name without '/'"),
        ({"name": "odd", "needs": ("gradients",)}, r"Odd\.needs has unknown entries \['gradients'\]; known are"),
        ({"name": "odd", "needs": (CURVATURE, GRADIENT)}, r"Odd\.needs combines 'curvature' .*step\.curvature\.gradient"),
    ],
)
def test_a_wrong_declaration_is_said_before_training(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        resolve([type("Odd", (Mine,), attributes)])


def test_curvature_and_loss_go_together() -> None:
    assert "fine" in names([type("Fine", (Mine,), {"name": "fine", "needs": (CURVATURE, LOSS)})])
