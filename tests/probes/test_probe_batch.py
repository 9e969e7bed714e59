"""The tangent kernel on the probe batch against a loop of gradients, sample by sample."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes import probe_batch, tensor_hooks
from cockpit_lite.probes.probe_batch import ProbeBatch
from tests.zoo import ZOO, Architecture


@pytest.fixture(autouse=True)
def _probes_stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop what a test has started, also where it failed in between."""
    started: list[ProbeBatch] = []
    start = ProbeBatch.start

    def remembered(self: ProbeBatch, *args: Any, **kwargs: Any) -> None:
        started.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(ProbeBatch, "start", remembered)
    yield
    for probe in started:
        probe.stop()


def seen(model: nn.Module, *args: Any, **kwargs: Any) -> ProbeBatch:
    """Return the probe batch after one watched call."""
    batch = ProbeBatch(model, dict(model.named_parameters()))
    batch.start()
    model(*args, **kwargs)
    return batch


def by_loop(model: nn.Module, outputs: list[Tensor], projections: int, names: Any) -> Tensor:
    """Return the kernel by a backward pass for every sample and direction."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for name, parameter in model.named_parameters() if name in names]
    total = torch.zeros(())
    for _ in range(projections):
        rows: Any = 0
        for output in outputs:
            signs = torch.randint(2, output.shape[1:], generator=generator) * 2 - 1
            rows = rows + (output * signs).reshape(len(output), -1).sum(1)
        gradients = []
        for row in rows:
            model.zero_grad()
            row.backward(retain_graph=True)
            slopes = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
            gradients.append(torch.cat([slope.flatten() for slope in slopes]))
        jacobian = torch.stack(gradients)
        total = total + jacobian @ jacobian.T / projections
    return total


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return tensors(list(value.values()))
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors(item)]
    return [value] if isinstance(value, Tensor) else []


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if not a.interacts], ids=lambda a: a.name)
def test_over_the_zoo(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_batch, "SAMPLES", 4)
    model = architecture.build(dtype=torch.float64).eval()
    before = copy.deepcopy(model)
    batch = architecture.batch(7, torch.Generator().manual_seed(0), dtype=torch.float64)
    found = seen(model, *batch.inputs)
    kernel = found.tangent_kernel(2)
    assert found._kept is not None
    outputs = [tensor for tensor in tensors(before(*found._kept[0])) if tensor.requires_grad and tensor.dim()]
    by_sample = [
        output.movedim(output.shape.index(4), 0) if 4 in output.shape else output.unflatten(0, (4, -1)) for output in outputs
    ]
    expected = by_loop(before, by_sample, 2, kernel.parameters)
    assert len(kernel.parameters) >= sum(parameter.requires_grad for parameter in model.parameters()) - 3
    torch.testing.assert_close(kernel.gram.double(), expected.detach(), rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    for _ in range(2):  # again, on what was kept
        torch.testing.assert_close(found.tangent_kernel(2).gram, kernel.gram)
    found.stop()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 4))


def test_a_small_batch_is_kept_whole_and_a_large_one_cut() -> None:
    for size, kept in ((5, 5), (16, 16), (100, 16)):
        assert seen(mlp(), torch.randn(size, 3)).tangent_kernel(1).gram.shape == (kept, kept)


def test_the_first_call_is_kept_and_the_weights_are_those_of_now() -> None:
    model = mlp()
    inputs = torch.randn(5, 3)
    batch = seen(model, inputs)
    first = batch.tangent_kernel(1)
    batch.stop()
    batch.start()
    model(torch.randn(7, 3))
    inputs.zero_()  # a loader that fills the same memory again
    torch.testing.assert_close(batch.tangent_kernel(1).gram, first.gram)
    with torch.no_grad():
        model[2].weight *= 2  # type: ignore[operator]
    assert not torch.allclose(batch.tangent_kernel(1).gram, first.gram)
    batch.stop()


class Keywords(nn.Module):
    """Called with keywords, a mapping and things that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, *, data: dict[str, Any], scale: float) -> dict[str, Tensor]:
        """Return logits and what is no tensor of samples."""
        logits = self.layer(data["x"]) * scale
        return {"logits": logits, "mean": logits.mean()}


def test_keywords_and_mappings() -> None:
    batch = seen(Keywords(), data={"x": torch.randn(20, 3), "name": "n"}, scale=2.0)
    assert batch.tangent_kernel(2).gram.shape == (16, 16)


def test_dropout_makes_the_same_masks() -> None:
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 4))
    batch = seen(model, torch.randn(20, 3))
    first, again = batch.tangent_kernel(2), batch.tangent_kernel(2)
    torch.testing.assert_close(first.gram, again.gram, rtol=0, atol=0)
    batch.start()
    model.eval()(torch.randn(20, 3))  # the next step
    assert not torch.allclose(first.gram, batch.tangent_kernel(2).gram)


def test_batch_normalisation_is_conditional_in_train_mode_only() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    batch = seen(model, torch.randn(20, 3))
    assert batch.tangent_kernel(1).conditional
    assert not seen(model.eval(), torch.randn(20, 3)).tangent_kernel(1).conditional


class Pairs(nn.Module):
    """Takes a matrix of as many rows and columns as there are samples: a part of the batch does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Return the mean of the neighbours."""
        return self.layer(adjacency @ x)


class Hooked(nn.Module):
    """Hooks a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fired = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        """Count the gradients that arrive."""
        output = self.layer(x)
        output.register_hook(self.count)
        return output * 2

    def count(self, gradient: Tensor) -> None:
        """Count one."""
        self.fired += 1


def test_hooks_that_the_forward_sets_do_not_fire() -> None:
    model = Hooked()
    tensor_hooks.watch()
    try:
        with pytest.raises(NotMeasured, match="hooks its tensors"):
            seen(model, torch.randn(5, 3)).tangent_kernel(1)
    finally:
        tensor_hooks.stop_watching()
    assert model.fired == 0


def test_backward_hooks_do_not_fire() -> None:
    model, fired = mlp(), []
    model[0].register_full_backward_hook(lambda *_: fired.append(1))
    with pytest.raises(NotMeasured, match="backward hook"):
        seen(model, torch.randn(5, 3)).tangent_kernel(1)
    assert not fired


@pytest.mark.parametrize(
    ("model", "arguments", "reason"),
    [
        (Pairs(), (torch.randn(20, 3), torch.rand(20, 20)), "could not be called on a part of its batch"),
        (nn.MSELoss(), (torch.randn(20, 3), torch.randn(20, 3)), "no trainable parameter"),
    ],
)
def test_what_cannot_be_called_on_a_part(model: nn.Module, arguments: tuple[Tensor, ...], reason: str) -> None:
    with pytest.raises(NotMeasured, match=reason):
        seen(model, *arguments).tangent_kernel(1)


def test_a_loss_alone_is_no_output() -> None:
    class OwnLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).square().mean()

    with pytest.raises(NotMeasured, match="no tensor that depends on the weights and has an axis for the samples"):
        seen(OwnLoss(), torch.randn(20, 3)).tangent_kernel(1)


def test_without_a_call_there_is_no_probe_batch() -> None:
    model = mlp()
    batch = ProbeBatch(model, dict(model.named_parameters()))
    batch.start()
    with torch.no_grad():
        model(torch.randn(5, 3))  # validation
    with pytest.raises(NotMeasured, match="no call of the whole model was seen"):
        batch.tangent_kernel(1)
    batch.stop()


def test_hooks_of_the_user_are_not_made_to_fire_twice() -> None:
    model = mlp()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NotMeasured, match="forward hook"):
        seen(model, torch.randn(5, 3)).tangent_kernel(1)


class Counting(nn.Module):
    """Raises at its second call, as the user's own second call does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        """Count the call."""
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return self.layer(x)


def test_a_forward_that_counts_its_calls_is_repeated_as_it_was() -> None:
    model = Counting()
    batch = seen(model, torch.randn(5, 3))
    first = batch.tangent_kernel(1)
    assert model.calls == 1
    batch.start()
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(5, 3))
    model(torch.randn(5, 3))  # the user has caught it
    torch.testing.assert_close(batch.tangent_kernel(1).gram, first.gram)
    assert model.calls == 3
    batch.stop()
