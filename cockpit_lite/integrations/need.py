"""Need: imports another library, or says which extra brings it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from cockpit_lite.errors import SetupError


def need(module: str, extra: str) -> ModuleType:
    """Return an imported module.

    Raises:
        SetupError: if it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, but something that it needs is not
        raise SetupError(f"{module.split('.')[0]} is not installed: pip install 'cockpit-lite[{extra}]'.") from None
