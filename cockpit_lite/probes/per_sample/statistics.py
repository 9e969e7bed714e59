"""What one tracked step says about its samples."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class PerSampleStatistics:
    """Squared norms and inner products of the contributions c_n, by parameter.

    c_n is the part of the gradient of the user's loss that flows through sample n: the contributions sum to the gradient.

    Attributes:
        batch_size: Number of samples N.
        squared_norms: Parameter name -> squared norms of c_1 ... c_N, shape (N,).
        products: Parameter name -> inner products with the direction, shape (N,). Empty if none was asked for.
        not_covered: Parameter name -> reason. A parameter is either here or above, never in both.
        conditional: Parameter name -> what its numbers are conditional on.
    """

    batch_size: int = 0
    squared_norms: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Tensor] = field(default_factory=dict)
    not_covered: dict[str, str] = field(default_factory=dict)
    conditional: dict[str, str] = field(default_factory=dict)

    def unscale(self, scale: Tensor) -> None:
        """Divide by what a gradient scaler multiplied the loss with; the direction was scaled, too."""
        for values in (self.squared_norms, self.products):
            values.update({name: value / scale**2 for name, value in values.items()})
