"""What the repeated blocks of a deep model make of the signal that goes through them: its variance before and behind each.

Blocks are modules of the same class that stand in one container, four or more, and give back what has the shape of what they got:
the layers of a transformer, the stages of a residual net. They are looked at in the first measured steps only, by hooks on all
modules that exist while such a step runs.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger("cockpit_lite")

FEWEST_BLOCKS = 4
#: Steps that are looked at: how a net begins.
STEPS = 2
#: Elements of a signal that are looked at.
MOST_ELEMENTS = 65_536


@dataclass(frozen=True)
class Block:
    """One call of a block.

    Attributes:
        before: Variance of what it got.
        behind: Variance of what it gave back.
        correlation: Of the two: that of a residual block is far from 0.
    """

    before: Tensor
    behind: Tensor
    correlation: Tensor


class BlockProbe:
    """Watches the blocks of a model between :meth:`start` and :meth:`stop`.

    Attributes:
        paused: While set nothing is recorded: for forwards that are not the user's.
    """

    def __init__(self, model: nn.Module):
        self.paused = False
        self._names = blocks(model)
        self._left = STEPS
        self._handle: RemovableHandle | None = None
        self._found: dict[str, Block] = {}

    @property
    def obstacle(self) -> str:
        """Why nothing is seen, or ""."""
        if not self._names:
            return f"the model has no {FEWEST_BLOCKS} blocks of one kind in a row"
        return "" if self._left > 0 or self._handle is not None else "how the blocks begin is looked at in the first steps only"

    def start(self, hooks: bool = True) -> None:
        """Begin to watch a step, if it is one of the first; without hooks, which compiled code would not take, not at all."""
        self.stop()
        if hooks and self._names and self._left > 0:
            self._left -= 1
            self._handle = register_module_forward_hook(self._after_call)

    def stop(self) -> None:
        """Take the hook away and forget what was seen. May be called twice."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._found = {}

    def found(self) -> dict[str, Block]:
        """Return what was seen by block, in the order of the calls; of a block that is called twice the first call."""
        return self._found

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name = self._names.get(id(module))
        if name is None or self.paused or name in self._found or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return
        try:
            given = args[0] if args else None
            back = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(given, Tensor) or not isinstance(back, Tensor) or given.shape != back.shape:
                return
            if not given.is_floating_point() or given.data_ptr() == back.data_ptr() or not given.numel():
                return
            with torch.no_grad():
                self._found[name] = look(given.detach(), back.detach())
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            logger.debug("a block was not noted", exc_info=error)


def look(given: Tensor, back: Tensor) -> Block:
    """Return the variances of two signals and their correlation, of some of their elements."""
    every = -(-given.numel() // MOST_ELEMENTS)
    rows = torch.stack([given.reshape(-1)[::every].float(), back.reshape(-1)[::every].float()])
    rows = rows - rows.mean(1, keepdim=True)
    before, behind = rows.square().mean(1).unbind()
    return Block(before, behind, (rows[0] * rows[1]).mean() / (before * behind).sqrt())


def blocks(model: nn.Module) -> dict[int, str]:
    """Return the identities and names of the blocks of a model."""
    found: dict[int, str] = {}
    for prefix, container in model.named_modules():
        children = [(name, child) for name, child in container.named_children() if next(child.parameters(), None) is not None]
        kinds = Counter(type(child) for _, child in children)
        for name, child in children:
            # One layer alone is no block: it has nothing to add its input to.
            if kinds[type(child)] >= FEWEST_BLOCKS and next(child.children(), None) is not None:
                found[id(child)] = f"{prefix}.{name}" if prefix else name
    return found
