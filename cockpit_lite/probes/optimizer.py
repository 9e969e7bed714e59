"""Seeing every optimizer step, through PyTorch's global step hooks: nothing is placed on the optimizer itself.

However many cockpits are open, there is one hook before and one after the step. An optimizer that is stepping goes through the
hooks that there are, and fails when one is added or removed meanwhile: in another thread, where another cockpit opens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class OptimizerListener(Protocol):
    """Who wants to know. What it raises does not reach the user: it is handed back to ``give_up``."""

    def before_update(self, optimizer: Optimizer, has_closure: bool) -> None:
        """``optimizer.step`` begins; with a closure the gradient does not exist yet."""

    def after_update(self, optimizer: Optimizer) -> None:
        """``optimizer.step`` has changed the parameters."""

    def closure_begins(self) -> None:
        """The optimizer evaluates its closure."""

    def closure_ends(self) -> None:
        """The evaluation is over."""

    def give_up(self, error: Exception) -> None:
        """Called with what one of the others raised; must not raise."""


#: The open ones. Replaced and never changed, since a step of another thread may be going through them.
_probes: tuple[OptimizerProbe, ...] = ()
_handles: list[Any] = []
_changing = threading.Lock()


class OptimizerProbe:
    """Reports the steps of ``optimizers`` to ``listener`` between :meth:`start` and :meth:`stop`."""

    def __init__(self, optimizers: Sequence[Optimizer], listener: OptimizerListener):
        self._ids = {id(optimizer) for optimizer in optimizers}
        self._listener = listener

    def start(self) -> None:
        """Begin to listen."""
        global _probes
        with _changing:
            if not _probes:
                _handles[:] = [register_optimizer_step_pre_hook(_before_any), register_optimizer_step_post_hook(_after_any)]
            _probes = (*_probes, self)

    def stop(self) -> None:
        """Stop listening; idempotent."""
        global _probes
        with _changing:
            _probes = tuple(probe for probe in _probes if probe is not self)
            if not _probes:
                for handle in _handles:
                    handle.remove()
                _handles.clear()

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def watched() -> Any:
            self._tell(self._listener.closure_begins)
            result = closure()
            self._tell(self._listener.closure_ends)
            return result

        return watched

    def _tell(self, event: Callable[..., None], *args: Any) -> None:
        try:
            event(*args)
        except Exception as error:
            self._listener.give_up(error)


def _before_any(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    changed: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    for probe in _probes:
        if id(optimizer) not in probe._ids:
            continue
        # args[0] is the optimizer itself; step(closure) may name its closure or not.
        positional = len(args) > 1 and callable(args[1])
        named = not positional and callable(kwargs.get("closure"))
        try:
            probe._listener.before_update(optimizer, positional or named)
        except Exception as error:
            probe._listener.give_up(error)
        if positional:
            args, kwargs = changed = (args[0], probe._wrap(args[1]), *args[2:]), kwargs
        elif named:
            args, kwargs = changed = args, {**kwargs, "closure": probe._wrap(kwargs["closure"])}
    return changed


def _after_any(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
    for probe in _probes:
        if id(optimizer) in probe._ids:
            try:
                probe._listener.after_update(optimizer)
            except Exception as error:
                probe._listener.give_up(error)
