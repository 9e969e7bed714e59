"""What stands in the way of differentiating a user's graph twice, and how to say it in a sentence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn.modules import module as module_registry

from cockpit_lite.errors import NotMeasured

# Nodes of the graph that PyTorch itself writes in Python.
_MODULE_HOOK = "BackwardHookFunctionBackward"
_COMPILED = "CompiledFunctionBackward"
_CHECKPOINT = "CheckpointFunctionBackward"
_WEIGHT_NORM = "WeightNormInterfaceBackward0"

_REENTRANT = "re-entrant activation checkpointing allows no gradient beside the training's own (use_reentrant=False does)"
_FUSED_ATTENTION = "the fused kernel of scaled dot product attention has no second derivative"
_ATTENTION_KERNELS = ("FlashAttention", "FlashAttentionForCpu", "EfficientAttention", "CudnnAttention")
_NO_SECOND_DERIVATIVE = {
    _COMPILED: "compiled code has no second derivative",
    _CHECKPOINT: _REENTRANT,
    # It takes the saved norms for constants, without an error (seen in PyTorch 2.15): its Hessian is not even symmetric.
    _WEIGHT_NORM: "the second derivative of PyTorch's weight normalisation is wrong",
    # Seen beforehand: to find it out from the derivative takes a backward pass.
    **{f"ScaledDotProduct{kernel}Backward0": _FUSED_ATTENTION for kernel in _ATTENTION_KERNELS},
}

#: Larger graphs (long unrolled loops) are not searched to the end: a search may not cost more than a product.
MOST_NODES = 50_000

# What PyTorch says -> what the reader of a report wants to know. {0} is the first group.
_SENTENCES = {
    r"derivative for '?(?:aten::)?_?(\w*attention\w*)'? is not implemented": "the fused kernel {0} has no second derivative",
    r"derivative for '?(?:aten::)?_?(\w+)'? is not implemented": "the operation {0} has no second derivative",
    r"not supported for CuDNN RNNs": "the cuDNN recurrent kernel has no second derivative",
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


def walk(roots: Iterable[Tensor], stops: Collection[Any] = (), most: float = MOST_NODES) -> Iterator[Any]:
    """Yield the nodes of the graph that ``roots`` were made by, up to the nodes in ``stops``, until ``most`` have been seen."""
    pending = [root.grad_fn for root in roots]
    seen = set(pending)
    while pending and len(seen) < most:
        node = pending.pop()
        if node is None or node in stops:
            continue
        yield node
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                pending.append(following)


def check_nodes(roots: Iterable[Tensor], stops: Collection[Tensor] = ()) -> list[str]:
    """Make sure that the graph of ``roots``, up to the ``stops``, can be differentiated twice.

    Returns:
        Names of the custom autograd functions in it, whose second derivatives are taken on trust.

    Raises:
        NoSecondDerivative: with the operation that is known to have none.
        NotMeasured: if a module has a backward hook.
    """
    custom: dict[str, None] = {}
    ends = {stop.grad_fn for stop in stops}
    for node in walk(roots, ends):
        name = node.name()
        if name == _MODULE_HOOK:
            raise NotMeasured("a module has a backward hook that would fire a second time")
        if name in _NO_SECOND_DERIVATIVE:
            raise NoSecondDerivative(_NO_SECOND_DERIVATIVE[name])
        if isinstance(node, BackwardCFunction) and not _is_ours(type(node)):
            function = name.removesuffix("Backward")
            # Autograd raises nothing here: it would leave the part behind it out of the Hessian in silence.
            if _is_once_differentiable(type(node)):
                raise NoSecondDerivative(f"the custom autograd function {function} is marked once_differentiable")
            custom[function] = None
    return list(custom)


def _is_ours(node_type: type) -> bool:
    return getattr(node_type, "_forward_cls", node_type).__module__.startswith("cockpit_lite.")


def _is_once_differentiable(node_type: type) -> bool:
    backward = getattr(getattr(node_type, "_forward_cls", None), "backward", None)
    return getattr(backward, "__globals__", {}).get("__name__") == once_differentiable.__module__ and hasattr(
        backward, "__wrapped__"
    )


def check_loss(loss: Tensor, model: nn.Module | None) -> None:
    """Make sure that ``loss`` can be differentiated beside the user's own backward without the user noticing.

    Args:
        loss: The root of the graph.
        model: Its modules are searched for backward hooks, which would fire once more in each of our passes. Hooks on
            inner tensors cannot be seen from outside.

    Raises:
        NotMeasured: with the reason why it cannot.
    """
    if loss.numel() != 1:
        raise NotMeasured(f"the loss is not a single number but has the shape {tuple(loss.shape)}")
    if loss.grad_fn is None:
        raise NotMeasured("the loss has no graph: it does not depend on the parameters through autograd")
    if module_registry._global_backward_hooks or module_registry._global_backward_pre_hooks:
        raise NotMeasured("all modules have a backward hook that would fire a second time")
    for name, module in model.named_modules() if model is not None else ():
        if module._backward_hooks or module._backward_pre_hooks:
            raise NotMeasured(f"the module {name or type(module).__name__!r} has a backward hook that would fire a second time")


def trust_note(custom_functions: Iterable[str]) -> list[str]:
    """Return what to say of custom autograd functions, if there are any."""
    names = ", ".join(dict.fromkeys(custom_functions))
    return [f"second derivative taken on trust: {names}"] if names else []
