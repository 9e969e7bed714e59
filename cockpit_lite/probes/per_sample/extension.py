"""BackPACK extensions over the per-sample rules.

The rules of :mod:`cockpit_lite.probes.per_sample.rules` are BackPACK module extensions with BackPACK's own signature, so they
also serve who uses BackPACK directly::

    model, loss_function = extend(model), extend(loss_function)
    with backpack(SquaredNorms()):
        loss_function(model(inputs), targets).backward()
    model[0].weight.per_sample_squared_norms        # shape (N,)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backpack.extensions.backprop_extension import FAIL_ERROR
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension
from torch import Tensor, nn

from cockpit_lite.probes.per_sample.forms import Form


class PerSampleExtension(FirstOrderBackpropExtension):
    """What to measure of the per-sample gradients: a subclass says it in :meth:`measure`.

    Args:
        savefield: Attribute of the parameters that BackPACK saves the result in.
        fail_mode: What BackPACK does with a module without a rule; an error by default, so that nothing is left out in silence.
    """

    def __init__(self, savefield: str, fail_mode: str = FAIL_ERROR) -> None:
        from cockpit_lite.probes.per_sample.rules import RULES  # here, because the rules import this module

        parameterless = {kind: rule for kind, rule in _no_parameters().items() if kind not in RULES}
        super().__init__(savefield, {**parameterless, **RULES}, fail_mode=fail_mode)

    def measure(self, form: Form, parameter: Tensor) -> Any:
        """Return the measurement of one parameter from the form of its per-sample gradients."""
        raise NotImplementedError


class Forms(PerSampleExtension):
    """The forms themselves: what the probe of this package asks the rules for."""

    def __init__(self) -> None:
        super().__init__("per_sample_form")

    def measure(self, form: Form, parameter: Tensor) -> Form:
        """Hand the form on."""
        return form


class SquaredNorms(PerSampleExtension):
    """Squared norm of every sample's gradient, saved in ``per_sample_squared_norms``."""

    def __init__(self, fail_mode: str = FAIL_ERROR) -> None:
        super().__init__("per_sample_squared_norms", fail_mode)

    def measure(self, form: Form, parameter: Tensor) -> Tensor:
        """Return shape (N,)."""
        return form.squared_norms()


class Products(PerSampleExtension):
    """Inner product of every sample's gradient with a direction, saved in ``per_sample_products``.

    Args:
        directions: Parameter -> direction of the same shape.
    """

    def __init__(self, directions: Mapping[Tensor, Tensor], fail_mode: str = FAIL_ERROR) -> None:
        super().__init__("per_sample_products", fail_mode)
        self.directions = directions

    def measure(self, form: Form, parameter: Tensor) -> Tensor:
        """Return shape (N,)."""
        return form.products(self.directions[parameter])


class SumsOfSquares(PerSampleExtension):
    """Sum over the samples of the squared gradients, element by element, saved in ``per_sample_sum_of_squares``."""

    def __init__(self, fail_mode: str = FAIL_ERROR) -> None:
        super().__init__("per_sample_sum_of_squares", fail_mode)

    def measure(self, form: Form, parameter: Tensor) -> Tensor:
        """Return the shape of the parameter."""
        return form.sum_of_squares()


def _no_parameters() -> dict[type[nn.Module], Any]:
    """BackPACK asks every module in the graph: modules without parameters have an empty rule."""
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    empty = FirstOrderModuleExtension()
    kinds = [
        kind
        for namespace in (nn.modules.activation, nn.modules.loss, nn.modules.pooling, nn.modules.dropout, nn.modules.padding)
        for kind in vars(namespace).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in (nn.PReLU, nn.MultiheadAttention)
    ]
    return {
        kind: empty for kind in [*kinds, nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample]
    }
