"""Sharpness against its stability limit: how close is the learning rate to the one at which steps overshoot?

    sharpness         = largest eigenvalue of P^-1 H
    sharpness_limit   = f / e      e the learning rate
    sharpness_ratio   = sharpness / sharpness_limit
    max_learning_rate = e / sharpness_ratio,   the largest that the curvature allows
    curvature_along_preconditioned_gradient = p'Hp / p'Pp,  p = P^-1 G      (adaptive optimizers only)

H is the Hessian of the mini-batch loss, G its gradient, P the preconditioner of the optimizer in use: the identity for SGD, the
root of the second moments for Adam, AdamW, RMSprop and Adagrad. f is 2 for gradient descent, 2 (1 + b) with momentum b, 2 (1 + b)
/ (1 + 2 b) with Nesterov momentum, 38 for Adam with the usual first moment b1 = 0.9, in general 2 (1 + b1) / (1 - b1). Weight
decay that goes through the gradient adds to H. For other optimizers no limit is known.

A ratio below 1: on a quadratic of this curvature the steps are stable. Full-batch training climbs to 1 and hovers there (the edge
of stability), which is healthy; with mini-batches it tends to stay below. Far above 1 the steps overshoot along the sharpest
direction: the loss rises, or falls slowly and jumps. Far below 1 a larger learning rate is worth a try.

The sharpness is an estimate from below, with its residual; it comes from the search that ``max_eigenvalue`` shares where P is the
identity. Where it is not, it costs products of its own, and begins with what that search, if one was made on the step, says of
``P^-1 H`` in its subspace. Under ReLU the curvature in the kinks is invisible.

Sources: J. Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, 2021; J. Cohen et al.,
Adaptive Gradient Methods at the Edge of Stability, 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cockpit_lite.curvature import Curvature
from cockpit_lite.curvature.krylov import Krylov, RitzPairs, ritz_weights
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings
from cockpit_lite.probes.step_scale import StepScale, step_scale
from cockpit_lite.step import Step


def preconditioned(product: Callable[[Tensor], Tensor], root: Tensor, decay: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product with ``P^-1/2 (H + decay) P^-1/2``, which has the eigenvalues of ``P^-1 (H + decay)`` and is symmetric.

    Args:
        product: Times H.
        root: The diagonal of ``P^-1/2``.
        decay: A diagonal that is added to H.
    """

    def multiply(vector: Tensor) -> Tensor:
        scaled = root * vector
        return root * (product(scaled) + decay * scaled)

    return multiply


#: So many directions are taken from a search in the Hessian itself, where one was made on the step.
_SHARED = 3


class SharpnessLimit(Instrument):
    """Writes ``sharpness``, its limit, their ratio and the largest learning rate that the curvature allows.

    Keeps one vector of the size of the model between measurements for an adaptive optimizer, where it is the only one to search.

    Args:
        tolerance: Stop when the estimated error of the sharpness is below this share of it.
        max_products: Spend no more Hessian-vector products than this on a measurement, at least 2.
    """

    name = "sharpness_limit"
    needs = (CURVATURE,)
    readings = (
        "sharpness",
        "sharpness_limit",
        "sharpness_ratio",
        "max_learning_rate",
        "curvature_along_preconditioned_gradient",
    )
    preset = "full"

    def __init__(self, tolerance: float = 5e-2, max_products: int = 6):
        if not tolerance > 0:
            raise SetupError(f"SharpnessLimit(tolerance={tolerance}): must be above 0.")
        if max_products < 2:
            raise SetupError(f"SharpnessLimit(max_products={max_products}): at least 2 are needed.")
        self.tolerance = tolerance
        self.max_products = max_products
        self._vector: Tensor | None = None

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        scale = step_scale(step.optimizers, step.parameters, curvature.gradient)
        readings: dict[str, Reading | Tensor | float] = {}
        if scale.shift is not None and scale.inverse.keys() == curvature.parameters.keys():
            pairs = curvature.top_eigenpairs(tolerance=self.tolerance, max_products=2 * self.max_products)
            sharpness = pairs.values[0] + scale.shift
        else:
            pairs, along = self._search(curvature, scale)
            sharpness = pairs.values[0]
            if scale.adaptive and along is not None:
                readings["curvature_along_preconditioned_gradient"] = Reading(along, note=curvature.note)
        note = "; ".join(filter(None, [curvature.note, None if pairs.converged else "not converged: a lower bound"])) or None
        residual, limit = pairs.residuals[0], scale.limit
        readings["sharpness"] = Reading(sharpness, "estimated", residual=residual, note=note)
        readings["sharpness_limit"] = limit
        readings["sharpness_ratio"] = Reading(sharpness / limit, "estimated", residual=residual / limit, note=note)
        if not sharpness <= 0:  # where nothing bends up, every learning rate is allowed
            readings["max_learning_rate"] = Reading(scale.learning_rate * limit / sharpness, "estimated", note=curvature.note)
        return readings

    def _search(self, curvature: Curvature, scale: StepScale) -> tuple[RitzPairs, Tensor | None]:
        """Return the largest eigenvalue of ``P^-1 (H + decay)``, and the curvature along the preconditioned gradient, if any."""
        like = curvature.flat_gradient()
        root = _flat(curvature, scale.inverse).sqrt()
        multiply = preconditioned(curvature.product, root, _flat(curvature, scale.decay))
        start = root * like
        known = [(start, multiply(start))]
        size = start @ start
        along = start @ known[0][1] / size if bool(size > 0) else None
        del start
        previous = []
        if curvature.eigenvalues_are_known and bool((root > 0).all()):
            known += _known(*curvature.known_subspace(), root, _flat(curvature, scale.decay))
            self._vector = None
        elif self._vector is not None and self._vector.shape == like.shape:
            previous = [self._vector.to(like)]
        starts = [*(vector for vector, _ in known), *previous]
        krylov = Krylov(multiply, starts, curvature.generator, known_products=[image for _, image in known])
        del known, starts  # the search has them in its basis
        pairs = krylov.top(tolerance=self.tolerance, max_products=self.max_products - 1)
        if not curvature.eigenvalues_are_known:
            self._vector = pairs.vectors[0] if math.isfinite(pairs.values[0]) else None
        return pairs, along

    def __repr__(self) -> str:
        return f"SharpnessLimit(tolerance={self.tolerance}, max_products={self.max_products})"


def _known(basis: Tensor, images: Tensor, root: Tensor, decay: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return what a search in the Hessian says of ``P^-1/2 (H + decay) P^-1/2``: its best directions, and its products with them.

    For x in the span of the basis, ``y = P^1/2 x`` has the product ``P^-1/2 (H + decay) x``: none is spent on it.

    Args:
        basis: Orthonormal rows.
        images: H times these.
        root: The diagonal of ``P^-1/2``, positive.
        decay: A diagonal that is added to H.
    """
    metric, inner, small = root**-2, [], []
    for vector, image in zip(basis, images, strict=True):
        inner.append(basis @ (metric * vector))
        small.append(basis @ torch.addcmul(image, decay, vector))
    weights = ritz_weights(torch.stack(small).cpu().double(), torch.stack(inner).cpu().double(), _SHARED).to(basis)
    found = []
    for row in weights:
        vector = row @ basis
        found.append((vector / root, root * torch.addcmul(row @ images, decay, vector)))
    return found


def _flat(curvature: Curvature, diagonal: Mapping[str, Tensor | float]) -> Tensor:
    """Return a diagonal that is given by parameter as one long vector; parameters that are missing count as zero."""
    pieces = [
        torch.as_tensor(diagonal.get(name, 0.0), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)
        for name, parameter in curvature.parameters.items()
    ]
    return curvature.flatten(pieces)
