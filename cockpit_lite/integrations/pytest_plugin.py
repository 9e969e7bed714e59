"""pytest: the fixture ``cockpit`` fails a test whose training has findings; it is there as soon as both are installed.

::

    def test_training(cockpit):
        model, optimizer = make()
        with cockpit(model, optimizer):
            train(model, optimizer)

At the end of the test every training that was watched is asserted healthy: no findings that are errors. For another measure of
healthy the test says so itself: ``cockpit.assert_healthy(fail_on="warning", ignore=["loss-at-start"])``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every pytest run of every project loads this file: torch is imported by those that ask for the fixture
    from cockpit_lite.cockpit import Cockpit


class Cockpits:
    """What the fixture hands out: called like :class:`~cockpit_lite.Cockpit`, it opens a cockpit in the test's own folder.

    Attributes:
        opened: The cockpits so far.
    """

    def __init__(self, folder: Path):
        self.opened: list[Cockpit] = []
        self._folder = folder
        self._checked: set[int] = set()

    def __call__(self, model: Any, optimizer: Any, loss_fn: Any = None, **settings: Any) -> Cockpit:
        """Return a cockpit; ``budget`` is None if not said otherwise, so that a test finds the same every time."""
        from cockpit_lite.cockpit import Cockpit

        run = self._folder / f"run-{len(self.opened) + 1}"
        cockpit = Cockpit(model, optimizer, loss_fn, **{"run": run, "budget": None, **settings})
        self.opened.append(cockpit)
        return cockpit

    def assert_healthy(self, fail_on: str = "error", ignore: Sequence[str] = ()) -> None:
        """Fail if a training has findings; trainings that are asserted here are not asserted again at the end of the test.

        Args:
            fail_on: The mildest severity that fails.
            ignore: Codes or names of findings that are all right here.
        """
        from cockpit_lite.alert import SEVERITIES

        if fail_on not in SEVERITIES:
            raise ValueError(f"fail_on= takes {', '.join(map(repr, SEVERITIES))}, not {fail_on!r}.")
        failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
        found = [
            f"{alert.severity}: {alert}\n    {alert.advice}"
            for cockpit in self.opened
            if id(cockpit) not in self._checked
            for alert in cockpit.alerts
            if alert.severity in failing and alert.code not in ignore and alert.name not in ignore
        ]
        self._checked.update(map(id, self.opened))
        if found:
            __tracebackhide__ = True
            pytest.fail("The training has findings:\n" + "\n".join(found), pytrace=False)


@pytest.fixture
def cockpit(tmp_path: Path) -> Iterator[Cockpits]:
    """Open cockpits, and fail the test if a training that was watched has errors."""
    cockpits = Cockpits(tmp_path / "cockpit")
    yield cockpits
    cockpits.assert_healthy()
