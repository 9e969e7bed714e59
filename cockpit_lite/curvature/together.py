"""Together: products of one batch that several processes hold the parts of, from the products of each with its own part.

Derivatives are linear in the loss: with the objective L = (1/P) sum_p L_p of P processes, whose gradients are averaged, a product
with its Hessian or Gauss-Newton matrix is the mean of theirs with the same vector. Everything that follows from products,
stopping included, is then computed from the same numbers everywhere, so all ask for the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class Together(Protocol):
    """What a process and the others make together.

    Attributes:
        size: How many they are.
    """

    size: int

    def everywhere(self, work: Callable[[], Result], about: Sequence[Tensor] = (), place: str = "") -> Result:
        """Return what ``work`` returns here, if it succeeds in all processes.

        Args:
            work: What each does by itself.
            about: With what: all must have the same.
            place: And what it is.

        Raises:
            NotMeasured: in all of them, if it fails in one, or they are not at the same.
        """

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over the processes; directly after :meth:`everywhere` has returned.

        Raises:
            NotMeasured: if they have parted.
        """
