"""Lightning: a callback that watches what a Trainer fits. Needs ``cockpit-lite[lightning]``.

::

    from cockpit_lite.integrations.lightning import CockpitCallback

    trainer = Trainer(callbacks=[CockpitCallback()])
    trainer.fit(model, data)
"""

from __future__ import annotations

from typing import Any

from cockpit_lite.cockpit import Cockpit
from cockpit_lite.integrations.metrics import validation_metrics
from cockpit_lite.integrations.need import need
from cockpit_lite.integrations.several import processes
from cockpit_lite.isolation import warn

need("lightning", "lightning")
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402


class CockpitCallback(Callback):
    """Opens a cockpit when fitting begins and closes it when it ends, also by an exception.

    The module is watched with the optimizers of the trainer, under automatic and manual optimization, with accumulation, clipping
    and mixed precision. What validation logs is recorded: ``val_loss`` as ``validation_loss``, for the findings that need it.
    Of several processes the first one is watched: its own part of each batch, or, with ``together``, all of them.

    Args:
        together: Whether several processes measure together, see ``process_group`` of :class:`~cockpit_lite.cockpit.Cockpit`.
        settings: Handed to :class:`~cockpit_lite.cockpit.Cockpit`: ``run``, ``instruments``, ``budget``, ``sinks``, ...

    Attributes:
        cockpit: The cockpit of the last ``fit``; None before the first.
    """

    def __init__(self, together: bool = False, **settings: Any):
        super().__init__()
        self._together = together
        self.cockpit: Cockpit | None = None
        self._settings = settings
        self._open = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open it: the optimizers are there, and the trainer's own try of the validation is over."""
        if trainer.global_rank and not self._together:
            return
        try:
            self.cockpit = Cockpit(pl_module, trainer.optimizers, **self._settings, **processes(self._together))
            self.cockpit.__enter__()
            self._open = True
        except Exception as error:
            warn("This training cannot be watched; it goes on.", error)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what validation has logged."""
        if self._open and self.cockpit is not None and not trainer.sanity_checking:
            self.cockpit.log(**validation_metrics(trainer.callback_metrics, ("val", "valid")))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close it and write the report."""
        self._close(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close it: the exception goes on to the user."""
        self._close(exception)

    def _close(self, exception: BaseException | None) -> None:
        if self._open and self.cockpit is not None:
            self._open = False
            self.cockpit.__exit__(None if exception is None else type(exception), exception, None)
