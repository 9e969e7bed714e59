"""What stands in the way of differentiating a user's graph twice, and how to say it in a sentence."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from cockpit_lite.errors import NotMeasured

# Nodes of the graph that PyTorch itself writes in Python.
_MODULE_HOOK = "BackwardHookFunctionBackward"
_COMPILED = "CompiledFunctionBackward"
_CHECKPOINT = "CheckpointFunctionBackward"

_REENTRANT = "re-entrant activation checkpointing allows no gradient beside the training's own (use_reentrant=False does)"
_NO_SECOND_DERIVATIVE = {
    _COMPILED: "compiled code has no second derivative",
    _CHECKPOINT: _REENTRANT,
}

#: Larger graphs (long unrolled loops) are not searched to the end: a search may not cost more than a product.
MOST_NODES = 50_000

# What PyTorch says -> what the reader of a report wants to know. {0} is the first group.
_SENTENCES = {
    r"derivative for '?(?:aten::)?_?(\w*attention\w*)'? is not implemented": "the fused kernel {0} has no second derivative",
    r"derivative for '?(?:aten::)?_?(\w+)'? is not implemented": "the operation {0} has no second derivative",
    r"not supported for CuDNN RNNs": "the cuDNN recurrent kernel has no second derivative",
    r"once_differentiable": "a custom autograd function is marked once_differentiable, so it has no second derivative",
    r"aot_autograd does not currently support double backward": "compiled code has no second derivative",
    r"Checkpointing is not compatible": _REENTRANT,
    r"modified by an inplace operation": "a tensor that the second derivative needs was changed in place after the forward pass",
    r"backward through the graph a second time": "the graph of the loss was already freed",
}


class NoSecondDerivative(NotMeasured):
    """The user's graph cannot be differentiated twice; a second forward pass may help."""


def explain(error: RuntimeError) -> str:
    """Return why a derivative could not be taken; the text completes "not measured, because ..."."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "there was not enough memory for products with the Hessian"
    for pattern, sentence in _SENTENCES.items():
        if match := re.search(pattern, text):
            return sentence.format(*match.groups())
    first_line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return f"the loss could not be differentiated twice: {first_line}"


def python_functions(loss: Tensor) -> list[str]:
    """Return the names of the graph nodes that are autograd functions written in Python, in order of their discovery."""
    found: dict[str, None] = {}
    pending = [loss.grad_fn]
    seen = set(pending)
    while pending and len(seen) < MOST_NODES:
        node = pending.pop()
        if node is None:
            continue
        if isinstance(node, BackwardCFunction) or node.name() == _MODULE_HOOK:
            found[node.name()] = None
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return list(found)


def check_graph(loss: Tensor, model: nn.Module | None) -> list[str]:
    """Make sure that ``loss`` can be differentiated beside the user's own backward without the user noticing.

    Args:
        loss: The root of the graph.
        model: Its modules are searched for backward hooks, which would fire once more in each of our passes. Hooks on
            inner tensors cannot be seen from outside.

    Returns:
        Names of the user's own autograd functions in the graph, whose second derivatives are taken on trust.

    Raises:
        NotMeasured: with the reason why it cannot.
    """
    if loss.numel() != 1:
        raise NotMeasured(f"the loss is not a single number but has the shape {tuple(loss.shape)}")
    if loss.grad_fn is None:
        raise NotMeasured("the loss has no graph: it does not depend on the parameters through autograd")
    if model is not None:
        for name, module in model.named_modules():
            if module._backward_hooks or module._backward_pre_hooks:
                raise NotMeasured(
                    f"the module {name or type(module).__name__!r} has a backward hook that would fire a second time"
                )
    functions = python_functions(loss)
    if _MODULE_HOOK in functions:
        raise NotMeasured("a module has a backward hook that would fire a second time")
    for name in functions:
        if name in _NO_SECOND_DERIVATIVE:
            raise NoSecondDerivative(_NO_SECOND_DERIVATIVE[name])
    return [name.removesuffix("Backward") for name in functions]
