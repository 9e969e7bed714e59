"""Reading nodes of the autograd graph: what they saved, and what they were given.

A node of a forward operation can be asked three things without a pass over the graph: what it saved, the shapes of what it put
out, and, by calling it, what it would send back. None of them changes anything or fires a hook.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured

#: A node and which of its outputs; two are the same edge if they are equal.
Edge = tuple[Any, int]


def edge_of(tensor: Tensor) -> Edge:
    """Return where in the graph a tensor comes from."""
    return tensor.grad_fn, tensor.output_nr


def saved(node: Any, name: str) -> Any:
    """Return what a node saved for its backward, tensors detached.

    Raises:
        NotMeasured: if reading it would do something (what was saved is to be fetched or computed again), or it is not what it
            was.
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    if getattr(raw, "unpack_hook", None) is not None:
        raise NotMeasured("what the loss saved for its backward pass is packed away by saved-tensor hooks or a checkpoint")
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError as error:
        reason = "was changed in place" if "modified by an inplace operation" in str(error) else "is no longer there"
        raise NotMeasured(f"what the loss saved for its backward pass {reason}") from None
    return value.detach() if isinstance(value, Tensor) else value


@cache
def saved_tensors(kind: Hashable) -> tuple[str, ...]:
    """Return the names of the tensors that nodes of a kind save."""
    return tuple(name.removeprefix("_raw_saved_") for name in dir(kind) if name.startswith("_raw_saved_"))


def saved_axis(node: Any, name: str = "dim") -> int:
    """Return a saved axis, or any other number that PyTorch shows without its sign."""
    return signed(saved(node, name))


def signed(value: int) -> int:
    """Return a number that PyTorch shows as an unsigned one.

    >>> signed(2), signed(2**64 - 100)
    (2, -100)
    """
    return value - 2**64 if value >= 2**63 else value


def shape_of(edge: Edge) -> torch.Size:
    """Return the shape of the tensor that comes from an edge."""
    node, number = edge
    return torch.Size(node._input_metadata[number].shape)


def inputs_of(node: Any) -> list[Edge | None]:
    """Return where the inputs of the operation came from; None for one that leads back to nothing."""
    return [None if function is None else (function, number) for function, number in node.next_functions]


def is_parameter(edge: Edge) -> bool:
    """Whether a leaf of the graph is reached."""
    return hasattr(edge[0], "variable")


def operation(node: Any) -> str:
    """Return the name of a node's operation, for a reader.

    >>> x = torch.ones(2, requires_grad=True)
    >>> operation(x.exp().grad_fn), operation(x.mean().grad_fn)
    ('Exp', 'Mean')
    """
    name: str = node.name().rsplit("::", 1)[-1]
    return name.partition("Backward")[0] or name
