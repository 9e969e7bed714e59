"""The rules as what they are: BackPACK extensions, under BackPACK itself."""

from __future__ import annotations

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn

from cockpit_lite.probes.per_sample.extension import Products, SquaredNorms, SumsOfSquares


def model() -> nn.Sequential:
    """Return a net that BackPACK's own rules know too."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 3, 2),
        nn.Flatten(),
        nn.Linear(75, 3),
    )


def test_the_same_numbers_as_backpacks_own_rules() -> None:
    net, loss_function = extend(model().double()), extend(nn.CrossEntropyLoss())
    inputs, targets = torch.randn(5, 2, 8, 8, dtype=torch.float64), torch.randint(3, (5,))
    directions = {p: torch.randn_like(p) for p in net.parameters()}
    with backpack(SquaredNorms(), Products(directions), SumsOfSquares(), BatchGrad()):
        loss_function(net(inputs), targets).backward()
    for p in net.parameters():
        # not against BatchL2Grad, which ignores the groups of a convolution (1.7.1)
        torch.testing.assert_close(p.per_sample_squared_norms, p.grad_batch.flatten(1).square().sum(1))
        along = (p.grad_batch * directions[p]).flatten(1).sum(1)
        torch.testing.assert_close(p.per_sample_products, along)
        torch.testing.assert_close(p.per_sample_sum_of_squares, p.grad_batch.square().sum(0))


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.LayerNorm(6), (4, 6)), (nn.GroupNorm(2, 4), (4, 6)), (nn.GRU(6, 3, batch_first=True), (4, 6))]
)
def test_layers_that_backpack_does_not_know(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = extend(module)
    inputs = torch.randn(5, *shape, requires_grad=True)
    with backpack(SquaredNorms()):
        output = module(inputs)
        (output[0] if isinstance(output, tuple) else output).square().sum().backward()
    for p in module.parameters():
        assert p.per_sample_squared_norms.shape == (5,)
        assert p.per_sample_squared_norms.gt(0).all()
