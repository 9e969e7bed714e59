"""The one way in which a failure of ours is said."""

from __future__ import annotations

import logging
import warnings

import pytest

from cockpit_lite import CockpitWarning
from cockpit_lite.isolation import warn


def test_the_warning_names_the_error_and_the_caller() -> None:
    with pytest.warns(CockpitWarning, match=r"^Something was switched off\. \(ValueError: odd\)$"):
        warn("Something was switched off.", ValueError("odd"))
    with pytest.warns(CockpitWarning, match=r"^Only words\.$"):
        warn("Only words.")


@pytest.mark.parametrize("category", [Warning, UserWarning, CockpitWarning])
def test_warnings_as_errors_are_logged_instead(category: type[Warning], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", category)
        warn("Said all the same.")
    assert [record.getMessage() for record in caplog.records] == ["Said all the same."]


def test_the_traceback_is_there_for_who_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("odd")
    with caplog.at_level(logging.DEBUG, "cockpit_lite"), pytest.warns(CockpitWarning):
        warn("Switched off.", error)
    assert caplog.records[0].exc_info is not None and caplog.records[0].exc_info[1] is error
