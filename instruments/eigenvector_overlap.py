"""The sharpest directions: the largest eigenvalues, whether their eigenvectors stay, and how much of the gradient lies in them.

    top_eigenvalues          = lambda_1 >= ... >= lambda_k of the Hessian        an array
    eigenvector_overlap      = 1/k ||V_now V_last'||_F^2       0: other directions than last time, 1: the same
    gradient_in_top_subspace = ||V_now G||^2 / ||G||^2         0: none of it, 1: all of it

V holds the k top eigenvectors as rows, now and at the last measurement; G is the mini-batch gradient. For random subspaces of D
dimensions both shares are about k/D, practically 0.

The top subspace of a trained classifier changes slowly (an overlap well above 0.5 from one measurement to the next) and holds
much of the gradient, although a step along it gains little: it is where training oscillates. An overlap that stays near 0 says
that the sharpest directions are those of each mini-batch, not of the data: they, and the largest eigenvalue with them, are noise,
which a larger batch cures. The overlap is over the steps between two measurements, so compare it at the same schedule.

Estimates: each Ritz vector has a residual, of which the largest is given; the shares move by about its square over the gap
between the eigenvalues. Two eigenvalues that trade places change neither share; one that enters the top k from below costs 1/k.

Source: G. Gur-Ari, D. Roberts, E. Dyer, Gradient Descent Happens in a Tiny Subspace, 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings
from cockpit_lite.step import Step


def subspace_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared cosine between two subspaces with orthonormal rows, of the dimension of the smaller one."""
    return (first @ second.T).square().sum() / min(len(first), len(second))


def share_in_subspace(vector: Tensor, basis: Tensor) -> Tensor:
    """Return the share of the squared norm of ``vector`` that lies in the span of the orthonormal rows of ``basis``."""
    return (basis @ vector).square().sum() / vector.square().sum()


class EigenvectorOverlap(Instrument):
    """Writes ``top_eigenvalues``, ``eigenvector_overlap`` and ``gradient_in_top_subspace``.

    Keeps ``count`` vectors of the size of the model between measurements.

    Args:
        count: k, at least 1. Every eigenvector but the first costs about one Hessian-vector product more.
        tolerance: Stop when the estimated error of each eigenvalue is below this share of it.
        max_products: Spend no more products than this on the search that it shares with the largest eigenvalue.
    """

    name = "eigenvector_overlap"
    needs = (CURVATURE,)
    readings = ("top_eigenvalues", "eigenvector_overlap", "gradient_in_top_subspace")
    preset = "full"

    def __init__(self, count: int = 3, tolerance: float = 5e-2, max_products: int = 8):
        if count < 1:
            raise SetupError(f"EigenvectorOverlap(count={count}): at least 1 is needed.")
        if not tolerance > 0:
            raise SetupError(f"EigenvectorOverlap(tolerance={tolerance}): must be above 0.")
        if max_products < count + 1:
            raise SetupError(f"EigenvectorOverlap(max_products={max_products}): at least {count + 1} are needed.")
        self.count = count
        self.tolerance = tolerance
        self.max_products = max_products

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        last = curvature.previous_eigenvectors()
        # The search is for the largest, as others ask for it; the rest it knows better each time that it begins with them.
        curvature.top_eigenpairs(tolerance=self.tolerance, max_products=self.max_products)
        pairs = curvature.top_eigenpairs(
            self.count, tolerance=self.tolerance, max_products=min(self.max_products, self.count + 1)
        )
        note = "; ".join(filter(None, [curvature.note, None if pairs.converged else "not converged"])) or None
        worst = max(pairs.residuals)
        values = torch.tensor(pairs.values)
        if len(values) < self.count:  # a shape of its own would make the series unreadable
            values = torch.cat([values, values.new_full((self.count - len(values),), torch.nan)])
        readings = {"top_eigenvalues": Reading(values, "estimated", residual=worst, note=note)}
        if last is not None:
            readings["eigenvector_overlap"] = Reading(subspace_overlap(pairs.vectors, last[: self.count]), "estimated", note=note)
        gradient = curvature.flat_gradient()
        if bool((gradient != 0).any()):
            readings["gradient_in_top_subspace"] = Reading(share_in_subspace(gradient, pairs.vectors), "estimated", note=note)
        return readings

    def __repr__(self) -> str:
        return f"EigenvectorOverlap(count={self.count}, tolerance={self.tolerance}, max_products={self.max_products})"
