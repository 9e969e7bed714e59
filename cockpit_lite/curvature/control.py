r"""Control variates for random gradients: what is known of the random numbers themselves is taken out of the estimate.

A sample with many predictions (the tokens of a text, the pixels of an image) gets random numbers u_nt for each, and all of them
meet in ‖sum_t J_nt'u_nt‖²: by chance they add up or cancel out, the more so where the J_nt are alike. How far they did, the
numbers tell themselves: of ``x_n1 = sum_t ‖u_nt‖²`` and ``x_n2 = ‖sum_t u_nt‖²``, which are squared norms for a network that does
nothing but add a bias, the expectation is known exactly, sum_t trace L_nt'' for both. So for any weights b ::

    ‖J_n'u_n‖²  -  b'(x_n - E x_n)

has the right expectation. The weights are those of a regression of the other samples' squared norms on their x, which has
nothing to do with this sample's numbers: the estimate stays unbiased.

Reference: R. Rubinstein and R. Marcus, "Efficiency of multivariate control variates in Monte Carlo simulation" (1985).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Of fewer samples a regression says too little.
FEWEST = 8

#: Added to the diagonal, relative: where every prediction is alone in its sample, the two say nearly the same.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Controls:
    """What is known of the random numbers of a draw.

    Attributes:
        values: x, one row a sample.
        expected: E x, of the same shape.
    """

    values: Tensor
    expected: Tensor

    def corrected(self, parts: Tensor) -> Tensor:
        """Return squared norms of the samples less what chance has added to them.

        Args:
            parts: A row for each parameter, a column for each sample.
        """
        scale = self.expected.mean(0).clamp_min(torch.finfo(self.expected.dtype).tiny)
        values = (self.values / scale).to(parts)
        off = ((self.values - self.expected) / scale).to(parts)
        # Sums over the other samples: those over all, less this one.
        outer = values[:, :, None] * values[:, None, :]
        sums = outer.sum(0)
        ridge = torch.diag(_RIDGE * sums.diagonal() + torch.finfo(parts.dtype).tiny)
        inverse, _ = torch.linalg.inv_ex(sums + ridge - outer)
        lever = torch.einsum("nij,nj->ni", inverse, off)  # b'off = (sum of x s)'lever
        others = (parts @ values)[:, None, :] - parts[:, :, None] * values
        return parts - torch.einsum("pni,ni->pn", others, lever)
