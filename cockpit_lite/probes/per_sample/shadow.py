"""Shadows: copies of a module that a rule may write on, so that nothing is ever set on the user's objects.

A shadow is of the same class and has the same attributes, but they are its own, and its parameters are detached aliases of the
user's: no memory, no hooks, no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

#: Where a module keeps its hooks.
_HOOKS = [name for name in nn.Module().__dict__ if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]


def with_call(module: Module, inputs: Sequence[Tensor | None], output: Tensor | None) -> Module:
    """Return ``module`` as a rule of ours reads it: with inputs and output where BackPACK's rules look for them.

    It shares everything else with the user's module, so it may be read and not written; it is no module to call.

    Args:
        module: The user's module; only read.
        inputs: Arguments of the call in the order of the signature of ``forward``.
        output: What the call returned.
    """
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__, output=output)
    for position, value in enumerate(inputs):
        copy.__dict__[f"input{position}"] = value
    return copy


def shadow(module: Module, aliases: dict[int, nn.Parameter]) -> Module:
    """Return a shadow of one module.

    Args:
        module: The user's module; only read.
        aliases: Aliases of parameters by the id of the user's, so that tied ones stay tied over several shadows.
    """
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    # nn.Module keeps parameters, buffers and children in dictionaries of their own: without copies the user's would be written
    for registry in ("_parameters", "_buffers", "_modules"):
        copy.__dict__[registry] = dict(module.__dict__[registry])
    for name, parameter in module._parameters.items():
        if parameter is not None:
            if id(parameter) not in aliases:
                aliases[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            copy._parameters[name] = aliases[id(parameter)]
    before = copy.__dict__["_forward_pre_hooks"]
    copy.__dict__.update((name, {}) for name in _HOOKS)
    # torch's older weight and spectral normalisation are hooks: they belong to the function, not to an onlooker
    kept = {key: hook for key, hook in before.items() if type(hook).__module__.startswith("torch.nn.utils")}
    copy.__dict__["_forward_pre_hooks"] = kept
    return copy


def shadow_tree(module: Module) -> Module:
    """Return a shadow of ``module`` and of all modules below it, fit to be called: without hooks, with buffers of its own."""
    copies: dict[int, nn.Module] = {}
    aliases: dict[int, nn.Parameter] = {}
    for original in module.modules():
        copy = shadow(original, aliases)
        for name, buffer in copy._buffers.items():
            copy._buffers[name] = None if buffer is None else buffer.detach().clone()
        for name, value in list(copy.__dict__.items()):
            if type(value) in (list, dict, set):  # a forward may collect something in them
                copy.__dict__[name] = type(value)(value)
        copies[id(original)] = copy
    for copy in copies.values():
        copy.__dict__["_modules"] = {
            name: None if child is None else copies[id(child)] for name, child in copy.__dict__["_modules"].items()
        }
    return copies[id(module)]  # type: ignore[return-value]  # of the same class
