"""The slow and obvious: every quantity straight from its definition, in float64, one sample at a time.

Nothing here is clever, so that what is clever elsewhere can be compared with it. N samples, D elements;
``contributions`` c_n sum to the gradient G of the loss as the user computed it, and g_n = N c_n.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import Architecture, Batch


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradient(architecture: Architecture, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return G by parameter name, in the model's own precision; zero for unused parameters. Leaves ``.grad`` alone."""
    clone = copy.deepcopy(model)
    clone.zero_grad(set_to_none=True)
    architecture.loss(clone, batch).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trainable(clone).items()}


def contributions(architecture: Architecture, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return c_n by parameter name, each (N, *shape) in float64, by a loop over one-sample batches.

    Where noise is drawn (dropout in train mode), the model sees the whole batch each time, with the random numbers that come
    next, and the loss one sample's row of the output: one sample alone would get the first sample's noise.

    Raises:
        ValueError: if there is no such thing: samples interact, or batch statistics are used.
    """
    if model.training and architecture.batch_norm:
        raise ValueError(f"{architecture.name} in train mode: one sample alone is not the same function. Call model.eval().")
    exact, batch = copy.deepcopy(model).double(), batch.to(torch.float64)
    rows = []
    for i, (sample, weight) in enumerate(zip(architecture.samples(batch), architecture.weights(batch), strict=True)):
        with torch.random.fork_rng(devices=[]):
            whole = _OneRow(exact, batch.inputs, i) if architecture.dropout and model.training else exact
            found = gradient(architecture, whole, sample)
        prefix = "" if whole is exact else "model."
        rows.append({name.removeprefix(prefix): weight * values for name, values in found.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in trainable(model)}


class _OneRow(nn.Module):
    """Runs the model on a whole batch, whatever it is called with, and returns one row of each output."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], i: int) -> None:
        super().__init__()
        self.model, self.inputs, self.i = model, inputs, i
        self.train(model.training)

    def forward(self, *sample: Tensor) -> Any:
        outputs = self.model(*self.inputs)
        rows = [output[self.i : self.i + 1] for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
        return tuple(rows) if isinstance(outputs, tuple) else rows[0]


def matrix(by_parameter: dict[str, Tensor]) -> Tensor:
    """Return the (N, D) matrix of per-sample values that are given by parameter, in the order of the dictionary."""
    return torch.cat([values.reshape(len(values), -1) for values in by_parameter.values()], 1)


def hessian(architecture: Architecture, model: nn.Module, batch: Batch) -> Tensor:
    """Return the dense (D, D) float64 Hessian of the loss by differentiating every element of the gradient.

    Where that is not symmetric, PyTorch's second derivative is wrong (seen in 2.15: the fused weight norm), and central
    differences of the gradient are taken, which are good to about 1e-9.
    """
    exact, batch = copy.deepcopy(model).double(), batch.to(torch.float64)
    parameters = list(trainable(exact).values())
    first = torch.autograd.grad(architecture.loss(exact, batch), parameters, create_graph=True, materialize_grads=True)
    elements = torch.cat([values.flatten() for values in first])
    if not elements.requires_grad:  # the loss is linear
        return torch.zeros(len(elements), len(elements), dtype=torch.float64)
    rows = [torch.autograd.grad(element, parameters, retain_graph=True, materialize_grads=True) for element in elements]
    matrix = torch.stack([torch.cat([values.flatten() for values in row]) for row in rows])
    if torch.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-9):
        return matrix
    return _hessian_by_differences(architecture, exact, batch)


def _hessian_by_differences(architecture: Architecture, model: nn.Module, batch: Batch, distance: float = 1e-6) -> Tensor:
    parameters = list(trainable(model).values())

    def gradient() -> Tensor:
        values = torch.autograd.grad(architecture.loss(model, batch), parameters, materialize_grads=True)
        return torch.cat([value.flatten() for value in values])

    rows = []
    for parameter in parameters:
        elements = parameter.data.view(-1)
        for index in range(len(elements)):
            middle = elements[index].item()
            elements[index] = middle + distance
            above = gradient()
            elements[index] = middle - distance
            below = gradient()
            elements[index] = middle
            rows.append((above - below) / (2 * distance))
    return torch.stack(rows)


# The tests of the batch size. ``gradients`` is the (N, D) matrix of g_n, whose mean is G.


def norm_test(gradients: Tensor) -> float:
    """Return sqrt(V / N) / ||G|| with V = 1/(N-1) sum ||g_n - G||^2."""
    mean = gradients.mean(0)
    return ((variance(gradients) / len(gradients)) ** 0.5) / mean.norm().item()


def inner_product_test(gradients: Tensor) -> float:
    """Return sqrt(1/(N(N-1)) sum (g_n'G - ||G||^2)^2) / ||G||^2."""
    n, mean = len(gradients), gradients.mean(0)
    squared_norm = mean.dot(mean)
    total = sum((row.dot(mean) - squared_norm) ** 2 for row in gradients)
    return ((total / (n * (n - 1))) ** 0.5 / squared_norm).item()


def orthogonality_test(gradients: Tensor) -> float:
    """Return sqrt(1/(N(N-1)) sum ||g_n - (g_n'G/||G||^2) G||^2) / ||G||."""
    n, mean = len(gradients), gradients.mean(0)
    squared_norm = mean.dot(mean)
    total = sum((row - row.dot(mean) / squared_norm * mean).pow(2).sum() for row in gradients)
    return ((total / (n * (n - 1))) ** 0.5 / squared_norm**0.5).item()


def noise_scale(gradients: Tensor) -> float:
    """Return V / (||G||^2 - V/N) of this one batch."""
    mean, spread = gradients.mean(0), variance(gradients)
    return spread / (mean.dot(mean).item() - spread / len(gradients))


def variance(gradients: Tensor) -> float:
    """Return V = 1/(N-1) sum ||g_n - G||^2."""
    mean = gradients.mean(0)
    return sum((row - mean).pow(2).sum().item() for row in gradients) / (len(gradients) - 1)
