"""The optimizers that a loop is tried with, among them two that torch does not have.

Lion moves by the sign of its momentum; AdaHessian differentiates the gradient again inside ``step``. Both are ordinary
``torch.optim.Optimizer`` subclasses as users write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop


class Lion(Optimizer):
    """Evolved sign momentum (Chen et al. 2023)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum.lerp(parameter.grad, 1 - beta_1).sign(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta_2)
        return loss


class AdaHessian(Optimizer):
    """Adam on the Hessian's diagonal (Yao et al. 2021), estimated in ``step``: needs ``backward(create_graph=True)``."""

    def __init__(self, params: Iterable[Any], lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def step(self, closure: None = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        signs = [torch.randint_like(p, 2) * 2 - 1 for p in parameters]  # from the global generator, as AdaHessian does
        products = torch.autograd.grad([p.grad for p in parameters], parameters, grad_outputs=signs)
        diagonals = {p: (sign * product).abs() for p, sign, product in zip(parameters, signs, products, strict=True)}
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter in diagonals:
                        self._update(parameter, diagonals[parameter], group)

    def _update(self, parameter: Tensor, diagonal: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        state["step"] += 1
        beta_1, beta_2 = group["betas"]
        state["first"].lerp_(parameter.grad.detach(), 1 - beta_1)
        state["second"].mul_(beta_2).addcmul_(diagonal, diagonal, value=1 - beta_2)
        first = state["first"] / (1 - beta_1 ** state["step"])
        second = state["second"] / (1 - beta_2 ** state["step"])
        parameter.addcdiv_(first, second.sqrt() + group["eps"], value=-group["lr"])


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer and the way its step is taken.

    Attributes:
        name: For the test's id.
        factory: Makes it for a model.
        closure: Its ``step`` calls the forward and backward pass itself, maybe several times.
        create_graph: The backward pass must leave a graph behind.
    """

    name: str
    factory: Callable[[nn.Module], Optimizer]
    closure: bool = False
    create_graph: bool = False

    def step(self, optimizer: Optimizer, loss: Callable[[], Tensor]) -> Tensor:
        """Take one step on ``loss``, which runs the forward pass; return the loss before it."""
        if self.closure:

            def closure() -> Tensor:
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            return optimizer.step(closure)  # type: ignore[arg-type, return-value]
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=self.create_graph)
        optimizer.step()
        return value.detach()


def _two_groups(model: nn.Module) -> Optimizer:
    """Weights decay, biases and norms do not and learn faster; and the first group has a momentum of its own."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return SGD([{"params": matrices, "weight_decay": 0.01, "momentum": 0.5}, {"params": vectors, "lr": 0.2}], lr=0.05)


OPTIMIZERS: tuple[OptimizerCase, ...] = (
    OptimizerCase("sgd", lambda model: SGD(model.parameters(), lr=0.1)),
    OptimizerCase("momentum", lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9)),
    OptimizerCase("nesterov", lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)),
    OptimizerCase("weight_decay", lambda model: SGD(model.parameters(), lr=0.1, weight_decay=0.01)),
    OptimizerCase("adagrad", lambda model: Adagrad(model.parameters(), lr=0.05)),
    OptimizerCase("rmsprop", lambda model: RMSprop(model.parameters(), lr=0.01)),
    OptimizerCase("adam", lambda model: Adam(model.parameters(), lr=0.01)),
    OptimizerCase("adamw", lambda model: AdamW(model.parameters(), lr=0.01)),
    OptimizerCase("adamw_fused", lambda model: AdamW(model.parameters(), lr=0.01, fused=True)),
    OptimizerCase("adam_closure", lambda model: Adam(model.parameters(), lr=0.01), closure=True),
    OptimizerCase("lbfgs", lambda model: LBFGS(model.parameters(), lr=0.2, max_iter=4), closure=True),
    OptimizerCase(
        "lbfgs_wolfe", lambda model: LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe"), closure=True
    ),
    OptimizerCase("lion", lambda model: Lion(model.parameters(), lr=0.003, weight_decay=0.01)),
    OptimizerCase("adahessian", lambda model: AdaHessian(model.parameters()), create_graph=True),
    OptimizerCase("two_groups", _two_groups),
)
