"""The package's whole public interface, and that it is complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cockpit_lite
from cockpit_lite import errors
from cockpit_lite.alert import SEVERITIES, Alert


def test_every_public_name_is_there() -> None:
    assert cockpit_lite.__all__ == sorted(cockpit_lite.__all__) == dir(cockpit_lite)
    for name in cockpit_lite.__all__:
        assert getattr(cockpit_lite, name).__name__ == name
    namespace: dict[str, object] = {}
    exec("from cockpit_lite import *", namespace)
    assert set(cockpit_lite.__all__) <= set(namespace)


def test_the_contract_of_the_design_is_in_it() -> None:
    assert {"Alert", "Cockpit", "Every", "Instrument", "LogSpaced", "load_run"} <= set(cockpit_lite.__all__)


def test_every_error_is_public() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__}
    assert raised <= set(cockpit_lite.__all__)


def test_errors_are_what_their_tree_says() -> None:
    assert all(
        issubclass(error, parent)
        for error, parent in [
            (errors.SetupError, errors.CockpitError),
            (errors.SetupError, ValueError),
            (errors.UnknownInstrumentError, errors.SetupError),
            (errors.RunExistsError, errors.CockpitError),
            (errors.RunExistsError, FileExistsError),
            (errors.NotARunError, errors.CockpitError),
            (errors.NotARunError, ValueError),
            (errors.NotMeasured, errors.CockpitError),
            (errors.CockpitWarning, UserWarning),
        ]
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'cockpit_light'"):
        cockpit_lite.cockpit_light  # noqa: B018


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, cockpit_lite; cockpit_lite.Alert; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_alert_survives_its_line() -> None:
    alert = Alert("CL1", "x", "error", 3, "cause", "advice", ("a", "b"), {"value": 1.0}, 0.5)
    assert Alert.from_dict({**alert.to_dict(), "of_a_newer_version": 1}) == alert
    assert str(alert) == "CL1 x at step 3 in a: cause"
    assert SEVERITIES == ("error", "warning", "note")


@pytest.mark.parametrize("wrong", [{"severity": "fatal"}, {"step": "soon"}, {"step": None}, {"confidence": None}, {"where": 3}])
def test_a_line_that_is_no_alert(wrong: dict[str, object]) -> None:
    line = Alert("CL1", "x", "error", 3, "cause", "advice").to_dict()
    with pytest.raises(ValueError, match=r"."):
        Alert.from_dict({**line, **wrong})
    del line["cause"]
    with pytest.raises(ValueError, match="not an alert"):
        Alert.from_dict(line)
