"""Every exception that cockpit-lite raises on purpose.

    CockpitError
    ├── SetupError            (also ValueError)       what was handed to Cockpit cannot be watched
    │   └── UnknownInstrumentError                    no instrument of that name
    ├── RunExistsError        (also FileExistsError)  the folder already holds a run
    ├── NotARunError          (also ValueError)       the folder holds no run that can be read
    ├── NotAKeptStepError     (also ValueError)       the file holds no step of a training that can be read
    ├── ReplayError                                   a kept step cannot be run again
    └── NotMeasured                                   an instrument's way to say "not measured, because ..."

They are raised before training starts or when a run is read. Inside the training loop nothing is raised:
the cockpit switches the failing part off, warns once (:class:`CockpitWarning`) and training goes on.
"""

from __future__ import annotations


class CockpitError(Exception):
    """Base class of all errors raised by cockpit-lite."""


class SetupError(CockpitError, ValueError):
    """The model, the optimizer or an option cannot be used; the message says what to change."""


class UnknownInstrumentError(SetupError):
    """An instrument or preset name that does not exist; the message lists those that do."""


class RunExistsError(CockpitError, FileExistsError):
    """The run folder already holds a run. Runs are never overwritten."""


class NotARunError(CockpitError, ValueError):
    """The folder is not a run, or its ``run.json`` cannot be read."""


class NotAKeptStepError(CockpitError, ValueError):
    """There is no kept step, or its file is not one that cockpit-lite has written."""


class ReplayError(CockpitError):
    """A kept step cannot be run again; the message says what is missing."""


class NotMeasured(CockpitError):
    """Raised inside ``Instrument.measure``: the quantity does not exist on this step.

    The message completes the sentence "not measured, because ..." and ends up in the run log and the report.
    """


class CockpitWarning(UserWarning):
    """Something of the cockpit was switched off; training is not affected."""
