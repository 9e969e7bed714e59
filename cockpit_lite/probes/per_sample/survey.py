"""From the calls of a step to statistics by parameter, with the checks that keep a wrong number from getting out.

1. The input and the output of every call must carry the batch: as many rows as the forward has samples, or a multiple of it.
2. The contributions must sum to the gradient, as far as the gradient is known.
3. All uses of a parameter count: calls of several modules that share it, and several calls of one module, are added up before
   anything is squared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample.calls import Call
from cockpit_lite.probes.per_sample.extension import Forms
from cockpit_lite.probes.per_sample.forms import Form, add
from cockpit_lite.probes.per_sample.forwards import Forward, call_axes
from cockpit_lite.probes.per_sample.owners import FLAT, by_shape, rows
from cockpit_lite.probes.per_sample.rules import RULES, NoRule
from cockpit_lite.probes.per_sample.shadow import shadow
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics

BATCH_STATISTICS = "conditional on the batch statistics: batch normalisation in train mode lets the samples meet"

#: How far the sum of the contributions may be from the gradient, relative to the sum of their magnitudes along it.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
HALF_PRECISION_TOLERANCE = 3e-2


class Survey:
    """The calls of one step, sorted by parameter.

    Args:
        parameters: The trainable parameters by name.
        calls: The calls that a backward reached.
        forwards: The forwards of the step.
        reached: For every backward the forwards that it reached.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        calls: Iterable[Call],
        forwards: Sequence[Forward],
        reached: Sequence[set[int]],
    ) -> None:
        self.parameters = parameters
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.calls = sorted(calls, key=lambda call: call.forward)
        self.forwards = forwards
        self.micro_batches = _connected(reached)
        self.batch_statistics = any(forwards[number].batch_statistics for group in self.micro_batches for number in group)
        self.not_covered: dict[str, str] = {}

    def statistics(
        self, products: bool, direction: Mapping[str, Tensor] | None, gradient: Mapping[str, Tensor] | None
    ) -> PerSampleStatistics:
        """Return the statistics; see :meth:`PerSampleProbe.statistics`."""
        sizes = self._micro_batch_sizes()
        result = PerSampleStatistics(batch_size=sum(sizes), not_covered=self.not_covered)
        if self.not_covered:  # the samples could not be counted: that concerns every parameter
            return result
        forms = self._forms(sizes)
        for name, parameter in self.parameters.items():
            if name in self.not_covered:
                continue
            parts = forms.get(name, {})
            result.squared_norms[name] = _concatenated(parts, sizes, lambda form: form.squared_norms(), parameter)
            if products and direction is not None and direction.get(name) is not None:
                towards = direction[name].detach()
                result.products[name] = _concatenated(parts, sizes, lambda form: form.products(towards), parameter)
        self._check_sums(result, forms, sizes, direction, gradient)
        for name in self.not_covered:
            result.squared_norms.pop(name, None)
            result.products.pop(name, None)
        if self.batch_statistics:
            result.conditional = dict.fromkeys(result.squared_norms, BATCH_STATISTICS)
        return result

    def _micro_batch_sizes(self) -> list[int]:
        """Return the number of samples of every micro-batch, or name all parameters as not covered."""
        sizes = []
        for forwards in self.micro_batches:
            found = {self.forwards[number].batch_size for number in forwards}
            if len(found) != 1 or None in found:
                known = sorted(size for size in found if size is not None)
                reason = f"forwards of different batch size ({known}) in one backward" if known else "the model's input has no tensor"
                self.not_covered.update(dict.fromkeys(self.parameters, reason))
                return []
            sizes.extend(size for size in found if size is not None)
        return sizes

    def _forms(self, sizes: Sequence[int]) -> dict[str, dict[int, Form]]:
        """Return parameter name -> micro-batch -> form of the per-sample gradients."""
        micro_batch = {forward: number for number, forwards in enumerate(self.micro_batches) for forward in forwards}
        found: dict[str, dict[int, list[Form]]] = {}
        for call in self.calls:
            number = micro_batch[call.forward]
            own = {
                local: self.names[id(parameter)]
                for local, parameter in call.module._parameters.items()
                if id(parameter) in self.names
            }
            try:
                forms = forms_of_call(call, list(own), sizes[number])
            except NoRule as reason:
                self.not_covered.update(dict.fromkeys(own.values(), str(reason)))
                continue
            for local, form in forms.items():
                found.setdefault(own[local], {}).setdefault(number, []).append(form)
        return {name: {number: add(parts) for number, parts in uses.items()} for name, uses in found.items()}

    def _check_sums(
        self,
        result: PerSampleStatistics,
        forms: Mapping[str, Mapping[int, Form]],
        sizes: Sequence[int],
        direction: Mapping[str, Tensor] | None,
        gradient: Mapping[str, Tensor] | None,
    ) -> None:
        """Name the parameters whose contributions do not sum to the gradient; one transfer from the device for all of them."""
        if gradient is None:
            return
        names, numbers = [], []
        for name in result.squared_norms:
            total = gradient.get(name)
            if total is None:
                continue
            total = total.detach()
            if name in result.products and direction is gradient:
                along = result.products[name]
            else:
                along = _concatenated(forms.get(name, {}), sizes, lambda form: form.products(total), self.parameters[name])
            exact = total.to_dense() if total.is_sparse else total
            exact = exact.to(along.dtype)
            names.append(name)
            numbers.append(torch.stack([along.sum(), exact.square().sum(), along.abs().sum()]).double())
        if not names:
            return
        for name, (found, expected, scale) in zip(names, torch.stack(numbers).tolist(), strict=True):
            tolerance = TOLERANCES.get(gradient[name].dtype, HALF_PRECISION_TOLERANCE)
            if not abs(found - expected) <= tolerance * max(scale, expected):
                self.not_covered[name] = self._reason(name, forms)

    def _reason(self, name: str, forms: Mapping[str, Mapping[int, Form]]) -> str:
        owners = sorted({type(call.module).__name__ for call in self.calls if self._owns(call.module, name)})
        if name not in forms:
            return "the parameter is used outside of any module's call"
        return f"contributions do not sum to the gradient: the parameter is also used outside of {' and '.join(owners)}'s call"

    def _owns(self, module: nn.Module, name: str) -> bool:
        return any(parameter is self.parameters[name] for parameter in module._parameters.values())


def forms_of_call(call: Call, names: Sequence[str], batch_size: int) -> dict[str, Form]:
    """Return parameter name in the module -> form of its per-sample gradients in this call.

    Raises:
        NoRule: if there is none; the message is the reason.
    """
    module = call.module
    kind = type(module).__name__
    rule = RULES.get(type(module))
    if rule is None:
        raise NoRule(f"no rule for {kind}")
    if call.overwritten:
        raise NoRule(f"the input of {kind} was changed in place after its call")
    inputs, delta = call.bound(), call.deltas[0]
    if delta is None or not inputs or not isinstance(inputs[0], Tensor):
        raise NoRule(f"{kind} was called without input")
    layout = call.layout
    if layout is None:  # recomputed in the backward pass
        layout = by_shape(call, batch_size, call_axes(module, call.outputs[0]))
    if layout.reason:
        raise NoRule(f"{kind}: {layout.reason}")
    if layout.axis == FLAT:
        trailing = rule.trailing_axes(module)
        assert trailing is not None
        inputs = [inputs[0].flatten(0, inputs[0].dim() - trailing[0] - 1), *inputs[1:]]
        delta = rows(delta, FLAT, trailing[1])
    if inputs[0].shape[max(layout.axis, 0)] != delta.shape[max(layout.axis, 0)] and not isinstance(module, nn.EmbeddingBag):
        raise NoRule(f"{kind}: input and output have different numbers of rows")
    copy = shadow(module, inputs, call.outputs[0])
    forms = {}
    for name in names:
        if name not in rule.parameters:
            raise NoRule(f"no rule for the parameter {name} of {kind}")
        forms[name] = getattr(rule, name)(_FORMS, copy, (), (delta,), None)
    if layout.owners is not None:
        forms = {name: form.fold(layout.owners, batch_size) for name, form in forms.items()}
    return forms


_FORMS = Forms()


def _connected(reached: Sequence[set[int]]) -> list[set[int]]:
    """Return the micro-batches: forwards are of the same one if a backward reached both."""
    groups: list[set[int]] = []
    for forwards in reached:
        if not forwards:
            continue
        merged = set(forwards)
        for group in [group for group in groups if group & merged]:
            merged |= group
            groups.remove(group)
        groups.append(merged)
    return sorted(groups, key=min)


def _concatenated(parts: Mapping[int, Form], sizes: Sequence[int], measure, parameter: nn.Parameter) -> Tensor:  # type: ignore[no-untyped-def]
    """Measure the form of every micro-batch; a parameter that a micro-batch does not use contributes nothing there."""
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    measured = [
        measure(parts[number]) if number in parts else torch.zeros(size, dtype=dtype, device=parameter.device)
        for number, size in enumerate(sizes)
    ]
    return torch.cat(measured) if measured else torch.zeros(0, dtype=dtype, device=parameter.device)
