from __future__ import annotations

import pytest

from cockpit_lite.black_box import calls


@pytest.fixture(autouse=True)
def _every_step_is_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of these tests are so short that most of them would be looked at in short."""
    monkeypatch.setattr(calls, "_SHARE", 1e9)
