"""What a step is trained on: the batch, what the model made of it, and what went into the loss function.

The batch and the output are those of the model's last call with gradients. What went into the loss function is read off the graph
of the loss: its last function keeps prediction and target for its own derivative.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import MOST_CALLS, nodes_behind, remove_hooks
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.nodes import saved, signed

logger = logging.getLogger("cockpit_lite")

#: Calls without gradients whose inputs are held at a time.
_MOST_VALIDATION_CALLS = 32
#: No further nodes are looked at: the loss function is close to the root.
_NODES = 200
#: Nodes that change shape or type only, and are looked through for what made a prediction.
_SHAPE_ONLY = frozenset(
    f"{name}Backward0"
    for name in (
        "View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze", "Clone", "Alias", "ToCopy",
        "Expand", "Slice", "Select", "Index", "_ReshapeCopy",
    )
) | {"SqueezeBackward1", "TBackward0"}  # fmt: skip
_REGRESSION = {"MseLossBackward0": "mse", "SmoothL1LossBackward0": "smooth_l1", "HuberLossBackward0": "huber"}
_BINARY = {
    "BinaryCrossEntropyBackward0": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogitsBackward0": "binary_cross_entropy_with_logits",
}


@dataclass(frozen=True)
class LossInputs:
    """What a loss function was given.

    Attributes:
        kind: ``"cross_entropy"``, ``"nll"``, ``"mse"``, ``"smooth_l1"``, ``"huber"``, or ``"binary_cross_entropy"``.
        prediction: Log-probabilities of classes, class axis 1 (or 0 of a single row), for the first two; else what was predicted.
        target: Classes, or numbers.
        made_by: Name of the operation that made what the loss function was given, such as ``"Softmax"`` or ``"Relu"``.
        ignore_index: The class that does not count.
    """

    kind: str
    prediction: Tensor
    target: Tensor
    made_by: str
    ignore_index: int = -100


@dataclass(frozen=True)
class Data:
    """The data of one step.

    Attributes:
        inputs: First tensor that the model was given.
        output: First tensor that it returned, detached.
        loss_inputs: What went into the loss function; None if it is not one of those that are known.
        padding_index: Of the model's embedding, or None.
        without_gradients: First tensors that the model was given in its last calls without gradients since the step before.
    """

    inputs: Tensor | None
    output: Tensor | None
    loss_inputs: LossInputs | None
    padding_index: int | None
    without_gradients: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class _Call:
    """Inputs and output of one call, detached, and the node of the graph that made the output."""

    inputs: Tensor | None
    output: Tensor | None
    node: Any


class DataProbe:
    """Watches the calls of the model between :meth:`start` and :meth:`stop`.

    Attributes:
        paused: While set nothing is recorded: for forwards that are not the user's.
    """

    def __init__(self, model: nn.Module):
        self.paused = False
        self._model = model
        self._handle: RemovableHandle | None = None
        indices = [m.padding_idx for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        self._padding_index = next((index for index in indices if index is not None), None)
        self._reset()

    def _reset(self) -> None:
        self._calls: list[_Call] = []
        self._without_gradients: list[Tensor] = []
        self._loss_inputs: LossInputs | None = None

    def start(self, hooks: bool = True) -> None:
        """Begin to watch a step; without hooks, which compiled code would not take, the batch is not seen."""
        self.stop()
        if hooks:
            self._handle = register_module_forward_hook(self._after_call, with_kwargs=True)

    def stop(self) -> None:
        """Take the hook away and forget the data. May be called twice."""
        if self._handle is not None:
            remove_hooks([self._handle])
            self._handle = None
        self._reset()

    def before_backward(self, loss: Tensor) -> None:
        """Read off the graph of the loss what its function was given."""
        self._loss_inputs = loss_inputs(loss)
        if len(self._calls) > 1:  # validation with gradients may have come between
            behind = nodes_behind(loss)
            self._calls = [call for call in self._calls if call.node in behind][-1:] or self._calls[-1:]

    def data(self) -> Data:
        """Return what was seen."""
        last = self._calls[-1] if self._calls else _Call(None, None, None)
        return Data(last.inputs, last.output, self._loss_inputs, self._padding_index, tuple(self._without_gradients))

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() or module is not self._model or self.paused:
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # a call under vmap or jvp has no batch that could be looked at
        try:
            inputs, result = _first((args, dict(kwargs))), _first(output)
            if not torch.is_grad_enabled():
                if inputs is not None:
                    self._without_gradients = [*self._without_gradients[1 - _MOST_VALIDATION_CALLS :], inputs.detach()]
                return
            call = _Call(
                None if inputs is None else inputs.detach(),
                None if result is None else result.detach(),
                None if result is None else result.grad_fn,
            )
            self._calls = [*self._calls[1 - MOST_CALLS :], call]
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            logger.debug("the data of a call were not noted", exc_info=error)


def _first(value: Any) -> Tensor | None:
    found = (leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor) and leaf.dim())
    return next(found, None)


def loss_inputs(loss: Tensor) -> LossInputs | None:
    """Return what the loss function nearest to the root was given, or None if there is none that is known."""
    waiting: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while waiting and len(seen) < _NODES:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        try:
            found = _read(node)
        except NotMeasured:  # its tensors are gone, were changed in place, or would be computed again by the user's checkpoint
            return None
        if found is not None:
            return found
        waiting.extend(following for following, _ in node.next_functions)
    return None


def _read(node: Any) -> LossInputs | None:
    kind = type(node).__name__
    before = node.next_functions[0][0] if node.next_functions else None
    if kind in ("NllLossBackward0", "NllLoss2DBackward0"):
        prediction, target, ignored = saved(node, "self"), saved(node, "target"), signed(saved(node, "ignore_index"))
        softmax = _through_shapes(before)
        if type(softmax).__name__ == "LogSoftmaxBackward0":
            made_by = _through_scales(softmax.next_functions[0][0])
            return LossInputs("cross_entropy", prediction, target, _operation(made_by), ignored)
        return LossInputs("nll", prediction, target, _operation(before), ignored)
    if kind in _REGRESSION or kind in _BINARY:
        name = _REGRESSION.get(kind) or _BINARY[kind]
        made_by = _through_scales(before) if name == "binary_cross_entropy_with_logits" else before
        return LossInputs(name, saved(node, "self"), saved(node, "target"), _operation(made_by))
    return None


def _through_shapes(node: Any) -> Any:
    for _ in range(_NODES):
        if type(node).__name__ not in _SHAPE_ONLY or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return node


def _through_scales(node: Any) -> Any:
    """Return what made logits that are multiplied with or divided by a number, as by a temperature, on the way to the loss."""
    for _ in range(_NODES):
        node = _through_shapes(node)
        following = [function for function, _ in node.next_functions] if node is not None else []
        if type(node).__name__ not in ("MulBackward0", "DivBackward0") or len(list(filter(None, following))) != 1:
            break
        node = next(filter(None, following))
    return node


def _operation(node: Any) -> str:
    return type(_through_shapes(node)).__name__.partition("Backward")[0]


def rows_and_classes(found: LossInputs) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (rows, classes) and targets (rows,) of a classification, without the rows that are ignored.

    The number of rows depends on the targets, so on an accelerator this waits for them where a class is ignored that occurs.
    """
    axis = 1 if found.prediction.dim() > 1 else 0
    log_probabilities = found.prediction.movedim(axis, -1)
    classes = log_probabilities.shape[-1]
    return log_probabilities.reshape(-1, classes), found.target.reshape(-1)


def uniform_loss(classes: int) -> float:
    """Return the cross entropy of a guess that knows nothing, ln C."""
    return math.log(classes)
