"""Reads off what the user's own kernels keep for their backward pass, so that it is not calculated again.

Batch and layer normalisations keep their statistics, an LSTM its gates. On a CPU torch hands an LSTM's layers to oneDNN, whose
workspace begins with the activated gates of all times: input, forget, cell, output, in the order in which the times were gone
through, every row padded. Before its end are the cells and, once the user's backward pass has been there, what it has sent back
from every time to the one before: nobody has to go back through time again. Whoever uses them checks what follows from them, so
that another layout in another version is noticed. Where the graph looks otherwise nothing is read, and the rule calculates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NODE = "MkldnnRnnLayerBackward0"
#: Normalisations, which keep their statistics as their second and third result.
STATISTICS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "NativeLayerNormBackward0")
#: No further nodes are looked at: those of the layers are behind each other.
NODES = 200
#: Elements of a row are a multiple of so many; where that is a multiple of ``CONFLICT``, one more of them.
ROW, CONFLICT = 16, 256
#: Parts of the workspace begin at multiples of so many bytes.
PAGE = 4096


class WayBack(NamedTuple):
    """What the kernel of one layer in one direction leaves behind of its way back, in the order in which it was calculated.

    Attributes:
        cells: Cell states one time before, from the second time on, shape (T - 1, N, H).
        hidden: What was sent back to the hidden states one time before, shape (T, N, H).
        carried: What was sent back to the cell states one time before, shape (T, N, H).
    """

    cells: Tensor
    hidden: Tensor
    carried: Tensor


@dataclass(eq=False)
class Kernel:
    """What the kernel of one layer in one direction keeps.

    Attributes:
        outputs: Shape (T, N, H), in the order of time.
        gates: After their activations, shape (T, N, 4 H), in the order in which they were calculated; ``None``: not to be had.
        features: Of the inputs.
        workspace: Where the gates are until the kernel is through with it.
        way_back: What is known once it is.
    """

    outputs: Tensor
    gates: Tensor | None
    features: int
    workspace: Tensor | None
    way_back: WayBack | None = None

    def let_go(self) -> None:
        """Keep nothing: the hook on the user's graph lives as long as that does."""
        self.outputs, self.gates, self.workspace, self.way_back = self.outputs.new_empty(0), None, None, None

    def let_the_workspace_go(self, *_: object) -> None:
        """The kernel is through with its workspace, which is several times as large as what is of use: keep only that."""
        try:
            if self.gates is not None and self.workspace is not None:
                way_back = way_back_in(self.workspace, self.outputs, self.features)
                self.way_back = None if way_back is None else WayBack(*map(_copied, way_back))
                self.gates, self.workspace = _copied(self.gates), None
        except Exception:  # for want of memory, say: the user's backward pass is under way
            self.gates = self.workspace = self.way_back = None


def watch_kernels(module: nn.RNNBase, output: Tensor) -> dict[str, Kernel]:
    """Return what the kernels of the call that has just returned ``output`` keep, by layer as in the parameters' names.

    Args:
        module: The recurrent module.
        output: Its first output.

    Returns:
        All layers in all directions, or nothing.
    """
    if module.mode != "LSTM" or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return {}
    keys = {id(module._parameters[name]): name.removeprefix("weight_ih_") for name in module._parameters if "weight_ih" in name}
    found: dict[str, Kernel] = {}
    seen: set[Any] = set()
    open_nodes = [output.grad_fn]
    while open_nodes and len(seen) < NODES and len(found) < len(keys):
        node: Any = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        key = keys.get(id(node._saved_weight0)) if type(node).__name__ == NODE else None
        if key is not None:
            outputs = node._saved_result0.detach()
            workspace = node._saved_result3.detach()
            gates = gates_in(workspace, outputs)
            if gates is None:
                return {}
            found[key] = Kernel(outputs, gates, node._saved_input.shape[-1], workspace)
            node.register_hook(found[key].let_the_workspace_go)
        open_nodes.extend(following for following, _ in node.next_functions)
    return found if len(found) == len(keys) else {}


def gates_in(workspace: Tensor, outputs: Tensor) -> Tensor | None:
    """Return the gates as a view of the workspace; None if they cannot be there."""
    times, samples, hidden = outputs.shape
    row = _padded_row(4 * hidden)
    size = 4 * times * samples * row
    if workspace.dtype != torch.uint8 or outputs.dtype != torch.float32 or workspace.numel() < size:
        return None
    return workspace[:size].view(torch.float32).view(times, samples, row)[..., : 4 * hidden]


def way_back_in(workspace: Tensor, outputs: Tensor, features: int) -> WayBack | None:
    """Return views of what the workspace holds when the kernel is through with it; None if it cannot be there.

    Before its end are the cells, the gradients at what is handed on from layer to layer, those at the hidden states, and those at
    the cells: each of two layers, the inputs and the outputs, and of one time more than there are.
    """
    times, samples, hidden = outputs.shape
    parts, end = [], workspace.numel()
    for row in (hidden, *[_padded_row(max(hidden, features))] * 2, hidden):
        size = 4 * 2 * (times + 1) * samples * row
        end -= -(-size // PAGE) * PAGE
        if end < 0:
            return None
        parts.append(workspace[end : end + size].view(torch.float32).view(2, times + 1, samples, row)[..., :hidden])
    carried, gradients, _, cells = parts
    return WayBack(cells[1, 1:times], gradients[0, :times], carried[0, :times])


def _padded_row(elements: int) -> int:
    row = -(-elements // ROW) * ROW
    return row + ROW if row % CONFLICT == 0 else row


def _copied(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def statistics_of(output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean and one over the deviation that a normalisation has just calculated ``output`` with; None: not known.

    Its node keeps them, in single precision or better: a number a channel, or a number a position. A batch normalisation in eval
    mode has none.
    """
    node: Any = output.grad_fn
    if type(node).__name__ not in STATISTICS or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    mean, scale = (getattr(node, name, None) for name in ("_saved_result1", "_saved_result2"))
    if not isinstance(mean, Tensor) or not isinstance(scale, Tensor) or mean.dtype not in (torch.float32, torch.float64):
        return None
    return (mean.detach(), scale.detach()) if mean.shape == scale.shape and mean.numel() else None
