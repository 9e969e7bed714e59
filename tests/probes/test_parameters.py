from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Adam

from cockpit_lite.probes.parameters import learning_rates, named_parameters, parameter_learning_rates


def test_a_shared_parameter_has_one_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(named_parameters(model, [SGD(model.parameters(), lr=0.1)])) == ["0.weight", "0.bias", "1.bias"]


def test_parameters_that_only_an_optimizer_knows_get_a_name() -> None:
    model, extra, other = nn.Linear(2, 1), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    groups = [{"params": [model.weight]}, {"params": [model.bias, extra]}]
    assert list(named_parameters(model, [SGD(groups, lr=0.1)])) == ["weight", "bias", "optimizer.1.1"]
    several = [SGD(groups, lr=0.1), Adam([other, extra])]
    named = named_parameters(model, several)
    assert list(named) == ["weight", "bias", "optimizer0.1.1", "optimizer1.0.0"]
    assert named["optimizer1.0.0"] is other


def test_learning_rates_of_groups_and_parameters() -> None:
    model, frozen = nn.Linear(2, 1), nn.Parameter(torch.ones(1), requires_grad=False)
    optimizers = [SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}], lr=0.1)]
    assert learning_rates(optimizers) == [0.1, 0.2]
    parameters = {"weight": model.weight, "bias": model.bias, "frozen": frozen}
    assert parameter_learning_rates(parameters, optimizers) == {"weight": 0.1, "bias": 0.2}
    del optimizers[0].param_groups[1]["lr"]  # an optimizer of one's own may have none
    assert learning_rates(optimizers) == [0.1]
    assert parameter_learning_rates(parameters, optimizers) == {"weight": 0.1}
