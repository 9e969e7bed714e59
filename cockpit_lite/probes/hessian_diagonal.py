"""The exact diagonal of the Hessian, by BackPACK where it knows every module.

The model is repeated on shadows, so nothing is set on the user's modules. Of the loss BackPACK has to be told, too: its module
for cross entropy or squared error, with the labels that the user's graph holds. Where a module, an operation between modules, or
the loss is not one that BackPACK can follow, there is no diagonal, and the reason is said: an estimate by random vectors would
be off by many times the value.

Reference: F. Dangel, F. Kunstner, P. Hennig, BackPACK: Packing more into Backprop (DiagHessian), 2020.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from backpack import backpack, extend
from backpack.extensions import DiagHessian
from torch import Tensor, nn

from cockpit_lite.curvature.quietly import forward_hooks, package, quietly
from cockpit_lite.curvature.sub_batch import SubBatch
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head import LossHead
from cockpit_lite.probes.loss_head.heads import CrossEntropy
from cockpit_lite.probes.per_sample.shadow import shadow_tree
from cockpit_lite.probes.replay import Replay

#: Columns that BackPACK may carry backwards: one for every output of the model, and one for every unit with a bend of its own.
MOST_COLUMNS = 128

#: Activations with a second derivative.
_CURVED = (nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.LogSigmoid, nn.GELU, nn.SiLU, nn.Softplus)

#: Modules whose output is piecewise linear in what they are given, and in their own weights.
_PIECEWISE_LINEAR = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Threshold, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.ZeroPad2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d),
)

#: How far the repeated loss may be from the user's, relative.
_TOLERANCE = 1e-3


def hessian_diagonal(replay: Replay, samples: Sequence[SubBatch] = ()) -> dict[str, Tensor]:
    """Return the diagonal of the Hessian of the replayed loss by name, of every parameter that BackPACK reaches.

    Use it before the weights change. Costs about five forward and backward passes, in proportion to the samples.

    Args:
        replay: The forward pass.
        samples: Estimate it from some samples of the batch, one choice for each axis that may be the batch's; BackPACK takes the
            first axis for it. Empty: take all.

    Raises:
        NotMeasured: if BackPACK does not know the loss, a module, or what is between the modules.
    """
    if len(replay.heads) != 1:
        raise NotMeasured("the loss is made of several terms")
    for name, module in replay.model.named_modules():
        if next(module.children(), None) is not None and type(module).forward is not nn.Sequential.forward:
            kind = type(module).__name__
            raise NotMeasured(
                f"BackPACK cannot follow this model (it knows chains of modules, and {kind} has a forward of its own)"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise NotMeasured(f"the module {name!r} draws random numbers, which cannot be drawn again here")
    names = [name for name, _ in replay.model.named_parameters(remove_duplicate=False)]
    if len(names) > len(dict(replay.model.named_parameters())):
        raise NotMeasured("a parameter is used by two modules, and BackPACK would keep the part of one")
    if replay.call.kwargs or not any(isinstance(value, Tensor) for value in replay.call.args):
        raise NotMeasured("the model is called with keywords, and BackPACK knows positions only")
    part: SubBatch | None = None
    rows: slice | Tensor = slice(None)
    head = replay.heads[0]
    model = _ready_for_hooks(shadow_tree(replay.model))
    with quietly(replay.model.parameters(), replay.model.buffers()):
        # Our own hooks rest on all modules; BackPACK places its own on the shadows alone.
        try:
            extend(model)
            args = replay.call.args
            part = next((choice for choice in samples if choice.axis == 0), None)
            if part is not None:
                args, rows = part.cut(args), part.chosen
            output = model(*map(_differentiable, args))
            _require_few_columns(model, output)
            terms = _require_prediction(head, output, rows)
            function, target, factor = _loss(head, output.detach(), rows)
            loss = extend(function)(output, target)
            if bool((factor * loss.detach() - terms.sum()).abs() > _TOLERANCE * terms.abs().sum()):
                raise NotMeasured("a second forward pass gave another loss: the model's forward cannot be repeated")
            with backpack(DiagHessian()):
                loss.backward()
        except NotMeasured:
            raise
        except Exception as error:  # it says in many ways that it does not know something
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise NotMeasured(f"BackPACK cannot follow this model ({first_line})") from error
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            diagonal = getattr(parameter, "diag_h", None)
            if diagonal is None:
                raise NotMeasured(f"BackPACK does not reach the parameter {name!r}")
            found[name] = replay.unscaled((factor if part is None else factor * part.factor) * diagonal.detach())
    return found


def is_piecewise_linear(model: nn.Module) -> bool:
    """Return whether the model is a chain of modules that are piecewise linear, each with weights of its own.

    Then the output is piecewise linear in each layer's weights, and the Hessian's diagonal is that of the Gauss-Newton matrix. A
    class that was derived from one of these, a hook of the user's, or a parametrisation may do anything.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) > len(dict(model.named_parameters())):
        return False
    for module in [None, *model.modules()]:
        if any(package(hook) != "cockpit_lite" for hooks in forward_hooks(module) for hook in hooks.values()):
            return False
        if module is not None and type(module) is not nn.Sequential and type(module) not in _PIECEWISE_LINEAR:
            return False
    return True


def _ready_for_hooks(model: nn.Module) -> nn.Module:
    """Give shadows dictionaries for hooks as PyTorch makes them, to which a handle can refer weakly."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:  # a hook makes a view of its output, which must not be written to
            vars(module)["inplace"] = False
        for name, value in vars(module).items():
            if "_hooks" in name and type(value) is dict:
                vars(module)[name] = OrderedDict(value)
    return model


def _differentiable(value: Any) -> Any:
    """Return an input that asks for a gradient: PyTorch warns of backward hooks, which are BackPACK's, where none does."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise NotMeasured("the model is given integers, and BackPACK knows no lookup")
        return value.detach().requires_grad_()
    return value


def _require_few_columns(model: nn.Module, output: Tensor) -> None:
    """The cost is in proportion to them: a small convolution with a sigmoid has a thousand units, and would take minutes."""
    curved = [module for module in model.modules() if isinstance(module, _CURVED)]
    columns = output[0].numel() + sum(cast(Tensor, module.output)[0].numel() for module in curved)
    if columns > MOST_COLUMNS:
        raise NotMeasured(
            f"BackPACK would carry {columns:,} columns backwards, one for every unit with a curved activation; "
            f"up to {MOST_COLUMNS} are affordable"
        )


def _require_prediction(head: LossHead, output: object, rows: slice | Tensor) -> Tensor:
    """Make sure that the loss function was given the model's output as it is, but for constants that were added.

    Returns:
        What the rows of the output contribute to the objective.
    """
    if isinstance(output, Tensor) and output.shape == head.prediction[rows].shape:
        before = head.prediction
        move = torch.linspace(1, 2, before.numel(), dtype=before.dtype, device=before.device).view_as(before)
        if torch.allclose(head.from_output(before + move) - head.from_output(before), move, rtol=_TOLERANCE):
            return head.terms()[rows]
    raise NotMeasured("the loss function was given something else than the model's output as it is")


def _loss(head: LossHead, output: Tensor, rows: slice | Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """Return BackPACK's module for the loss, its target, and what the user's objective is a multiple of its mean by.

    What the graph does not say outright is in the derivative of the objective by the prediction.

    Args:
        head: The user's loss, of the whole batch.
        output: Of the model, for some rows of the prediction.
        rows: Which ones.
    """
    point = head.prediction.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(head.loss(point), point, create_graph=True)
    if head.kind == "mse":
        (second,) = torch.autograd.grad(slope.sum(), point)
        weights = second[rows] / 2
        _require_equal(weights)
        return nn.MSELoss(), output - (slope / second).detach()[rows], weights.sum()
    if isinstance(head, CrossEntropy) and head.kind == "cross_entropy" and point.dim() == 2:
        weights = head.row_weights()
        _require_equal(weights)
        labels = (point.softmax(1) - slope / weights[:, None]).detach()[rows]
        if bool((labels.amax(1) < 1 - _TOLERANCE).any()):
            raise NotMeasured("the labels are smoothed or uncertain, which BackPACK does not know")
        return nn.CrossEntropyLoss(), labels.argmax(1), weights[rows].sum()
    raise NotMeasured(f"BackPACK has no second derivative of the loss ({head.kind}) on predictions of this form")


def _require_equal(weights: Tensor) -> None:
    if bool((weights - weights.mean()).abs().max() > _TOLERANCE * weights.mean().abs()):
        raise NotMeasured("the samples or classes have weights of their own in the loss, which BackPACK does not know")
