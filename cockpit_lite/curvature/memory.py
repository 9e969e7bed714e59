"""What the curvature engine remembers from one measurement to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class CurvatureMemory:
    """Eigenvectors of the last measurement, by what they belong to: the start of the next one.

    Nothing is kept that was not asked for: one vector of the size of the model for the largest eigenvalue.
    """

    def __init__(self) -> None:
        self._vectors: dict[tuple[str, str], Tensor] = {}
        self._shapes: dict[str, list[torch.Size]] = {}

    def recall(self, part: str, end: str, shapes: Sequence[torch.Size], like: Tensor) -> Tensor | None:
        """Return the eigenvectors as rows, or None if there are none of a model of this form.

        Args:
            part: Which parameters and which matrix.
            end: "top" or "bottom".
            shapes: Of the parameters.
            like: A vector of the device and dtype that is wanted.
        """
        vectors = self._vectors.get((part, end))
        return vectors.to(like) if vectors is not None and self._shapes[part] == list(shapes) else None

    def remember(self, part: str, end: str, shapes: Sequence[torch.Size], vectors: Tensor) -> None:
        """Keep ``vectors`` for the next time, in the place of those that were there."""
        if self._shapes.get(part) != list(shapes):
            self.forget(part)
        self._shapes[part] = list(shapes)
        self._vectors[part, end] = vectors

    def forget(self, part: str) -> None:
        """Begin anew: what was measured last was not finite."""
        self._shapes.pop(part, None)
        for key in [key for key in self._vectors if key[0] == part]:
            del self._vectors[key]
