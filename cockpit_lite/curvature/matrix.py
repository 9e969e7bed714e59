"""The Hessian or Gauss-Newton matrix as a function of one long vector."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.source import Source

Kind = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class Matrix:
    """A diagonal block of a matrix of second derivatives.

    Attributes:
        source: Where its products come from.
        positions: Of the parameters it belongs to, in those of the source.
        kind: Which matrix.
    """

    source: Source
    positions: tuple[int, ...]
    kind: Kind = "hessian"
    parameters: Sequence[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", [self.source.parameters[position] for position in self.positions])

    @property
    def dimension(self) -> int:
        """Number of rows."""
        return sum(parameter.numel() for parameter in self.parameters)

    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the matrix times ``vectors``, one tensor a parameter."""
        product = self.source.hessian_product if self.kind == "hessian" else self.source.gauss_newton_product
        return product(vectors, self.positions)

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the matrix times one long vector."""
        return flatten(self.multiply(self.unflatten(vector)))

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Undo :func:`flatten`: cut a vector into tensors like the parameters."""
        pieces = vector.split([parameter.numel() for parameter in self.parameters])
        return [piece.view_as(parameter).to(parameter) for piece, parameter in zip(pieces, self.parameters, strict=True)]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return one vector of at least single precision, on the device of the first tensor."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return torch.cat([tensor.detach().reshape(-1).to(tensors[0].device, dtype) for tensor in tensors])
