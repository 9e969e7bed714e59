"""How a training step is wired: which parameters an optimizer holds, what the gradient reaches, and the modes of the modules.

By hooks on all modules at once, which exist only while a tracked step asks for them; nothing is set on the user's model. What is
looked at are identities, flags and shapes, never the values of activations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger("cockpit_lite")

#: Elements from which on the distribution of a weight says whether it is as its layer was made.
_ENOUGH = 256


@dataclass
class Wiring:
    """What is noticed on one step, by name.

    Attributes:
        not_optimized: Parameters that a gradient reaches, that no optimizer holds and that have not changed.
        frozen_fresh: Frozen weights that are still as their layer initialises them.
        cut_off: Parameters of the optimizer that no gradient reaches, of layers called before all that it does reach.
        boundary: The last module in front of the cut and the first one behind it; empty without a cut.
        tied_apart: Parameters that shared their memory, or their values, with another one and do not any more.
        in_eval_mode: Dropout and batch normalisation called in eval mode, with gradients, in a model in eval mode.
        validated_in_train_mode: Those that were called in train mode without gradients.
        values_per_channel: Batch normalisation in train mode -> how many values each channel was normalised over.
        left_over: Norms of the gradients that were there before the step's first backward pass, by parameter of the optimizer.
    """

    not_optimized: list[str] = field(default_factory=list)
    frozen_fresh: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)
    boundary: tuple[str, ...] = ()
    tied_apart: list[str] = field(default_factory=list)
    in_eval_mode: list[str] = field(default_factory=list)
    validated_in_train_mode: list[str] = field(default_factory=list)
    values_per_channel: dict[str, int] = field(default_factory=dict)
    left_over: dict[str, Tensor] = field(default_factory=dict)


class WiringProbe:
    """Watches the calls of a model's modules between :meth:`start` and :meth:`stop`.

    Args:
        model: The model.
        parameters: All watched parameters by name.
        optimizers: All that are watched.

    Attributes:
        paused: While set nothing is recorded: for forwards that are not the user's.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]):
        self.paused = False
        self._model = model
        self._parameters = parameters
        self._optimizers = optimizers
        self._first_versions = {name: parameter._version for name, parameter in parameters.items()}
        self._tied = _tied(model)
        self._frozen_fresh = _frozen_fresh(model)
        self._handle: RemovableHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self._names: dict[int, str] = {}
        self._called: dict[int, nn.Module] = {}  # in the order of their first call
        self._found = Wiring()

    def start(self, hooks: bool = True) -> None:
        """Begin to watch a step; without hooks, which compiled code would not take, calls and modes are not seen."""
        self.stop()
        if not hooks:
            return
        self._names = {id(module): name or type(module).__name__ for name, module in self._model.named_modules()}
        self._handle = register_module_forward_pre_hook(self._before_call)

    def stop(self) -> None:
        """Take the hook away and forget what was seen. May be called twice."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._reset()

    def before_backward(self) -> None:
        """Look at the gradients that are there before the first backward pass of the step."""
        present = {name: parameter.grad for name, parameter in self._parameters.items() if parameter.grad is not None}
        dense = [grad.to_dense() if grad.is_sparse else grad for grad in present.values()]
        self._found.left_over = dict(zip(present, torch._foreach_norm(dense), strict=True)) if dense else {}

    def wiring(self, optimizer: Optimizer) -> Wiring:
        """Return what was noticed; ``optimizer`` is about to use the gradient."""
        found = self._found
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        held = {id(p) for each in self._optimizers for group in each.param_groups for p in group["params"]}
        found.left_over = {name: norm for name, norm in found.left_over.items() if id(self._parameters[name]) in own}
        found.not_optimized = [
            name
            for name, parameter in self._parameters.items()
            if id(parameter) not in held and parameter.grad is not None and parameter._version == self._first_versions[name]
        ]
        found.frozen_fresh = [name for name, parameter in self._frozen_fresh if not parameter.requires_grad]
        found.tied_apart = [name for name, first, second in self._tied if not _share_memory(first, second)]
        found.cut_off, found.boundary = self._cut(own)
        return found

    def _cut(self, own: set[int]) -> tuple[list[str], tuple[str, ...]]:
        """Return the parameters in front of a cut through the graph, and the modules on its two sides."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        in_front: list[str] = []
        last = ""
        for key, module in self._called.items():
            trained = [p for p in module._parameters.values() if p is not None and p.requires_grad and id(p) in own]
            if not trained:
                continue
            if any(parameter.grad is not None for parameter in trained):
                return (in_front, (last, self._names[key])) if in_front else ([], ())
            in_front += [names[id(parameter)] for parameter in trained if id(parameter) in names]
            last = self._names[key]
        return [], ()

    def _before_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or self.paused or id(module) not in self._names:
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # a call under vmap or jvp is not the user's step
        try:
            self._called.setdefault(id(module), module)
            if isinstance(module, (_BatchNorm, _DropoutNd)):
                self._note_mode(module, args)
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            logger.debug("the wiring of a call was not noted", exc_info=error)

    def _note_mode(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        name, found = self._names[id(module)], self._found
        if isinstance(module, _DropoutNd) and not module.p:
            return
        if not torch.is_grad_enabled():
            if module.training and name not in found.validated_in_train_mode:
                found.validated_in_train_mode.append(name)
        elif not module.training and not self._model.training:
            if name not in found.in_eval_mode:
                found.in_eval_mode.append(name)
        elif isinstance(module, _BatchNorm) and module.training and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            found.values_per_channel[name] = args[0].numel() // max(args[0].shape[1], 1)


def _share_memory(first: tuple[nn.Module, str], second: tuple[nn.Module, str]) -> bool:
    (module, name), (other, other_name) = first, second
    one, two = module._parameters.get(name), other._parameters.get(other_name)
    return one is None or two is None or one is two or one.data_ptr() == two.data_ptr()


def _places(model: nn.Module) -> Iterable[tuple[str, nn.Module, str, nn.Parameter]]:
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{name}" if prefix else name, module, name, parameter


def _tied(model: nn.Module) -> list[tuple[str, tuple[nn.Module, str], tuple[nn.Module, str]]]:
    """Return (name, place, other place) of parameters that belong together.

    They share their memory. An output layer that begins with exactly the values of an embedding was tied to it once, and a copy
    has come between: random numbers do not repeat.
    """
    found = []
    by_memory: dict[tuple[int, torch.Size], tuple[nn.Module, str]] = {}
    tables: dict[torch.Size, list[tuple[nn.Module, str, nn.Parameter]]] = {}
    for full_name, module, name, parameter in _places(model):
        if not parameter.requires_grad or not parameter.numel() or parameter.is_meta:
            continue
        key = (parameter.data_ptr(), parameter.shape)
        if key in by_memory:
            found.append((full_name, by_memory[key], (module, name)))
            continue
        by_memory[key] = (module, name)
        if isinstance(module, nn.Embedding):
            tables.setdefault(parameter.shape, []).append((module, name, parameter))
    for full_name, module, name, parameter in _places(model):
        if isinstance(module, nn.Linear) and parameter.requires_grad:
            for table, table_name, values in tables.get(parameter.shape, ()):
                if values is not parameter and values.device == parameter.device and torch.equal(values, parameter):
                    found.append((full_name, (table, table_name), (module, name)))
    return found


def _frozen_fresh(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the frozen weights that look as their layer was made, if they are the smaller part of the model.

    torch draws the weights of linear and convolutional layers evenly between plus and minus one over the root of the fan-in, and
    embeddings from a standard normal distribution. Trained weights keep to neither.
    """
    places = [(name, module, own, p) for name, module, own, p in _places(model) if not p.is_meta]
    elements = sum(parameter.numel() for _, _, _, parameter in places)
    frozen = [place for place in places if not place[3].requires_grad and place[3].numel() >= _ENOUGH]
    if 2 * sum(parameter.numel() for *_, parameter in frozen) > elements:
        return []  # a backbone that is kept as it is, or a base that is adapted
    return [(name, parameter) for name, module, own, parameter in frozen if own == "weight" and _is_fresh(module, parameter)]


def _is_fresh(module: nn.Module, weight: nn.Parameter) -> bool:
    if not weight.is_floating_point() or weight.dim() < 2:
        return False
    values = weight.detach().float()
    if isinstance(module, nn.Embedding):
        return bool((values.std() - 1).abs() < 0.05) and bool(values.mean().abs() < 0.05)
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        bound = weight[0].numel() ** -0.5
        evenly = abs(float(values.std()) * 3**0.5 / bound - 1) < 0.1
        return evenly and float(values.abs().max()) <= bound * (1 + 1e-4)
    return False
