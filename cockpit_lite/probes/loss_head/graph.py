"""Finding the heads of a loss: from its root down through everything linear.

Means, sums, scalings, masks and reshapes are taken back one node at a time: called with the derivative of the objective by what
it put out, a node returns the derivative by what it was given. Where a known function of the prediction is met, that derivative
is what the objective weights it with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.heads import (
    HALF_PRECISION_TOLERANCE,
    TOLERANCES,
    BinaryCrossEntropyWithLogits,
    CrossEntropy,
    Elementwise,
    LossHead,
    SquaredError,
    Value,
)
from cockpit_lite.probes.loss_head.nodes import (
    Edge,
    edge_of,
    inputs_of,
    is_parameter,
    operation,
    saved,
    saved_axis,
    saved_tensors,
    shape_of,
    signed,
)
from cockpit_lite.probes.loss_head.route import KEEPS, MOVES, SHIFTS, Route

#: Nodes that are linear in each of their inputs, and those that are if only one of them leads back to something.
LINEAR = (
    SHIFTS
    | KEEPS
    | frozenset(MOVES)
    | {
        "NegBackward0",
        "MulBackward1",
        "DivBackward1",
        "SumBackward0",
        "SumBackward1",
        "MeanBackward0",
        "MeanBackward1",
        "NansumBackward0",
        "WhereBackward0",
        "MaskedFillBackward0",
        "MaskedFillBackward1",
        "MaskedSelectBackward0",
        "GatherBackward0",
        "StackBackward0",
        "CatBackward0",
        "DiagonalBackward0",
        "TraceBackward0",
        "NllLossBackward0",
        "NllLoss2DBackward0",
    }
)
LINEAR_IN_ONE = frozenset({"MulBackward0", "DotBackward0"})

#: A loss of more nodes than this between its root and its heads is no usual one.
MOST_NODES = 500


class Part(NamedTuple):
    """A place where the loss stops being linear.

    Attributes:
        edge: What put it out, or one of the model's outputs.
        weights: Derivative of the objective by it.
        chosen: Whether labels chose from it what counts, so that it must be log-probabilities.
        shifted: Whether a constant was added on the way from it to the loss.
    """

    edge: Edge
    weights: Tensor
    chosen: bool = False
    shifted: bool = False


def find_loss_head(loss: Tensor, outputs: Sequence[Tensor], check: bool = True) -> LossHead:
    """Return the loss as a function of the prediction.

    Args:
        loss: The root, a scalar with its graph.
        outputs: What the model returned: where a linear loss ends, and where predictions are traced back to.
        check: Whether to compare the contributions with the value of the loss; on an accelerator that waits for it.

    Raises:
        NotMeasured: if the loss is made of several functions, or of one that is not known.
    """
    heads = find_loss_heads(loss, outputs, check)
    if len(heads) > 1:
        raise NotMeasured(f"the loss is made of several terms ({', '.join(head.kind for head in heads)})")
    if isinstance(heads[0], Value):
        raise heads[0].unknown()
    return heads[0]


def find_loss_heads(loss: Tensor, outputs: Sequence[Tensor], check: bool = True) -> list[LossHead]:
    """Return the functions that the loss is the sum of; see :func:`find_loss_head`.

    Raises:
        NotMeasured: if one of them is not known, or something else was added to them.
    """
    if loss.grad_fn is None:
        raise NotMeasured("the loss has no graph")
    if loss.dim():
        raise NotMeasured("the root of the backward pass is no scalar")
    with torch.no_grad(), without_autocast(loss):
        heads = _heads(_parts(loss, outputs), outputs)
        if check and not bool(add_up([head.terms() for head in heads], loss)):
            raise NotMeasured("a part of the loss is a constant, which belongs to no sample")
    return heads


def add_up(terms: Sequence[Tensor], loss: Tensor) -> Tensor:
    """Return whether the terms of all heads add up to the loss, as a tensor, so that nobody waits for it.

    A loss that is not finite has nothing to be compared with.
    """
    tolerance = max(TOLERANCES.get(value.dtype, HALF_PRECISION_TOLERANCE) for value in (loss, *terms))
    flat = [value.reshape(-1).double() for value in terms]
    values = flat[0] if len(flat) == 1 else torch.cat(flat)
    distance = (values.sum() - loss.detach()).abs() - tolerance * values.abs().sum()
    return (distance <= 0) | ~distance.isfinite()


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switch automatic mixed precision off: what is measured must not be rounded again."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


# From the root down ---------------------------------------------------------------------------------------------------


def _parts(loss: Tensor, outputs: Sequence[Tensor]) -> list[Part]:
    root = edge_of(loss)
    # A model that returns its loss beside its prediction: the loss is no end, whatever is still done with it.
    ends = {edge_of(output) for output in outputs if output.grad_fn is not None and output.dim()} - {root}
    parts: list[Part] = []
    pending = [Part(root, torch.ones_like(loss))]
    for _ in range(MOST_NODES):
        if not pending:
            return parts
        edge, weights, chosen, shifted = part = pending.pop()
        node, number = edge
        if is_parameter(edge):
            raise NotMeasured("the loss has a term of the parameters themselves, which belongs to no sample")
        if edge in ends or not _is_linear(node) or _takes_labels(node, ends):
            parts.append(part)
            continue
        chosen |= node.name().startswith("NllLoss")
        shifted |= node.name() in SHIFTS and None in inputs_of(node)
        for source, given in zip(inputs_of(node), _sent_back(node, number, weights), strict=True):
            if source is not None and given is not None:
                pending.append(Part(source, given, chosen, shifted))
    raise NotMeasured("the loss is made of too many operations")


def _is_linear(node: Any) -> bool:
    name, sources = node.name(), inputs_of(node)
    if name in LINEAR:
        return True
    if name == "DivBackward0":
        return sources[1] is None
    return name in LINEAR_IN_ONE and sum(source is not None for source in sources) == 1


def _takes_labels(node: Any, ends: set[Edge]) -> bool:
    """Whether the node chooses from log-probabilities by labels: then their weights need not be spread over all classes."""
    if not node.name().startswith("NllLoss"):
        return False
    source = inputs_of(node)[0]
    return source is not None and (source in ends or source[0].name() == "LogSoftmaxBackward0")


def _sent_back(node: Any, number: int, weights: Tensor) -> Sequence[Tensor | None]:
    """Return the derivative of the objective by what a node was given."""
    for name in saved_tensors(node.__class__):
        saved(node, name)  # if reading it would do something, so would calling the node
    given = [weights if index == number else None for index in range(len(node._input_metadata))]
    found = node(*given)
    return found if isinstance(found, tuple) else (found,)


# What is met ----------------------------------------------------------------------------------------------------------


def _heads(parts: Sequence[Part], outputs: Sequence[Tensor]) -> list[LossHead]:
    if not parts:
        raise NotMeasured("the loss depends on nothing")
    ends = {edge_of(output): output.detach() for output in outputs if output.grad_fn is not None and output.dim()}
    heads: list[LossHead] = []
    soft: dict[Edge, list[Part]] = {}  # log-probabilities, which the loss may use several times
    linear: dict[Edge, Tensor] = {}
    for part in parts:
        node = part.edge[0]
        name = node.name()
        if name.startswith("NllLoss"):
            soft.setdefault(inputs_of(node)[0], []).append(part)  # type: ignore[arg-type]
        elif name == "LogSoftmaxBackward0" or (part.chosen and part.edge in ends):
            soft.setdefault(part.edge, []).append(part)
        elif part.edge in ends:
            linear[part.edge] = linear[part.edge] + part.weights if part.edge in linear else part.weights
        elif name in FUNCTIONS:
            heads.append(FUNCTIONS[name](node, part.weights, outputs))
        elif name in VALUES:
            heads.append(_value(part, outputs))
        else:
            raise NotMeasured(f"the loss ends in {operation(node)}, which is not known as a function of a prediction")
    heads += [_cross_entropy(edge, found, outputs) for edge, found in soft.items()]
    for edge, weights in linear.items():
        heads.append(Elementwise("linear", ends[edge], Route(edge, outputs), weights, lambda value: value))
    _require_outputs(heads, [*ends])
    return heads


def _require_outputs(heads: Sequence[LossHead], ends: Sequence[Edge]) -> None:
    """Check that every head comes from the model's output, where there is any beside the loss: a penalty on weights does not."""
    if not ends:
        return
    known = {before for end in ends for before in _before_casts(end)}
    for head in heads:
        if head.route.position is None and not _leads_to(head.route.start, known):
            raise NotMeasured(f"the loss has a term ({head.kind}) that does not come from the model's output")


def _before_casts(end: Edge) -> Iterator[Edge]:
    """Yield an output and what it was cast from: some trainers hand out float32 where the loss had half of that."""
    edge: Edge | None = end
    while edge is not None:
        yield edge
        edge = inputs_of(edge[0])[0] if edge[0].name() == "ToCopyBackward0" else None


def _leads_to(start: Edge, ends: set[Edge]) -> bool:
    pending, seen = [start], {start}
    while pending:
        edge = pending.pop()
        if edge in ends:
            return True
        for source in inputs_of(edge[0]):
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
    return False


def _cross_entropy(edge: Edge, parts: Sequence[Part], outputs: Sequence[Tensor]) -> LossHead:
    node, _ = edge
    choices = [part for part in parts if part.edge != edge]
    logits = node.name() == "LogSoftmaxBackward0" and all(edge != edge_of(output) for output in outputs)
    dense: Tensor | None = None
    for part in parts:
        if part.edge == edge:
            dense = part.weights if dense is None else dense + part.weights
    for part in choices[1:]:  # of several choices only one is kept as labels
        (given,) = _sent_back(part.edge[0], 0, part.weights)[:1]
        dense = given if dense is None or given is None else dense + given
    labels = ignored = label_weights = None
    normalised = Route(edge, outputs).tensor(parts[0].weights.dtype)
    axis = 1 if len(shape_of(edge)) > 1 else 0
    if choices:
        choice = choices[0].edge[0]
        labels, ignored, label_weights = _labels(choice, choices[0].weights)
        normalised = saved(choice, "self")
    if node.name() == "LogSoftmaxBackward0":
        axis, normalised = saved_axis(node), saved(node, "result")
    assert normalised is not None
    source = inputs_of(node)[0] if logits else edge
    if source is None or is_parameter(source):
        raise NotMeasured("the loss has a term of the parameters themselves, which belongs to no sample")
    route = Route(source, outputs)
    prediction = route.tensor(normalised.dtype)
    if prediction is None:
        prediction = normalised  # the softmax takes a constant by row off, so it makes the same of its own result
    # A divergence differs from a cross entropy by a constant, of which the graph shows only that it is there.
    divergence = not choices and any(part.shifted and not part.chosen for part in parts)
    return CrossEntropy(prediction, route, axis, normalised, labels, ignored, label_weights, dense, logits, divergence)


def _labels(node: Any, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a node that chooses from log-probabilities chooses, where it does not, and the weights of -log p."""
    target, class_weights = saved(node, "target"), saved(node, "weight")
    ignored = target == signed(saved(node, "ignore_index"))
    labels = target.masked_fill(ignored, 0)
    if saved(node, "reduction") == 1:
        weights = weights / saved(node, "total_weight")
    by_row = weights.expand(labels.shape) if class_weights is None else weights * class_weights[labels]
    return labels, ignored, by_row.masked_fill(ignored, 0)


def _reduced(node: Any, weights: Tensor, shape: torch.Size) -> Tensor:
    """Return what the objective multiplies every element of a loss function with, from its own reduction and its weight."""
    reduction = saved(node, "reduction")
    return weights / shape.numel() if reduction == 1 else weights


def _operands(node: Any, symmetric: bool) -> tuple[Edge, Tensor, Tensor]:
    """Return where the prediction comes from, the prediction, and the target.

    Raises:
        NotMeasured: if the target comes from the model, too.
    """
    prediction, target = saved(node, "self"), saved(node, "target")
    sources = inputs_of(node)
    first, second = sources[0], sources[1] if len(sources) > 1 else None
    if first is None and symmetric and second is not None:  # the two were given the other way round
        first, second, prediction, target = second, None, target, prediction
    if first is None or second is not None:
        raise NotMeasured(f"the target of the loss ({operation(node)}) is made by the model, too")
    if is_parameter(first):
        raise NotMeasured("the loss has a term of the parameters themselves, which belongs to no sample")
    return first, prediction, target


def _mse(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source, prediction, target = _operands(node, True)
    return SquaredError(prediction, Route(source, outputs), _reduced(node, weights, prediction.shape), target)


def _smooth_l1(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source, prediction, target = _operands(node, True)
    beta = saved(node, "beta")

    def function(value: Tensor) -> Tensor:
        return F.smooth_l1_loss(value, target, reduction="none", beta=beta)

    return Elementwise("smooth_l1", prediction, Route(source, outputs), _reduced(node, weights, prediction.shape), function)


def _huber(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source, prediction, target = _operands(node, True)
    delta = saved(node, "delta")

    def function(value: Tensor) -> Tensor:
        return F.huber_loss(value, target, reduction="none", delta=delta)

    return Elementwise("huber", prediction, Route(source, outputs), _reduced(node, weights, prediction.shape), function)


def _soft_margin(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source, prediction, target = _operands(node, False)
    weights = _reduced(node, weights, prediction.shape)

    def function(value: Tensor) -> Tensor:
        return F.softplus(-target * value)

    return Elementwise("soft_margin", prediction, Route(source, outputs), weights, function)


def _bce(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source, prediction, target = _operands(node, False)
    weight = saved(node, "weight")

    def function(value: Tensor) -> Tensor:
        return F.binary_cross_entropy(value, target, weight, reduction="none")

    weights = _reduced(node, weights, prediction.shape)
    return Elementwise("binary_cross_entropy", prediction, Route(source, outputs), weights, function)


def _bce_with_logits(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source, prediction, target = _operands(node, False)
    weights = _reduced(node, weights, prediction.shape)
    route = Route(source, outputs)
    return BinaryCrossEntropyWithLogits(prediction, route, weights, target, saved(node, "weight"), saved(node, "pos_weight"))


def _power(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    (source,) = [source for source in inputs_of(node) if source is not None][:1]
    prediction, exponent = saved(node, "self"), saved(node, "exponent")
    if is_parameter(source):
        raise NotMeasured("the loss has a term of the parameters themselves, which belongs to no sample")
    route = Route(source, outputs)
    if exponent == 2:
        return SquaredError(prediction, route, weights, 0.0)
    return Elementwise(f"pow({exponent:g})", prediction, route, weights, lambda value: value**exponent)


def _absolute(node: Any, weights: Tensor, outputs: Sequence[Tensor]) -> LossHead:
    source = inputs_of(node)[0]
    if source is None or is_parameter(source):
        raise NotMeasured("the loss has a term of the parameters themselves, which belongs to no sample")
    return Elementwise("l1", saved(node, "self"), Route(source, outputs), weights, torch.abs)


#: Loss functions that are known as such: operation -> how to make the head.
FUNCTIONS: Mapping[str, Callable[[Any, Tensor, Sequence[Tensor]], LossHead]] = {
    "MseLossBackward0": _mse,
    "SmoothL1LossBackward0": _smooth_l1,
    "HuberLossBackward0": _huber,
    "SoftMarginLossBackward0": _soft_margin,
    "BinaryCrossEntropyBackward0": _bce,
    "BinaryCrossEntropyWithLogitsBackward0": _bce_with_logits,
    "PowBackward0": _power,
    "AbsBackward0": _absolute,
}


def _result(node: Any) -> Tensor:
    return saved(node, "result")


#: Operations that put out something whose value can be told: operation -> value.
VALUES: Mapping[str, Callable[[Any], Tensor]] = {
    "ExpBackward0": _result,
    "SqrtBackward0": _result,
    "RsqrtBackward0": _result,
    "SigmoidBackward0": _result,
    "TanhBackward0": _result,
    "ReluBackward0": _result,
    "SoftmaxBackward0": _result,
    "LogsumexpBackward0": _result,
    "LinalgVectorNormBackward0": _result,
    "LogBackward0": lambda node: saved(node, "self").log(),
    "Log1PBackward0": lambda node: saved(node, "self").log1p(),
    "SoftplusBackward0": lambda node: F.softplus(saved(node, "self"), saved(node, "beta"), saved(node, "threshold")),
    "LogSigmoidBackward0": lambda node: F.logsigmoid(saved(node, "self")),
    "ClampMinBackward0": lambda node: saved(node, "self").clamp(min=saved(node, "min")),
    "MulBackward0": lambda node: saved(node, "self") * saved(node, "other"),
    "DivBackward0": lambda node: saved(node, "self") / saved(node, "other"),
}

#: Those of them that do not act element by element on one input: whose rows are whose is told from what they put out.
_NOT_ELEMENTWISE = frozenset(
    {"SoftmaxBackward0", "LogsumexpBackward0", "LinalgVectorNormBackward0", "MulBackward0", "DivBackward0"}
)


def _value(part: Part, outputs: Sequence[Tensor]) -> LossHead:
    node, _ = part.edge
    value = VALUES[node.name()](node)
    sources = [source for source in inputs_of(node) if source is not None]
    if all(map(is_parameter, sources)):
        raise NotMeasured("the loss has a term of the parameters themselves, which belongs to no sample")
    route = Route(part.edge if node.name() in _NOT_ELEMENTWISE else sources[0], outputs)
    return Value(operation(node).lower(), value, route, part.weights)
