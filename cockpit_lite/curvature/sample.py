r"""Trace and diagonal of the Gauss-Newton matrix from one random gradient.

Let u be random numbers at the model's outputs y with mean 0 and covariance L'', the Hessian of the loss by the outputs. Then
``E (J'u)(J'u)' = J'L''J = G``. Samples have independent parts u_n of u, so ``E sum_n (J_n'u_n)(J_n'u_n)'`` is G, too, and its
trace and diagonal are spread far less than those of the square of the sum: the products between samples, which are zero on
average, are never formed. One backward pass gives all J_n'u_n to the rules for per-sample gradients.

References: F. Kunstner, L. Balles and P. Hennig, "Limitations of the empirical Fisher approximation" (NeurIPS 2019), for
what tells this from the squares of the training's own gradients; F. Dangel et al., "BackPACK" (ICLR 2020), DiagGGNMC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cockpit_lite.curvature.control import FEWEST, Controls
from cockpit_lite.curvature.trace import TraceEstimate
from cockpit_lite.errors import NotMeasured


@dataclass(frozen=True)
class GaussNewtonSample:
    """What one draw says.

    Attributes:
        names: Of the parameters that were known when it was drawn.
        gradient: ``J'u`` by parameter name, of those whose samples cannot be told apart; zero for unused parameters.
        squared_norms: ``‖J_n'u_n‖²`` by parameter name, shape (N,), of the others. For the former the square of the sum stands
            in.
        controls: What is known of the random numbers, if anything.
        sum_of_squares: ``sum_n (J_n'u_n)²`` element by element; the same parameters are missing. None: nobody asked for them.
    """

    names: frozenset[str]
    gradient: Mapping[str, Tensor]
    squared_norms: Mapping[str, Tensor]
    sum_of_squares: Mapping[str, Tensor] | None
    controls: Controls | None = None

    @cached_property
    def _parts(self) -> Mapping[str, Tensor]:
        """What the samples contribute to the traces of the parameters whose samples are told apart."""
        norms = self.squared_norms
        if self.controls is None or not norms or len(self.controls.values) < FEWEST:
            return norms
        device = self.controls.values.device
        corrected = self.controls.corrected(torch.stack([value.to(device) for value in norms.values()]))
        return dict(zip(norms, corrected.unbind(), strict=True))

    def trace(self, names: Iterable[str]) -> TraceEstimate:
        """Return the trace of the block of these parameters; what chance adds to it is taken out as far as it is known.

        The standard error is that of a sum of independent parts, estimated from their spread, in which the differences between
        samples count, too: it is rather too large than too small.

        Raises:
            NotMeasured: if one of them was not known when the gradient was drawn.
        """
        names = list(names)
        self._check(names)
        together = [self.gradient[name].square().sum() for name in names if name not in self.squared_norms]
        apart = [self._parts[name] for name in names if name in self.squared_norms]
        device = (together or apart)[0].device
        value = error = torch.zeros((), device=device, dtype=(together or apart)[0].dtype)
        if together:  # ‖x‖² of one normal vector x has at most the deviation sqrt(2) times its mean
            parts = torch.stack([part.to(device) for part in together]).sum()
            value = value + parts
            error = error + 2 * parts.square()
        if apart:
            samples = torch.stack([part.to(device) for part in apart]).sum(0)
            value = value + samples.sum()
            count = samples.numel()
            error = error + (count * samples.var() if count > 1 else 2 * samples.sum().square())
        return TraceEstimate(value, error.sqrt())

    def _check(self, names: Iterable[str]) -> None:
        if not self.names.issuperset(names):
            raise NotMeasured("parameters began to be trained after the cockpit had been entered")

    def diagonal(self, name: str) -> Tensor:
        """Return an unbiased estimate of the diagonal that belongs to a parameter, in its shape.

        Raises:
            NotMeasured: if the squares were not asked for in time.
        """
        self._check([name])
        if self.sum_of_squares is None:
            raise NotMeasured("no instrument asked for the diagonal of sampled labels before the forward pass")
        return self.gradient[name].square() if name in self.gradient else self.sum_of_squares[name]
