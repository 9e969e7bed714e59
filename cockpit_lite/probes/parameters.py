"""Naming the watched parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer


def named_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, nn.Parameter]:
    """Return every parameter of the model and of the optimizers by name, a shared one once.

    Parameters that only an optimizer knows (those of a loss function, say) are named ``optimizer.<group>.<position>``, with the
    optimizer's number in front if there are several.
    """
    named = dict(model.named_parameters())
    known = {id(parameter) for parameter in named.values()}
    for number, optimizer in enumerate(optimizers):
        prefix = "optimizer" if len(optimizers) == 1 else f"optimizer{number}"
        for group_number, group in enumerate(optimizer.param_groups):
            for position, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    named[f"{prefix}.{group_number}.{position}"] = parameter
    return named


def learning_rates(optimizers: Sequence[Optimizer]) -> list[float]:
    """Return the learning rate of every parameter group that has one."""
    return [group["lr"] for optimizer in optimizers for group in optimizer.param_groups if "lr" in group]


def parameter_learning_rates(parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]) -> dict[str, float]:
    """Return the learning rate by parameter name; a parameter in no optimizer is missing."""
    rates = {
        id(parameter): group["lr"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        if "lr" in group
        for parameter in group["params"]
    }
    return {name: rates[id(parameter)] for name, parameter in parameters.items() if id(parameter) in rates}
