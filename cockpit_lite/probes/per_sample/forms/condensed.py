"""What is left of a form that was measured while the backward pass was under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from cockpit_lite.probes.per_sample.forms.form import Form, Measured


class Condensed(Form):
    """Numbers of a form: what was asked for, and the inner product by which it is checked. The form may be forgotten.

    Args:
        form: The form.
        left: One side of the direction that it is checked along.
        right: The other side.
        squares: Whether the sum of squares is wanted.
        directions: Name -> direction of the inner products that are wanted.
    """

    def __init__(
        self, form: Form, left: Tensor, right: Tensor, squares: bool, directions: Mapping[str, Tensor] | None = None
    ) -> None:
        self.batch_size, self.shape = form.batch_size, form.shape
        directions = directions or {}
        measured = form.measure(list(directions.values()), (left, right), squares)
        self._products = dict(zip(directions, measured.products, strict=True))
        self._measured = measured._replace(products=())

    def recalled(self, directions: Sequence[str] = (), squares: bool = False) -> Measured:
        """Return what was measured; the directions are named."""
        if not self._products.keys() >= set(directions) or (squares and self._measured.squares is None):
            raise ValueError("this was not kept")
        return self._measured._replace(products=tuple(self._products[name] for name in directions))
