"""A backward pass that goes no further than the rules for per-sample gradients need it: to the outputs of modules.

The gradients of the parameters are a third to a half of a backward pass, and what a rule knows is not made of them. They serve
as a check, that the samples' contributions sum to the gradient: once that has been seen, it holds for every step with the same
calls of the same shapes, whose graph has as many nodes and leads as often to each parameter. Only then is this way taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cockpit_lite.curvature.obstacles import MOST_NODES
from cockpit_lite.probes.per_sample.probe import End, PerSampleProbe

#: So many kinds of steps are remembered.
MOST_SHORTCUTS = 64


class Shortcut:
    """What is known of the steps of one kind.

    Attributes:
        structure: Of its calls.
        told_apart: Names of the parameters whose gradients are not needed; empty while that is not known.
    """

    def __init__(self, structure: tuple[object, ...]) -> None:
        self.structure = structure
        self.told_apart: set[str] = set()
        self._lowest: list[int] | None = None

    def stops(self, ends: Sequence[End]) -> list[End]:
        """Return where the pass ends: the first time at every output, then at those that have no other one below."""
        return list(ends) if self._lowest is None else [ends[index] for index in self._lowest]

    def take(self, probe: PerSampleProbe, stops: Sequence[End], deltas: Sequence[Tensor | None]) -> None:
        """Hand over what has arrived where the pass came to its end, of which no hook was told."""
        silent = [
            index
            for index, (stop, delta) in enumerate(zip(stops, deltas, strict=True))
            if delta is not None and not probe.has_arrived(stop)
        ]
        for index in silent:
            delta = deltas[index]
            assert delta is not None
            probe.arrived(stops[index], delta)
        if self._lowest is None:
            self._lowest = silent


class Shortcuts:
    """The kinds of steps that were seen.

    Args:
        parameters: The trainable parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._known: dict[tuple[object, ...], Shortcut] = {}
        self._barred: set[tuple[object, ...]] = set()

    def of(self, probe: PerSampleProbe, outputs: Sequence[Tensor]) -> Shortcut | None:
        """Return what is known of this kind of step, before a backward begins; None if it is not to be told from others."""
        structure = probe.structure()
        if structure is None:
            return None
        kind = (structure, _uses(outputs, self._parameters))
        if kind in self._barred:
            return None
        if len(self._known) >= MOST_SHORTCUTS:
            self._known.clear()
        return self._known.setdefault(kind, Shortcut(structure))

    def forget(self, shortcut: Shortcut) -> None:
        """It does not lead to the end: never take it again."""
        for kind in [kind for kind, known in self._known.items() if known is shortcut]:
            del self._known[kind]
            self._barred.add(kind)


def _uses(outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> tuple[object, ...]:
    """Return how often the graph leads to each parameter, and how many nodes it has."""
    uses: Counter[int] = Counter()
    pending: list[Any] = [output.grad_fn for output in outputs]
    seen = set(pending)
    while pending and len(seen) < MOST_NODES:
        for following, _ in pending.pop().next_functions:
            if following is None:
                continue
            if not following.next_functions:
                uses[id(getattr(following, "variable", None))] += 1
            elif following not in seen:
                seen.add(following)
                pending.append(following)
    return (len(seen), *(uses[id(parameter)] for parameter in parameters.values()))
