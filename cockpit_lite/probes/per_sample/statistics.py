"""What one tracked step says about its samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample.drawing import Drawing, Drawn


@dataclass
class PerSampleStatistics:
    """Squared norms, inner products and sums of squares of the contributions c_n, by parameter.

    c_n is the part of the gradient of the user's loss that flows through sample n: the contributions sum to the gradient.

    Attributes:
        batch_size: Number of samples N.
        squared_norms: Parameter name -> squared norms of c_1 ... c_N, shape (N,).
        products: Parameter name -> inner products with the direction, shape (N,). Empty if none was asked for.
        along: Name of a further direction -> parameter name -> inner products with it, shape (N,), or of as many samples as were
            said to be enough.
        sum_of_squares: Parameter name -> sum over n of c_n squared element by element, shape of the parameter, not divided by
            anything. Empty if it was not asked for.
        elements: Parameter name -> the elements that were drawn of it, for those of which some were.
        drawing: What was to be drawn; ``None``: nothing.
        not_covered: Parameter name -> reason. A parameter is either here or above, never in both.
        conditional: Parameter name -> what its numbers are conditional on.
        note: What else a reader should know of all of them.
        to_check: Parameter name -> inner products with :func:`~cockpit_lite.probes.per_sample.checks.check_direction`, (N,),
            where nobody has compared them with those of the gradient yet: no process knows the one that they sum to.
        tolerance: How far their sum may then be from that of the gradient, relative to the sum of their magnitudes.
    """

    batch_size: int = 0
    squared_norms: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Tensor] = field(default_factory=dict)
    along: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    sum_of_squares: dict[str, Tensor] = field(default_factory=dict)
    elements: dict[str, Drawn] = field(default_factory=dict)
    drawing: Drawing | None = None
    not_covered: dict[str, str] = field(default_factory=dict)
    conditional: dict[str, str] = field(default_factory=dict)
    note: str = ""
    to_check: dict[str, Tensor] = field(default_factory=dict)
    tolerance: float = 0.0

    @cached_property
    def total_squared_norms(self) -> Tensor:
        """Squared norms over all parameters together, shape (N,): added up once for all who ask."""
        return _sum(self.squared_norms)

    @cached_property
    def total_products(self) -> Tensor:
        """Inner products over all parameters together, shape (N,)."""
        return _sum(self.products)

    def unscale(self, scale: Tensor) -> None:
        """Divide by what a gradient scaler multiplied the loss with; the direction was scaled, too, further ones were not."""
        for values in (self.squared_norms, self.products, self.sum_of_squares):
            values.update({name: value / scale**2 for name, value in values.items()})
        for values in (*self.along.values(), self.to_check):
            values.update({name: value / scale for name, value in values.items()})
        self.elements.update({name: drawn._replace(values=drawn.values / scale) for name, drawn in self.elements.items()})

    def arrange(self, names: Iterable[str]) -> None:
        """Put the parameters into the order of these names, whenever they were measured."""
        order = {name: position for position, name in enumerate(names)}
        for values in (self.squared_norms, self.products, self.sum_of_squares, *self.along.values()):
            items = sorted(values.items(), key=lambda item: order[item[0]])
            values.clear()
            values.update(items)

    def drop(self, name: str) -> None:
        """Forget what was measured of a parameter."""
        for values in (self.squared_norms, self.products, self.sum_of_squares, self.to_check, *self.along.values()):
            values.pop(name, None)
        self.elements.pop(name, None)


def _sum(values: dict[str, Tensor]) -> Tensor:
    parts = list(values.values())
    if not parts:
        raise NotMeasured("the samples were not compared with the gradient, or no parameter is covered")
    return parts[0] if len(parts) == 1 else torch.stack([part.to(parts[0].device) for part in parts]).sum(0)
