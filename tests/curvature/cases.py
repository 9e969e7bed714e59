"""Watching one step of a zoo architecture the way the cockpit does, for the tests of the curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.curvature.second_forward import ForwardCall
from tests import reference
from tests.zoo import Architecture, Batch

_SEED = 3  # of the global generator when the forward pass begins: dropout draws the same numbers in each of them


@dataclass
class Watched:
    """One forward pass, just before its backward."""

    model: nn.Module
    batch: Batch
    loss: Tensor
    call: ForwardCall

    def curvature(self, **options: Any) -> Curvature:
        return Curvature(self.loss, dict(self.model.named_parameters()), torch.Generator().manual_seed(1), **options)


def forward(architecture: Architecture, dtype: torch.dtype = torch.float32, train: bool = True) -> Watched:
    """Run the forward pass of ``architecture`` on a batch of four and remember the last call of the model."""
    model = architecture.build(dtype=dtype).train(train)
    batch = architecture.batch(4, torch.Generator().manual_seed(0), dtype)
    probe = ForwardProbe(model)
    probe.start()
    torch.manual_seed(_SEED)
    loss = architecture.loss(model, batch)
    call = probe.call
    probe.stop()
    assert call is not None
    return Watched(model, batch, loss, call)


def difference_along(architecture: Architecture, vectors: dict[str, Tensor], train: bool = True) -> Tensor:
    """Return the Hessian times ``vectors`` by central differences of float64 gradients: no second derivative involved.

    The step is so short that it crosses no kink of a ReLU.
    """
    length = 1e-6
    sides = []
    for sign in (1, -1):
        model = architecture.build(dtype=torch.float64).train(train)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in vectors:
                    parameter.add_(vectors[name], alpha=sign * length)
        torch.manual_seed(_SEED)
        architecture.loss(model, architecture.batch(4, torch.Generator().manual_seed(0), torch.float64)).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
        sides.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return (sides[0] - sides[1]) / (2 * length)


def random_vectors(model: nn.Module) -> dict[str, Tensor]:
    """Return a tensor a trainable parameter; zero for the padding of embeddings, which autograd takes for constant."""
    generator = torch.Generator().manual_seed(5)
    padding = {id(m.weight): m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None}
    vectors = {}
    for name, parameter in reference.trainable(model).items():
        vectors[name] = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if id(parameter) in padding:
            vectors[name][padding[id(parameter)]] = 0
    return vectors


def dense(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the matrix behind ``product``, column by column."""
    return torch.stack([product(unit) for unit in torch.eye(like.numel()).to(like)], 1)
