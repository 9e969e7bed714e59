"""The states of the random number generators that a forward pass may draw from."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The share of the time that taking the states of python and numpy may cost; a training that steps faster has older ones.
_SHARE = 0.002


class RandomStates:
    """Takes the states just before a forward pass.

    That of torch takes a microsecond and is taken every time. Those of python and numpy take ten to a hundred, and hardly any
    forward pass draws from them: they are taken as often as a share of the time allows, and say how old they are.

    Args:
        devices: Of the model.
    """

    def __init__(self, devices: Sequence[torch.device]):
        self._accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
        self._slow: tuple[Any, Any] = (None, None)
        self._slow_age = 0
        self._next = 0.0

    def take(self) -> dict[str, Any]:
        """Return the states as they are."""
        self._slow_age += 1
        now = time.perf_counter()
        if now >= self._next:
            self._slow, self._slow_age = (random.getstate(), np.random.get_state()), 0
            after = time.perf_counter()
            self._next = after + (after - now) / _SHARE
        states = {str(device): getattr(torch, device.type).get_rng_state(device) for device in self._accelerators}
        return {"torch": torch.default_generator.get_state(), "devices": states, "slow": self._slow, "age": self._slow_age}


def to_file(states: dict[str, Any]) -> dict[str, Any]:
    """Return states as plain containers of tensors."""
    if not states:
        return {}
    python, numpy = states["slow"]
    found = {"torch": states["torch"], "devices": dict(states["devices"]), "calls since those of python and numpy": states["age"]}
    if python is not None:
        version, key, gauss = python
        found["python"] = {"version": version, "key": torch.tensor(key, dtype=torch.int64), "gauss": gauss}
    if numpy is not None:
        name, key, position, has_gauss, gauss = numpy
        found["numpy"] = {
            "name": str(name),
            "key": torch.from_numpy(np.asarray(key, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        }
    return found


def set_states(found: dict[str, Any]) -> None:
    """Put the generators into the states of :func:`to_file`; states of devices that are not here are left out.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: if they are no states.
    """
    if not found:
        return  # it was not noted
    torch.set_rng_state(found["torch"])
    for name, state in found["devices"].items():
        device = torch.device(name)
        module = getattr(torch, device.type, None)
        if module is not None and module.is_available():
            module.set_rng_state(state, device)
    if "python" in found:
        about = found["python"]
        random.setstate((about["version"], tuple(_integers(about["key"])), about["gauss"]))
    if "numpy" in found:
        about = found["numpy"]
        key = np.array(_integers(about["key"]), dtype=np.uint32)
        np.random.set_state((about["name"], key, about["position"], about["has_gauss"], about["gauss"]))


def _integers(key: Tensor) -> list[int]:
    return [int(number) for number in key.tolist()]
