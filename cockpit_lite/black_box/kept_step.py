"""A training step on disk: everything it takes to run it again, and nothing that could be executed.

    RUN/black_box/step-000123.pt

is written by ``torch.save`` from tensors, numbers, texts, lists, tuples and dictionaries, and read with ``weights_only=True``
only. A file that asks for more memory than it has bytes, or that holds anything else, is refused.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.black_box.containers import MOST_NESTING
from cockpit_lite.errors import NotAKeptStepError

FOLDER = "black_box"
FORMAT, VERSION = "cockpit-lite kept step", 1
#: More values than this no batch has.
_MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class KeptStep:
    """One training step, as its file has it.

    Attributes:
        step: Its number.
        reason: Why it was kept.
        loss: Of the backward pass; None: not known.
        model: Name of the model's class.
        training: Names of the modules in train mode.
        weights: Parameters by name before the step; None: they were left out.
        buffers: Those of the model by name.
        calls: Calls of the model that the loss was made of: ``args``, ``kwargs``, ``random``, ``autocast``, ``gradients``.
        target: What the loss function was given beside the prediction, and its kind; None: not known.
        loss_operations: Operations between the model's outputs and the loss, from the outputs on, with what is known of their
            inputs.
        optimizers: Classes and settings.
        notes: What is not as it was before the step.
        versions: Of python, torch and cockpit-lite.
    """

    step: int
    reason: str
    loss: float | None
    model: str
    training: list[str]
    weights: dict[str, Tensor] | None
    buffers: dict[str, Tensor]
    calls: list[dict[str, Any]]
    target: dict[str, Any] | None
    loss_operations: list[dict[str, Any]]
    optimizers: list[dict[str, Any]]
    notes: list[str]
    versions: dict[str, str]


def write(contents: Mapping[str, Any], path: Path) -> None:
    """Write the fields of a :class:`KeptStep`, beside and then moved into place, so that nobody finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        torch.save({"format": FORMAT, "version": VERSION, **contents}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def kept_steps(run: str | os.PathLike[str]) -> list[Path]:
    """Return the files of the steps that a run has kept, by step."""
    return sorted((Path(run) / FOLDER).glob("step-*.pt"))


def load_step(path: str | os.PathLike[str], step: int | None = None) -> KeptStep:
    """Read a kept step: from its file, or from a run folder the first one.

    Args:
        path: Of the file or of the run.
        step: Of a run: which one.

    Raises:
        NotAKeptStepError: if there is none, or the file is not one that cockpit-lite has written.
    """
    path = Path(path)
    if path.is_dir():
        path = _of_run(path, step)
    try:
        _check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        _check_values(found, path.stat().st_size)
        return _step(found)
    except NotAKeptStepError:
        raise
    except Exception as error:  # a damaged or hostile file may fail in any way
        reason = str(error).split("\n", 1)[0][:200]
        raise NotAKeptStepError(f"{path} cannot be read as a kept step ({type(error).__name__}: {reason}).") from error


def _of_run(folder: Path, step: int | None) -> Path:
    found = kept_steps(folder)
    if step is not None:
        found = [path for path in found if _number(path) == step]
    if not found:
        which = "no step" if step is None else f"not step {step}"
        raise NotAKeptStepError(
            f"{folder} has kept {which}. A step is kept where loss or gradient are not finite, and where cockpit.keep_step() is "
            "called."
        )
    return found[0]


def _number(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)\.pt", path.name)
    return int(match[1]) if match else -1


def _check_archive(path: Path) -> None:
    """Refuse what is no plain archive: reading one that is compressed could fill the memory."""
    if not zipfile.is_zipfile(path):
        raise NotAKeptStepError(f"{path} is not a kept step: torch.save has not written it.")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise NotAKeptStepError(f"{path} is not a kept step: it unpacks to more than it holds.")


def _check_values(found: Any, most_bytes: int) -> None:
    waiting, count, total = [(found, 0)], 0, 0
    while waiting:
        value, nesting = waiting.pop()
        count += 1
        if count > _MOST_VALUES or nesting > MOST_NESTING + 5:
            raise NotAKeptStepError("The file is not a kept step: it is nested too deeply, or holds too many values.")
        if isinstance(value, dict):
            if not all(type(key) is str for key in value):
                raise NotAKeptStepError("The file is not a kept step: it has keys that are no texts.")
            waiting += [(item, nesting + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(item, nesting + 1) for item in value]
        elif isinstance(value, Tensor):
            # A tensor may claim to be far larger than the bytes behind it, by strides of zero.
            if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise NotAKeptStepError("The file is not a kept step: it holds a tensor of an unusual kind.")
            total += value.numel() * value.element_size()
            if total > most_bytes:
                raise NotAKeptStepError("The file is not a kept step: its tensors are larger than the file.")
        elif value is not None and type(value) not in (bool, int, float, str):
            raise NotAKeptStepError(f"The file is not a kept step: it holds a {type(value).__name__}.")


def _step(found: Any) -> KeptStep:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise NotAKeptStepError("The file is not a kept step: torch.save has written something else.")
    if found.get("version") != VERSION:
        raise NotAKeptStepError(f"The file has version {found.get('version')!r}; this cockpit-lite reads version {VERSION}.")
    fields = {name: found[name] for name in KeptStep.__dataclass_fields__}
    kept = KeptStep(**fields)
    tensors = [*(kept.weights or {}).values(), *kept.buffers.values()]
    texts = [kept.reason, kept.model, *kept.training, *kept.notes, *kept.versions.values()]
    dictionaries = [*kept.calls, *kept.loss_operations, *kept.optimizers]
    right = (
        type(kept.step) is int
        and isinstance(kept.loss, (float, int, type(None)))
        and all(type(text) is str for text in texts)
        and all(isinstance(tensor, Tensor) for tensor in tensors)
        and all(isinstance(item, dict) for item in dictionaries)
        and all(isinstance(call["args"], tuple) and isinstance(call["kwargs"], dict) for call in kept.calls)
        and isinstance(kept.target, (dict, type(None)))
    )
    if not right:
        raise NotAKeptStepError("The file is not a kept step: a part of it has the wrong type.")
    return kept
