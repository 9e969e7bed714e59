from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cockpit_lite.curvature import Curvature, CurvatureMemory
from cockpit_lite.curvature.tail import complete, last_layers
from tests.curvature.cases import forward
from tests.zoo import ZOO


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 5))


def test_the_last_layers_by_use_and_not_by_name() -> None:
    model = mlp()
    loss = model(torch.randn(3, 40)).sum()
    parameters = list(model.parameters())
    assert last_layers(loss, parameters) == [2, 3, 4, 5]
    assert last_layers(loss, parameters[::-1]) == [0, 1, 2, 3]


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_is_looked_up_in_is_not_counted_and_a_tied_one_is_used_early(tied: bool) -> None:
    table, body, head = nn.Embedding(500, 8), nn.Linear(8, 8), nn.Linear(8, 500 if tied else 2)
    if tied:
        head.weight = table.weight
    loss = head(torch.tanh(body(table(torch.tensor([1, 2]))))).sum()
    parameters = list({id(p): p for module in (table, body, head) for p in module.parameters()}.values())
    found = [parameters[index].shape for index in last_layers(loss, parameters)]
    # Without the table, head and body hold 18 and 72 elements; tied, its bias is used last.
    assert found == ([] if tied else [head.weight.shape, head.bias.shape])


def test_a_recurrent_network_uses_its_biases_from_the_start_on() -> None:
    watched = forward(ZOO["lstm"])
    parameters = dict(watched.model.named_parameters())
    names = [list(parameters)[index] for index in last_layers(watched.loss, list(parameters.values()))]
    assert not any("lstm" in name or "hh" in name for name in names)


def test_one_layer_has_no_end() -> None:
    model = nn.Linear(4, 3)
    assert last_layers(model(torch.randn(2, 4)).sum(), list(model.parameters())) == []


def test_what_is_known_completes_what_was_found() -> None:
    known = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64))[0].T
    wanted = torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.float64)
    vector = wanted @ known
    weights = complete(vector[:, 30:], known[:, 30:])
    assert (weights @ known - vector).norm() < 0.02 * vector.norm()
    assert complete(vector[:, 30:], 0 * known[:, 30:]).isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_the_sharpest_direction_of_another_batch_is_found(seed: int) -> None:
    """A start from the last eigenvector alone may stay at an eigenvalue that has been overtaken."""
    torch.manual_seed(seed)
    model, memory = mlp(), CurvatureMemory()
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, 40)
    errors = []
    for _ in range(10):
        labels = torch.randint(5, (64,))
        inputs = centres[labels] + torch.randn(64, 40)
        loss = F.cross_entropy(model(inputs), labels)
        parameters = dict(model.named_parameters())
        curvature = Curvature(loss, parameters, generator, memory=memory)
        found = curvature.top_eigenpairs()
        assert curvature.products <= 12
        exact = Curvature(loss, parameters, generator).top_eigenpairs(tolerance=1e-5, max_products=200)
        errors.append(1 - found.values[0] / exact.values[0])
        for parameter, slope in zip(model.parameters(), curvature.gradient.values(), strict=True):
            parameter.data.sub_(slope, alpha=0.05)
    errors.sort()
    assert errors[len(errors) // 2] < 0.02  # the search stops where it takes the rest for a hundredth
    assert errors[-2] < 0.03  # the largest may be the next one, now and then
