"""Hugging Face Trainer: a callback that watches ``trainer.train()``. Needs ``cockpit-lite[huggingface]``.

::

    from cockpit_lite.integrations.huggingface import CockpitCallback

    trainer = Trainer(model, args, train_dataset=data, callbacks=[CockpitCallback()])
    trainer.train()
"""

from __future__ import annotations

import weakref
from typing import Any

from cockpit_lite.cockpit import Cockpit
from cockpit_lite.integrations.metrics import validation_metrics
from cockpit_lite.integrations.need import need
from cockpit_lite.integrations.several import processes
from cockpit_lite.isolation import warn

need("transformers", "huggingface")
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402


class CockpitCallback(TrainerCallback):
    """Opens a cockpit when training begins and closes it when it ends.

    The loss is found where the trainer calls ``backward``: label smoothing, ``compute_loss`` of your own and
    ``num_items_in_batch`` included; accumulated batches are one step. Evaluation is recorded, ``eval_loss`` as
    ``validation_loss``. Of several processes the first one is watched, or, with ``together``, all. The Trainer tells its
    callbacks nothing of an exception: with :class:`CockpitTrainer` the report is written then, too; otherwise when the callback
    is no longer used.

    Args:
        together: Whether several processes measure together, see ``process_group`` of :class:`~cockpit_lite.cockpit.Cockpit`.
        settings: Handed to :class:`~cockpit_lite.cockpit.Cockpit`: ``run``, ``instruments``, ``budget``, ``sinks``, ...

    Attributes:
        cockpit: The cockpit of the last training; None before the first.
    """

    def __init__(self, together: bool = False, **settings: Any):
        self._together = together
        self.cockpit: Cockpit | None = None
        self._settings = settings
        self._finish: weakref.finalize[..., Any] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open it: model and optimizer are there."""
        self.close()
        if not (state.is_world_process_zero or self._together):
            return
        try:
            cockpit = Cockpit(kwargs["model"], kwargs["optimizer"], **self._settings, **processes(self._together))
            cockpit.__enter__()
        except Exception as error:
            warn("This training cannot be watched; it goes on.", error)
            return
        self.cockpit = cockpit
        # At the end of the process, too: a training that was left by an exception still has its report.
        self._finish = weakref.finalize(self, cockpit.__exit__, None, None, None)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record what evaluation found."""
        if self._finish is not None and self.cockpit is not None:
            self.cockpit.log(**validation_metrics(kwargs.get("metrics") or {}, ("eval",)))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close it and write the report."""
        self.close()

    def close(self, exception: BaseException | None = None) -> None:
        """Close the cockpit, if one is open."""
        if self._finish is not None and self._finish.detach() and self.cockpit is not None:
            self.cockpit.__exit__(None if exception is None else type(exception), exception, None)
        self._finish = None


class CockpitTrainer(Trainer):
    """A Trainer that closes the cockpits of its callbacks when training is left by an exception.

    To give it to a Trainer of your own: ``class MyTrainer(CockpitTrainer): ...``.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, see ``transformers.Trainer.train``."""
        try:
            return super().train(*args, **kwargs)
        except BaseException as error:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, CockpitCallback):
                    callback.close(error)
            raise
