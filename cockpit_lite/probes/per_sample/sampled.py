"""Elements of all per-sample gradients, drawn or all: what histograms are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.bins import logarithms_of
from cockpit_lite.step import Step

#: A histogram says how many of so many elements are in each bin: integers are short in the log.
OF = 1_000_000


@dataclass(frozen=True)
class SampledElements:
    """K elements of P parameters, in the order of the parameters.

    Attributes:
        names: Names of the parameters.
        sizes: How many elements each parameter has.
        shares: What share of all that were drawn from each parameter stands for; they sum to one.
        draws: How many elements were drawn of each.
        of: How many there were to be drawn from, those of parameters of which none was drawn included.
        gradients: ``g_nj = N c_nj`` of n of the samples, in float32, shape (n, K).
        parameters: ``theta_j``, in float32, shape (K,).
    """

    names: list[str]
    sizes: list[int]
    shares: list[float]
    draws: list[int]
    of: int
    gradients: Tensor
    parameters: Tensor

    @cached_property
    def owners(self) -> Tensor:
        """To which parameter an element belongs, integers, shape (K,)."""
        counts = torch.tensor(self.draws)
        return torch.repeat_interleave(counts, output_size=self.gradients.shape[1]).to(self.gradients.device)

    @cached_property
    def weights(self) -> Tensor:
        """What an element of each parameter counts in a histogram of its own, and in that of the model, shape (2, P)."""
        samples = max(1, len(self.gradients))
        own = [OF / (draws * samples) for draws in self.draws]
        of_model = [share * weight for share, weight in zip(self.shares, own, strict=True)]
        return torch.tensor([own, of_model], device=self.gradients.device)

    @cached_property
    def logarithms(self) -> Tensor:
        """Logarithms of the gradients' magnitudes, shape (n, K): several histograms ask for them."""
        return logarithms_of(self.gradients)


def drawn_elements(step: Step) -> SampledElements:
    """Return what was drawn on the step, for ``step.once``; all instruments share it.

    Raises:
        NotMeasured: if no per-sample gradient was seen.
    """
    statistics = step.per_sample
    names, drawing = list(statistics.elements), statistics.drawing
    shared = [0 if drawing is None else drawing.shared.get(name, 0) for name in names]
    if not any(shared):
        raise NotMeasured("no per-sample gradient was seen on this step")
    gradients = [drawn.values for drawn in statistics.elements.values()]
    parameters = [_at(step.parameters[name], drawn.positions) for name, drawn in statistics.elements.items()]
    return SampledElements(
        names,
        [step.parameters[name].numel() for name in names],
        [share / sum(shared) for share in shared],
        [values.shape[1] for values in gradients],
        sum(step.parameters[name].numel() for name in statistics.squared_norms),
        _joined(gradients, gradients[0]).mul_(statistics.batch_size),
        _joined(parameters, gradients[0]),
    )


def all_elements(step: Step) -> Iterator[tuple[str, SampledElements]]:
    """Yield every element of every parameter with the parameter's name, some samples at a time: slow, and exact."""
    layers = step.per_sample_gradients
    for name, layer in layers:
        size = layer.shape.numel()
        weights = step.parameters[name].detach().reshape(-1).to(torch.float32)
        for part in layer.gradients():
            gradients = part.reshape(len(part), -1).to(torch.float32) * layers.batch_size
            yield name, SampledElements([name], [size], [1.0], [size], size, gradients, weights)


def _at(parameter: Tensor, positions: Tensor) -> Tensor:
    weights = parameter.detach().reshape(-1)
    return weights.index_select(0, positions if weights.is_cpu else positions.to(weights.device))


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the parts side by side in float32, a tensor of its own."""
    fit = like.device, torch.float32
    return torch.cat([part if (part.device, part.dtype) == fit else part.to(*fit) for part in parts], -1)
