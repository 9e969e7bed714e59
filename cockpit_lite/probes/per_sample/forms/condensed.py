"""What is left of a form that was measured while the backward pass was under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cockpit_lite.probes.per_sample.forms.form import Form, Measured, RankOne

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample.drawing import Drawn


class Condensed(Form):
    """Numbers of a form: what was asked for. The form may be forgotten.

    Args:
        form: The form.
        along: The direction ``left right'`` that it is checked along, if it is not checked along one of the others.
        squares: Whether the sum of squares is wanted.
        directions: Name -> direction of the inner products that are wanted.
        drawn: The elements that were drawn of it, if any.
        some: How many samples are enough along directions that have a name, at least; all if left out.
    """

    def __init__(
        self,
        form: Form,
        along: RankOne | None,
        squares: bool,
        directions: Mapping[str, Tensor] | None = None,
        drawn: Drawn | None = None,
        some: int | None = None,
    ) -> None:
        self.drawn, self.batch_size, self.shape = drawn, form.batch_size, form.shape
        directions = directions or {}
        measured = form.measure_towards(directions, along, squares, some)
        self._products = dict(zip(directions, measured.products, strict=True))
        self._measured = measured._replace(products=())

    def recalled(self, directions: Sequence[str] = (), along: bool = False, squares: bool = False) -> Measured:
        """Return what was measured; the directions are named."""
        known = self._measured
        missing = (along and known.along is None) or (squares and known.squares is None)
        if missing or not self._products.keys() >= set(directions):
            raise ValueError("this was not kept")
        return self._measured._replace(products=tuple(self._products[name] for name in directions))
