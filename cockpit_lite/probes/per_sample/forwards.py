"""The forwards of a step: outermost calls, and what each call within them says about the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from cockpit_lite.probes.per_sample.calls import Call
from cockpit_lite.probes.per_sample.owners import FLAT, Layout, Passes, by_shape
from cockpit_lite.probes.per_sample.rules import rule_of

#: Correlation with the samples' weights under which a batch normalised model's rows are not taken for samples.
AGREEMENT = 0.5

#: Where in the graph a tensor was made: a node and which of its outputs; without a class of its own unless it needs one.
Edge = tuple[Any, int] | GradientEdge

#: An output of a forward, or where its gradient arrives; its shape; the axis that is taken to hold the samples.
Anchor = tuple[Tensor | GradientEdge, torch.Size, int]

#: Batch size, axis of the samples, and the layout of every call (None: by shape).
Answer = tuple[int | None, int, list[Layout | None]]


@dataclass(eq=False)
class Forward:
    """One outermost call: of the model, or of a module of it that was called on its own.

    Attributes:
        number: Counts the forwards of the step.
        data: Shape of the first tensor it was given; ``None`` if there was none.
        outputs: The tensors it returned that lead back to parameters.
        whole: The outermost call itself.
        axis: The axis of its input and output that holds the samples.
        calls: The calls in it of modules that own trainable parameters.
        edges: For each call and each of its outputs, where its gradient arrives.
        training: Whether the outermost module was in train mode.
        batch_statistics: Whether a batch normalisation in it used the statistics of the batch.
        recomputes: Whether something in it is thrown away and recomputed in the backward pass.
        batch_size: Number of samples; ``None`` if it is not known.
        surveyed: Whether the calls have their layout.
        abandoned: Whether it was given up because no backward pass came.
    """

    number: int
    data: torch.Size | None = None
    outputs: list[Tensor] = field(default_factory=list)
    whole: Call | None = None
    axis: int = 0
    calls: list[Call] = field(default_factory=list)
    edges: list[list[Edge | None]] = field(default_factory=list)
    training: bool = False
    batch_statistics: bool = False
    recomputes: bool = False
    batch_size: int | None = None
    surveyed: bool = False
    abandoned: bool = False

    def see(self, data: Tensor | None) -> None:
        """Note the shape of what the model was given."""
        self.data = None if data is None else data.shape

    def structure(self) -> tuple[object, ...]:
        """Return what two forwards have in common that share out their rows alike."""
        calls = tuple([(id(call.module), *[tensor.shape for tensor in call.inputs], *call.shapes) for call in self.calls])
        return (self.data, self.batch_statistics, self.recomputes, tuple(output.shape for output in self.outputs), calls)

    def release(self) -> None:
        """Let go of the user's graph."""
        self.outputs, self.edges = [], []

    def abandon(self) -> None:
        """Let go of everything: validation without ``no_grad`` would otherwise pile up the graphs of all its batches."""
        self.release()
        self.calls, self.whole = [], None
        self.surveyed = self.abandoned = True

    def survey(self, known: dict[tuple[object, ...], Answer], ask: bool, in_shards: bool = False) -> None:
        """Give every call its layout: from ``known`` structures, from the graph, or if that cannot be asked from the shapes.

        Args:
            known: Answers of the graph that hold for every forward of the same structure; added to.
            ask: Whether the graph may be asked: that takes passes over it.
            in_shards: Whether the parameters are sharded, so that a pass of ours would have all processes exchange them.
        """
        self.surveyed = True
        if in_shards:
            self._by_shape_without_doubt()
            return
        structure = self.structure()
        if structure in known:
            self.batch_size, self.axis, layouts = known[structure]
        else:
            # recomputing might change the model's state, e.g. running statistics, once more
            ask = ask and not self.recomputes
            found = self._ask() if ask else self._by_shape()
            layouts = [
                by_shape(call, self.batch_size, call_axes(call.module, call.outputs[0]))
                if layout is None and self.batch_size
                else layout
                for call, layout in zip(self.calls, found, strict=True)
            ]
            if ask and all(layout is None or layout.regular for layout in layouts):
                known[structure] = (self.batch_size, self.axis, layouts)
        for call, layout in zip(self.calls, layouts, strict=True):
            call.layout = layout

    def _ask(self) -> list[Layout | None]:
        best: list[Layout | None] | None = None
        for axis in self._batch_axes():
            assert self.data is not None
            batch_size = self.data[axis]
            layouts = self._layouts(batch_size, axis)
            if layouts is None:
                continue
            if best is None or _failures(layouts) < _failures(best):
                best, self.batch_size, self.axis = layouts, batch_size, axis
            if not _failures(best):
                return best
        return self._by_shape() if best is None else best

    def _by_shape(self) -> list[Layout | None]:
        if self.data is not None:
            self.batch_size = self.data[0]
        return [None] * len(self.calls)

    def _by_shape_without_doubt(self) -> None:
        """Trust the shapes only where they fit in one way: the first axis is that of the samples, in the model and in calls."""
        self._by_shape()
        doubt = "the model's input has no tensor" if self.batch_size is None else ""
        if self.data is not None and self.batch_size in self.data[1:]:
            doubt = (
                "another axis of the model's input is as long as the batch, and sharded parameters leave only the shapes to tell"
            )
        elif len(self._batch_axes()) > 1:
            doubt = "the first axis of the model's input may be time, and sharded parameters leave only the shapes to tell"
        for call in self.calls:
            axes = call_axes(call.module, call.outputs[0])
            call.layout = Layout(reason=doubt) if doubt else by_shape(call, self.batch_size or 0, axes)
            if call.layout.owners is not None:  # how many rows of a sample are in which order
                call.layout = Layout(
                    reason="several rows a sample, and sharded parameters leave only the shapes to tell them apart"
                )

    def _batch_axes(self) -> list[int]:
        """Return the axes of the model's input that may hold the samples, the likeliest first."""
        if self.data is None:
            return []
        time_first = any(
            getattr(call.module, "batch_first", True) is False
            and call.inputs
            and call.inputs[0].dim() >= 2
            and call.inputs[0].shape[:2] == self.data[:2]
            for call in self.calls
        )
        return [0, 1] if time_first else [0]

    def _layouts(self, batch_size: int, axis: int) -> list[Layout | None] | None:
        """Ask the graph; None if it cannot be asked."""
        anchors: list[Anchor] = []
        like = None
        with torch.enable_grad():
            for output in self.outputs:
                if output.dim() and output.shape[0] == batch_size:
                    anchors.append((output, output.shape, 0))
                elif axis == 1 and output.dim() > 1 and output.shape[1] == batch_size:
                    anchors.append((output, output.shape, 1))
                elif output.dim() and output.shape[0] and output.shape[0] % batch_size == 0:
                    split = output.unflatten(0, (batch_size, -1))
                    anchors.append((split, split.shape, 0))
                else:
                    continue
                like = output
        if not anchors and any(output.dim() for output in self.outputs):
            return None
        if not anchors:  # the model returns its own loss: the last module that carries the batch stands for its output
            for call, own in zip(reversed(self.calls), reversed(self.edges), strict=True):
                if own and own[0] is not None and call.outputs[0].shape[:1] == (batch_size,):
                    anchors, like = [(_gradient_edge(own[0]), call.outputs[0].shape, 0)], call.outputs[0]
                    break
        if not anchors or like is None or not any(edge is not None for outputs in self.edges for edge in outputs):
            return None
        layouts = self._layouts_from(anchors, like)
        if len(anchors) > 1 and layouts is not None and _failures(layouts):
            # Similarities of all samples with all others mix them, and are made from outputs that do not.
            alone = [self._layouts_from([anchor], like) or [] for anchor in anchors]
            apart = {at for found in alone for at, layout in enumerate(found) if layout is not None and not layout.reason}
            mixing = [
                any(at in apart and layout is not None and layout.reason for at, layout in enumerate(found)) for found in alone
            ]
            unmixed = [anchor for anchor, mixes in zip(anchors, mixing, strict=True) if not mixes]
            better = self._layouts_from(unmixed, like) if 0 < len(unmixed) < len(anchors) else None
            if better is not None:
                layouts = [layout if found is None else found for layout, found in zip(layouts, better, strict=True)]
        return layouts

    def _layouts_from(self, anchors: Sequence[Anchor], like: Tensor) -> list[Layout | None] | None:
        """Ask the graph behind these outputs; None if it cannot be asked."""
        edges = [_gradient_edge(edge) for outputs in self.edges for edge in outputs if edge is not None]
        kinds = {like.dtype, *(output.dtype for call in self.calls for output in call.outputs if output.is_floating_point())}
        try:
            passes = Passes(anchors, edges, like, max(kinds, key=lambda kind: torch.finfo(kind).eps))
        except RuntimeError:  # the graph does not allow it, e.g. with re-entrant activation checkpointing
            return None
        layouts: list[Layout | None] = []
        position = 0
        for call, own in zip(self.calls, self.edges, strict=True):
            layout = None
            for number, edge in enumerate(own):
                if edge is None:
                    continue
                if layout is None:
                    layout = self._layout(passes, position, call, number)
                position += 1
            layouts.append(layout)
        return layouts

    def _layout(self, passes: Passes, position: int, call: Call, number: int) -> Layout | None:
        axes = call_axes(call.module, call.outputs[number])
        if number and isinstance(call.module, nn.RNNBase):  # final states: (layers, samples, features)
            axes = (call.outputs[number].dim() - 2,)
        if self.batch_statistics:
            agreement = passes.agreement(position)
            if agreement is not None and not agreement > AGREEMENT:
                return Layout(reason="its rows do not belong to single samples")
            return None  # by shape
        return passes.layout(position, axes, trailing_axes(call.module))


def _gradient_edge(edge: Edge) -> GradientEdge:
    return edge if isinstance(edge, GradientEdge) else GradientEdge(*edge)


def _failures(layouts: Sequence[Layout | None]) -> int:
    return sum(1 for layout in layouts if layout is not None and layout.reason)


def trailing_axes(module: nn.Module) -> int:
    """Return how many last axes of the output are no leading ones."""
    rule = rule_of(module)
    axes = None if rule is None else rule.trailing_axes(module)
    return 0 if axes is None else axes[1]


def call_axes(module: nn.Module, output: Tensor) -> tuple[int, ...]:
    """Return the axes of the output on which a rule can use the samples."""
    rule = rule_of(module)
    if rule is None:
        return (0, 1)  # the generic rule finds them on either
    first = rule.batch_axis(module)
    axes = rule.trailing_axes(module)
    return (first,) if axes is None or output.dim() - axes[1] < 2 else (first, FLAT)
