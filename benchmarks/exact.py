"""What instruments should show: every quantity from its definition, in float64, from the gradients of single samples.

Written apart from both tools that are compared with it, and slow: the gradient of every sample is there as a row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

#: Samples whose gradients are there at a time.
CHUNK = 16


@dataclass(frozen=True)
class Exact:
    """One batch at one point of the training; N samples with gradients g_n, D elements, everything in float64.

    Attributes:
        loss: Mean cross-entropy.
        losses: By sample, shape (N,).
        weights: theta, shape (D,).
        gradient: G, shape (D,).
        squared_norms: ||g_n||^2, shape (N,).
        products: g_n'G, shape (N,).
        squares: Mean over the samples of g_nj^2, shape (D,).
        slopes: d'g_n along the direction that was asked for, shape (N,).
        curvature: Diagonal of the Gauss-Newton matrix, shape (D,); for a net of piecewise linear layers that of the Hessian, too.
        small: Share of the elements g_nj within each of the bounds that were asked for.
        sizes: Elements of every parameter, in order.
    """

    loss: float
    losses: Tensor
    weights: Tensor
    gradient: Tensor
    squared_norms: Tensor
    products: Tensor
    squares: Tensor
    slopes: Tensor
    curvature: Tensor
    small: list[float]
    sizes: list[int]

    @property
    def variance(self) -> Tensor:
        """Variance of every element over the samples (1/N)."""
        return self.squares - self.gradient.square()


def exact(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    direction: Tensor | None = None,
    bounds: Sequence[float] = (),
    curvature: bool = True,
) -> Exact:
    """Return everything about one batch at the weights of ``model``, which is left alone; mean cross-entropy.

    Args:
        model: Puts out the logits; piecewise linear, without dropout or batch norm.
        inputs: Of the batch.
        targets: Classes.
        direction: Shape (D,); left out: zero.
        bounds: Magnitudes, for ``small``.
        curvature: Whether to look at it, too, which takes longest; else it is NaN.
    """
    clone = copy.deepcopy(model).double()
    parameters = {name: parameter.detach() for name, parameter in clone.named_parameters()}
    inputs = inputs.double()
    logits = functional_call(clone, parameters, (inputs,))
    losses = F.cross_entropy(logits, targets, reduction="none")
    weights = _flat(parameters)
    direction = torch.zeros_like(weights) if direction is None else direction.double()
    gradient = _flat(_mean_gradient(clone, parameters, inputs, targets))
    norms, products, slopes = [], [], []
    squares = torch.zeros_like(weights)
    counts = [0] * len(bounds)
    for rows in _sample_gradients(clone, parameters, inputs, targets):
        norms.append(rows.square().sum(1))
        products.append(rows @ gradient)
        slopes.append(rows @ direction)
        squares += rows.square().sum(0) / len(inputs)
        counts = [count + int((rows.abs() < bound).sum()) for count, bound in zip(counts, bounds, strict=True)]
    return Exact(
        loss=float(losses.mean()),
        losses=losses,
        weights=weights,
        gradient=gradient,
        squared_norms=torch.cat(norms),
        products=torch.cat(products),
        squares=squares,
        slopes=torch.cat(slopes),
        curvature=_gauss_newton_diagonal(clone, parameters, inputs) if curvature else torch.full_like(weights, torch.nan),
        small=[count / weights.numel() / len(inputs) for count in counts],
        sizes=[parameter.numel() for parameter in parameters.values()],
    )


def extreme_eigenvalues(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the largest eigenvalue of the Hessian of the mean cross-entropy, and the one of largest magnitude."""
    clone = copy.deepcopy(model).double()
    parameters = list(clone.parameters())
    found = torch.autograd.grad(F.cross_entropy(clone(inputs.double()), targets), parameters, create_graph=True)
    gradient = torch.cat([part.reshape(-1) for part in found])

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(vector.reshape(-1).copy())
        products = torch.autograd.grad(gradient @ direction, parameters, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in products]).numpy()

    size = len(gradient)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    ends = eigsh(operator, k=2, which="BE", tol=1e-6, v0=gradient.detach().numpy(), return_eigenvectors=False)
    return float(max(ends)), float(max(ends, key=abs))


def maximum_likelihood_alpha(start: Exact, end: Exact, distance: float) -> float:
    """Return where a step landed on the most likely parabola through loss and slope at both ends; see the instrument."""
    design = np.array([[1, 0, 0], [1, distance, distance**2], [0, 1, 0], [0, 1, 2 * distance]])
    slopes = [point.slopes / distance for point in (start, end)]
    seen = np.array([start.loss, end.loss, *(float(slope.mean()) for slope in slopes)])
    variances = np.array([*(float(point.losses.var()) for point in (start, end)), *(float(slope.var()) for slope in slopes)])
    weighted = design / variances[:, None]
    parabola = np.linalg.solve(design.T @ weighted, weighted.T @ seen)
    if parabola[2] <= 0:
        return -1.0
    return float(2 * distance / (-parabola[1] / parabola[2]) - 1)


def _flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values.values()])


def _mean_gradient(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return grad(lambda values: F.cross_entropy(functional_call(model, values, (inputs,)), targets))(parameters)


def _sample_gradients(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Yield the rows g_n, shape (chunk, D)."""

    def loss(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, values, (sample[None],)), target[None])

    rows = vmap(grad(loss), in_dims=(None, 0, 0))
    for some, their_targets in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
        found = rows(parameters, some, their_targets)
        yield torch.cat([value.flatten(1) for value in found.values()], 1)


def _gauss_newton_diagonal(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the diagonal of 1/N sum J_n' (diag p - p p') J_n, from one vector-Jacobian product a class and sample."""

    def squared_rows(sample: Tensor) -> dict[str, Tensor]:
        logits, pull_back = vjp(lambda values: functional_call(model, values, (sample[None],))[0], parameters)
        p = logits.softmax(0)
        factors = (torch.diag(p) - torch.outer(p, p)) / p.sqrt()  # columns sqrt(p_c) (e_c - p)
        rows = vmap(lambda factor: pull_back(factor)[0])(factors.T)
        return {name: row.square().sum(0) for name, row in rows.items()}

    total = torch.zeros_like(_flat(parameters))
    for some in inputs.split(CHUNK // 4):
        found = vmap(squared_rows)(some)
        total += _flat({name: value.sum(0) for name, value in found.items()})
    return total / len(inputs)
