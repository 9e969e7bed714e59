"""Second-order quantities: products with the Hessian of the mini-batch loss, and what is estimated from them.

:class:`Curvature` gives the products on the user's own loss graph; :mod:`~cockpit_lite.curvature.lanczos` and
:mod:`~cockpit_lite.curvature.trace` are pure functions of any symmetric product.
"""

from __future__ import annotations

from cockpit_lite.curvature.forward_probe import ForwardProbe, is_compiled
from cockpit_lite.curvature.hessian import Curvature
from cockpit_lite.curvature.lanczos import TopEigenpair, top_eigenpair
from cockpit_lite.curvature.trace import TraceEstimate, estimate_trace

__all__ = ["Curvature", "ForwardProbe", "TopEigenpair", "TraceEstimate", "estimate_trace", "is_compiled", "top_eigenpair"]
