"""Second-order quantities: products with the Hessian and the Gauss-Newton matrix of the mini-batch loss, and what follows.

:class:`Curvature` gives the products on the user's own loss graph; :mod:`~cockpit_lite.curvature.krylov` and
:mod:`~cockpit_lite.curvature.trace` are functions of any symmetric product.
"""

from __future__ import annotations

from cockpit_lite.curvature.density import Spectrum
from cockpit_lite.curvature.forward_probe import ForwardProbe, is_compiled
from cockpit_lite.curvature.krylov import MEMORY, Krylov, RitzPairs
from cockpit_lite.curvature.memory import CurvatureMemory
from cockpit_lite.curvature.sample import GaussNewtonSample
from cockpit_lite.curvature.trace import RandomProducts, TraceEstimate
from cockpit_lite.curvature.view import Curvature

__all__ = [
    "MEMORY",
    "Curvature",
    "CurvatureMemory",
    "ForwardProbe",
    "GaussNewtonSample",
    "Krylov",
    "RandomProducts",
    "RitzPairs",
    "Spectrum",
    "TraceEstimate",
    "is_compiled",
]
