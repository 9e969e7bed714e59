"""cockpit-lite: a training-diagnostics debugger for PyTorch.

    with Cockpit(model, optimizer, loss_fn) as cockpit:
        ...the loop as it was...

This file is the whole public interface. Names are imported when they are first used, so that reading a run or
``cockpit-lite check`` does not pay for importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cockpit_lite.alert import Alert
    from cockpit_lite.cockpit import Cockpit
    from cockpit_lite.errors import (
        CockpitError,
        CockpitWarning,
        NotAKeptStepError,
        NotARunError,
        NotMeasured,
        ReplayError,
        RunExistsError,
        SetupError,
        UnknownInstrumentError,
    )
    from cockpit_lite.instrument import Instrument, Reading
    from cockpit_lite.run import Run, load_run
    from cockpit_lite.schedule import Every, LogSpaced
    from cockpit_lite.sink import Sink

_HOMES = {
    "Alert": "alert",
    "Cockpit": "cockpit",
    "CockpitError": "errors",
    "CockpitWarning": "errors",
    "Every": "schedule",
    "Instrument": "instrument",
    "LogSpaced": "schedule",
    "NotAKeptStepError": "errors",
    "NotARunError": "errors",
    "NotMeasured": "errors",
    "Reading": "instrument",
    "ReplayError": "errors",
    "Run": "run",
    "RunExistsError": "errors",
    "SetupError": "errors",
    "Sink": "sink",
    "UnknownInstrumentError": "errors",
    "load_run": "run",
}

__all__ = [
    "Alert",
    "Cockpit",
    "CockpitError",
    "CockpitWarning",
    "Every",
    "Instrument",
    "LogSpaced",
    "NotAKeptStepError",
    "NotARunError",
    "NotMeasured",
    "Reading",
    "ReplayError",
    "Run",
    "RunExistsError",
    "SetupError",
    "Sink",
    "UnknownInstrumentError",
    "load_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
