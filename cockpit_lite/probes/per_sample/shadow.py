"""Shadows: copies of a module that a rule may write on, so that nothing is ever set on the user's objects.

BackPACK's rules read ``module.input0`` and ``module.output`` and save on the parameters. A shadow is of the same class and has the
same attributes, but they are its own, and its parameters are detached aliases of the user's: no memory, no hooks, no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def shadow(module: Module, inputs: Sequence[Tensor | None], output: Tensor | None = None) -> Module:
    """Return a shadow of ``module`` with inputs and output where BackPACK's rules look for them.

    Args:
        module: The user's module; only read.
        inputs: Arguments of the call in the order of the signature of ``forward``.
        output: What the call returned.
    """
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    # nn.Module keeps parameters, buffers and children in dictionaries of their own: copy these too, or writing would reach the user
    for registry in ("_parameters", "_buffers", "_modules"):
        copy.__dict__[registry] = dict(module.__dict__[registry])
    for name, parameter in module._parameters.items():
        if parameter is not None:
            copy._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for hooks in [name for name in copy.__dict__ if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]:
        copy.__dict__[hooks] = {}
    for position, value in enumerate(inputs):
        copy.__dict__[f"input{position}"] = value
    copy.__dict__["output"] = output
    return copy
