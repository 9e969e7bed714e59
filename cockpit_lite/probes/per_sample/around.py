"""The calls around a parameter, for parameters that the calls of their own module do not cover.

A table of relative positions is looked up once for all samples, a weight is read by the parent, a window knows no sample: there
the samples cannot be told apart in the call of the module itself. They can in a call around it that has the samples and contains
every use of the parameter: the smallest that will do is taken, up to the whole model.

To have them, the probe remembers every call of the first step it watches, and afterwards only those that were of use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from cockpit_lite.probes.per_sample.calls import Call


@dataclass
class Learned:
    """What holds from step to step.

    Attributes:
        modules: Ids of the modules whose calls were of use; ``None``: that is not known, all are to be remembered.
        hopeless: (parameter name, train mode) -> reason, for parameters that nothing covered.
        changed: Whether other calls are to be remembered than before; for the reader to take back.
    """

    modules: set[int] | None = None
    hopeless: dict[tuple[str, bool], str] = field(default_factory=dict)
    changed: bool = True

    def wants(self, module: nn.Module) -> bool:
        """Whether to remember a call of a module that owns no parameters itself."""
        return bool(module._modules) and (self.modules is None or id(module) in self.modules)

    def learn(self, used: set[int], failed: dict[tuple[str, bool], str]) -> None:
        """Take in what a step has shown.

        Args:
            used: Ids of the modules whose calls covered something.
            failed: As ``hopeless``.
        """
        before = self.modules
        if self.modules is None or not failed:
            self.hopeless.update(failed)
            self.modules = used | (self.modules or set())
        else:  # the call that would have covered it was perhaps not remembered: look at all once more
            self.modules = None
        self.changed |= self.modules != before


def calls_around(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Yield the calls of modules that have children, those of one module together, the smallest modules first."""
    by_module: dict[int, list[Call]] = {}
    for call in calls:
        if call.module._modules:
            by_module.setdefault(id(call.module), []).append(call)
    modules = [(sum(1 for _ in found[0].module.modules()), found) for found in by_module.values()]
    for _, found in sorted(modules, key=lambda sized: sized[0]):
        # a module that calls itself: the outer call contains what the inner one does
        yield [call for call in found if not any(contains(other, call) for other in found if other is not call)]


def contains(outer: Call, inner: Call) -> bool:
    """Whether ``inner`` is a call within ``outer``, or the same."""
    return outer.forward == inner.forward and outer.began <= inner.began and inner.ended <= outer.ended
