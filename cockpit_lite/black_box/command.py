"""The command ``cockpit-lite replay``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from cockpit_lite.black_box.kept_step import load_step
from cockpit_lite.black_box.replay import Verdict, replay
from cockpit_lite.errors import ReplayError


def run(path: str, model: str, loss: str | None = None, step: int | None = None, device: str = "cpu") -> Verdict:
    """Run a kept step again.

    Args:
        path: Run folder, or file of a kept step.
        model: ``module:function`` that makes the model; this is the user's code, and it is run.
        loss: ``module:function`` of output and targets.
        step: Which of the run's kept steps; None: the first.
        device: Where to run.

    Raises:
        NotAKeptStepError: if there is no such step.
        ReplayError: if it cannot be run again.
    """
    kept = load_step(path, step)
    factory = _named(model, "--model")
    try:
        made = factory()
    except Exception as error:
        raise ReplayError(f"{model} failed to make the model ({type(error).__name__}: {error}).") from error
    if not isinstance(made, nn.Module):
        raise ReplayError(f"{model} has returned no torch.nn.Module but a {type(made).__name__}.")
    return replay(kept, made, None if loss is None else _named(loss, "--loss"), device)


def _named(name: str, option: str) -> Callable[..., Any]:
    module_name, colon, path = name.partition(":")
    if not colon or not path:
        raise ReplayError(f"{option} takes module:function, such as train:make_model, not {name!r}.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as python -m does
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module does when it is imported
        raise ReplayError(f"{option} {name}: it cannot be imported ({type(error).__name__}: {error}).") from error
    if not callable(found):
        raise ReplayError(f"{option} {name}: it is no function but a {type(found).__name__}.")
    made: Callable[..., Any] = found
    return made
