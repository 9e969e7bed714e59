"""What the probe counts, what it ignores, what it leaves behind, and what it refuses to say."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cockpit_lite.probes.per_sample import PerSampleProbe, early
from cockpit_lite.probes.per_sample import calls as calls_module
from cockpit_lite.probes.per_sample import probe as probe_module
from cockpit_lite.probes.per_sample.rules import RULES
from tests.per_sample.checker import watched


def net() -> nn.Sequential:
    """Return a small net whose activation works in place."""
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()


def data(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator, dtype=torch.float64), torch.randint(3, (size,), generator=generator)


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def contributions(model: nn.Module, inputs: Tensor, targets: Tensor, weight: float) -> dict[str, Tensor]:
    """Return the gradients of ``weight`` times the loss of every sample."""
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        loss = weight * F.cross_entropy(model(x[None]), y[None])
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return {name: torch.stack(values) for name, values in zip(parameters_of(model), zip(*rows, strict=True), strict=True)}


def assert_norms(statistics: object, expected: dict[str, Tensor]) -> None:
    assert not statistics.not_covered
    for name, rows in expected.items():
        torch.testing.assert_close(statistics.squared_norms[name], rows.flatten(1).square().sum(1))
        if statistics.sum_of_squares:
            torch.testing.assert_close(statistics.sum_of_squares[name], rows.square().sum(0))


def test_accumulated_micro_batches_are_concatenated() -> None:
    model, probe_batches = net(), [data(4, 0), data(3, 1)]
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    for inputs, targets in probe_batches:
        loss = F.cross_entropy(model(inputs), targets) / 2
        probe.backward_begins()
        loss.backward()
        probe.backward_ends()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    statistics = probe.statistics(True, gradient, squares=True)
    probe.stop()
    parts = [contributions(model, x, y, 0.5 / len(x)) for x, y in probe_batches]
    assert statistics.batch_size == 7
    expected = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert set(statistics.sum_of_squares) == set(expected)
    assert_norms(statistics, expected)
    statistics.unscale(torch.tensor(0.5, dtype=torch.float64))
    assert_norms(statistics, {name: rows / 0.5 for name, rows in expected.items()})


def test_losses_over_one_forward_add_up() -> None:
    model, (inputs, targets) = net(), data(4)
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    outputs = model(inputs)
    for factor in (1.0, 2.0):
        loss = factor * F.cross_entropy(outputs, targets)
        probe.backward_begins()
        loss.backward(retain_graph=True)
        probe.backward_ends()
    statistics = probe.statistics(True, {name: p.grad for name, p in model.named_parameters()})
    probe.stop()
    assert statistics.batch_size == 4
    assert_norms(statistics, contributions(model, inputs, targets, 3 / 4))


def test_backwards_that_are_not_the_users_do_not_count() -> None:
    model, (inputs, targets) = net(), data(4)
    parameters = list(model.parameters())
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    loss = F.cross_entropy(model(inputs), targets)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    torch.autograd.grad(gradient, parameters, [torch.ones_like(p) for p in parameters], retain_graph=True)
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    with probe.paused():
        F.cross_entropy(model(inputs), targets).backward()
    statistics = probe.statistics(True, dict(zip(parameters_of(model), (g.detach() for g in gradient), strict=True)))
    probe.stop()
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_a_second_step_is_a_new_one() -> None:
    model, probe = net(), None
    probe = PerSampleProbe(model, parameters_of(model))
    for seed, size in ((0, 4), (1, 6)):
        inputs, targets = data(size, seed)
        statistics, _ = watched(model, lambda x=inputs, y=targets: F.cross_entropy(model(x), y), probe=probe)
        assert_norms(statistics, contributions(model, inputs, targets, 1 / size))


def test_submodules_called_instead_of_the_model() -> None:
    model, (inputs, targets) = net(), data(4)
    statistics, _ = watched(model, lambda: F.cross_entropy(model[2](model[1](model[0](inputs))), targets))
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_a_forward_without_backward_is_not_kept() -> None:
    model, (inputs, targets) = net(), data(4)
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    validation = inputs.clone()
    reference = weakref.ref(validation)
    model(validation)
    del validation
    loss = F.cross_entropy(model(inputs), targets)
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    statistics = probe.statistics(True, {name: p.grad for name, p in model.named_parameters()})
    probe.stop()
    gc.collect()
    assert reference() is None
    assert statistics.batch_size == 4
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_nothing_stays_on_the_users_objects() -> None:
    model, (inputs, targets) = net(), data(4)
    hooks = [len(getattr(module_hooks, name)) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")]
    plain = pickle.dumps(model)
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    loss = F.cross_entropy(model(inputs), targets)
    assert pickle.dumps(model) == plain
    assert not copy.deepcopy(model)[0]._forward_hooks
    probe.stop()
    probe.stop()
    loss.backward()
    assert hooks == [len(getattr(module_hooks, name)) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")]


def test_an_exception_in_a_forward_does_not_spoil_the_next() -> None:
    model, (inputs, targets) = net(), data(4)

    def run() -> Tensor:
        with pytest.raises(RuntimeError):
            model(inputs[:, :3])
        return F.cross_entropy(model(inputs), targets)

    statistics, _ = watched(model, run)
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


class UsedOutside(nn.Module):
    """A weight that is also used outside of any module's call, where nothing can be repeated: the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("products", [True, False])
def test_contributions_that_do_not_sum_to_the_gradient_are_named(products: bool) -> None:
    model, (inputs, targets) = UsedOutside().double(), data(4)
    penalty = lambda: F.cross_entropy(model(inputs), targets) + 0.1 * model.layer.weight.square().sum()  # noqa: E731
    statistics, _ = watched(model, penalty, products)
    assert "do not sum to the gradient" in statistics.not_covered["layer.weight"]
    assert set(statistics.squared_norms) == {"layer.bias"}


def test_an_input_that_is_overwritten_is_named() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            y = self.layer(x.detach())
            x.zero_()
            return y

    model = Overwriting()
    model.layer.weight.requires_grad_(False)  # otherwise autograd itself refuses
    statistics, _ = watched(model, lambda: model(data(4)[0].float()).square().sum())
    assert "bias" in next(iter(statistics.squared_norms), "") or "changed in place" in statistics.not_covered["layer.bias"]


@pytest.mark.parametrize("positions", [4, 6])
def test_a_table_of_positions_is_no_batch(positions: int) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(positions, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((x + self.table(torch.arange(positions))).tanh())

    model, inputs = Positions().double(), torch.randn(4, positions, 5, dtype=torch.float64)
    statistics, _ = watched(model, lambda: model(inputs).square().sum())
    rows = []
    for x in inputs:
        rows.append(torch.autograd.grad(model(x[None]).square().sum(), model.table.weight)[0])
    torch.testing.assert_close(statistics.squared_norms["table.weight"], torch.stack(rows).flatten(1).square().sum(1))


def test_attention_over_the_wrong_axis_is_named() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0), nn.Flatten(), nn.Linear(24, 2))
    statistics, _ = watched(model, lambda: model(torch.randn(4, 3, 5)).square().sum())  # batch first into a time-first layer
    assert {"0.weight", "1.linear1.weight"} - set(statistics.squared_norms) == {"0.weight"}
    assert "samples meet" in statistics.not_covered["0.weight"]


def test_batch_statistics_are_said() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    statistics, gradient = watched(model, lambda: model(torch.randn(6, 5)).square().sum())
    assert not statistics.not_covered
    assert all("batch statistics" in note for note in statistics.conditional.values())
    assert set(statistics.conditional) == set(gradient)
    statistics, _ = watched(model.eval(), lambda: model(torch.randn(6, 5)).square().sum())
    assert not statistics.conditional


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    inputs, targets = data(8)
    statistics, _ = watched(model, lambda: F.cross_entropy(model(inputs.to(dtype)).float(), targets))
    assert not statistics.not_covered
    exact = contributions(copy.deepcopy(model).double(), inputs, targets, 1 / 8)
    for name, rows in exact.items():
        assert statistics.squared_norms[name].dtype == torch.float32
        torch.testing.assert_close(
            statistics.squared_norms[name].double(),
            rows.flatten(1).square().sum(1),
            rtol=0.1,
            atol=1e-2 * float(rows.square().sum()),
        )


def test_autocast() -> None:
    model, (inputs, targets) = net().float(), data(8)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(inputs.float()), targets)

    statistics, _ = watched(model, run)
    assert not statistics.not_covered


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))
    statistics, gradient = watched(model, lambda: model(torch.randint(7, (5, 3))).square().sum())
    assert gradient["0.weight"].is_sparse
    assert not statistics.not_covered


def test_keyword_inputs_and_non_finite_gradients() -> None:
    model = nn.Linear(5, 3)
    statistics, _ = watched(model, lambda: model(input=torch.full((4, 5), 1e30)).square().sum() * 1e30)
    assert not statistics.not_covered
    assert not statistics.squared_norms["weight"].isfinite().any()


def test_batch_of_one_and_unused_parameters() -> None:
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(5, 3)})
    statistics, _ = watched(model, lambda: model["used"](torch.randn(1, 5)).square().sum())
    assert statistics.batch_size == 1
    assert not statistics.not_covered
    assert not statistics.squared_norms["unused.weight"].any()


def test_autocast_in_a_module_without_a_rule() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(5, 6), nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.first(x) @ self.weight)

    model, inputs = Bare(), data(8)[0].float()

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs).float().square().mean()

    statistics, _ = watched(model, run)
    assert not statistics.not_covered


def test_a_failure_of_the_probe_stays_in_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("an output nobody thought of")

    model, (inputs, targets) = net(), data(4)
    monkeypatch.setattr(probe_module, "Call", fail)
    statistics, gradient = watched(model, lambda: F.cross_entropy(model(inputs), targets))
    assert set(statistics.not_covered) == set(gradient)
    assert "nobody thought of" in statistics.not_covered["0.weight"]
    assert gradient["0.weight"].any()


def test_a_failure_of_one_rule_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    rule = type(RULES[nn.LayerNorm])
    monkeypatch.setattr(rule, "weight", lambda *_: 1 / 0)
    inputs, targets = data(4)
    statistics, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets))
    assert not statistics.not_covered  # the generic rule on the model takes over
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_without_a_backward_nothing_is_said() -> None:
    model = net()
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    model(data(4)[0])
    statistics = probe.statistics(True, {name: torch.ones_like(p) for name, p in model.named_parameters()})
    probe.stop()
    assert set(statistics.not_covered) == set(parameters_of(model))


def test_a_graph_kept_from_an_earlier_step_does_not_count() -> None:
    model, (inputs, targets) = net(), data(4)
    probe = PerSampleProbe(model, parameters_of(model))
    old: list[Tensor] = []

    def first() -> Tensor:
        old.append(F.cross_entropy(model(inputs), targets))
        return old[0] * 1.0

    probe.start()
    loss = first()
    probe.backward_begins()
    loss.backward(retain_graph=True)
    probe.backward_ends()
    probe.stop()
    statistics, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets) + 0.0 * old[0], probe=probe)
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_backwards_that_were_thrown_away_do_not_count() -> None:
    model, (inputs, targets) = net(), data(4)
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    loss = F.cross_entropy(model(inputs), targets)
    for _ in range(2):
        model.zero_grad()
        probe.forget_backwards()
        probe.backward_begins()
        loss.backward(retain_graph=True)
        probe.backward_ends()
    statistics = probe.statistics(True, {name: p.grad for name, p in model.named_parameters()})
    probe.stop()
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_a_module_that_returns_its_parameter_keeps_no_hook() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.randn(5))

        def forward(self) -> Tensor:
            return self.value

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.layer = Constant(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((x + self.shift()).tanh())

    model, (inputs, targets) = Shifted().double(), data(4)
    statistics, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets))
    assert not model.shift.value._backward_hooks
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # from torch's own forward mode
def test_function_transforms_in_the_step_are_not_watched() -> None:
    model, (inputs, targets) = net(), data(4)

    def run() -> Tensor:
        plain = {name: p.detach() for name, p in model.named_parameters()}
        loss_of = lambda p: F.cross_entropy(torch.func.functional_call(model, p, (inputs,)), targets)  # noqa: E731
        torch.func.jvp(loss_of, (plain,), (plain,))
        torch.func.grad(loss_of)(plain)
        return F.cross_entropy(model(inputs), targets)

    statistics, _ = watched(model, run)
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_recomputed_batch_statistics_are_not_updated_once_more() -> None:
    class Recomputing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU())
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.block, x, use_reentrant=False))

    model, (inputs, targets) = Recomputing().double(), data(6)
    twin = copy.deepcopy(model)
    statistics, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets))
    F.cross_entropy(twin(inputs), targets).backward()
    assert not statistics.not_covered
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


def test_norms_alone_let_a_layer_go_when_its_gradient_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "KEPT", 0)
    model, (inputs, targets) = net(), data(6)
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start(products=False, squares=False)
    loss = F.cross_entropy(model(inputs), targets)
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    calls = [call for call in probe._calls.values() if type(call.module) is nn.Linear]
    assert len(calls) == 2
    assert all(call.spent and not call.args and call.deltas == [None] for call in calls)
    gradient = {name: p.grad for name, p in model.named_parameters()}
    statistics = probe.statistics(False, None, gradient)
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 6))
    with pytest.raises(ValueError, match="without"):
        probe.statistics(True, gradient)
    with pytest.raises(ValueError, match="without"):
        probe.statistics(False, None, gradient, squares=True)
    wrong = {name: value * 2 for name, value in gradient.items()}
    assert set(probe.statistics(False, None, wrong).not_covered) == set(gradient)
    probe.stop()


@pytest.mark.parametrize("retain", [True, False])
def test_norms_measured_too_early_are_measured_again(retain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "KEPT", 0)
    model, (inputs, _) = nn.Sequential(nn.Linear(5, 3)).double(), data(4)
    model[0].weight.requires_grad_(False)  # nothing is saved for its backward, so that a second one is possible
    probe = PerSampleProbe(model, parameters_of(model))
    spent = []
    for _ in range(2):
        model.zero_grad()
        probe.start(products=False, squares=False)
        outputs = model(inputs)
        cotangents = torch.randn(2, 4, 3, dtype=torch.float64)
        for cotangent in cotangents:
            probe.backward_begins()
            outputs.backward(cotangent, retain_graph=retain)
            probe.backward_ends()
        statistics = probe.statistics(False, None, {"0.bias": model[0].bias.grad})
        spent.append(any(call.spent for call in probe._calls.values()))
        probe.stop()
        assert not statistics.not_covered
        torch.testing.assert_close(statistics.squared_norms["0.bias"], cotangents.sum(0).square().sum(1))
    assert spent == ([False, False] if retain else [True, False])  # it learns from the first step


def in_the_backward(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> PerSampleProbe:
    """Return a probe that measures every layer as soon as it can."""
    monkeypatch.setattr(early, "KEPT", 0)
    return PerSampleProbe(model, parameters_of(model))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_products_with_the_gradient_let_a_layer_go_when_the_gradient_is_there(
    set_to_none: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (inputs, targets) = net(), data(6)
    probe = in_the_backward(model, monkeypatch)
    update = {name: torch.randn_like(p) for name, p in parameters_of(model).items()}
    F.cross_entropy(model(inputs), targets).backward()
    model.zero_grad(set_to_none)
    probe.start(directions={"update": update}, one_backward=True)
    loss = F.cross_entropy(model(inputs), targets)
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    calls = [call for call in probe._calls.values() if type(call.module) is nn.Linear]
    assert len(calls) == 2
    assert all(call.spent and not call.args and call.deltas == [None] for call in calls)
    gradient = {name: p.grad for name, p in model.named_parameters()}
    statistics = probe.statistics(True, gradient, squares=True)
    with pytest.raises(ValueError, match="not kept"):  # the direction must be what was announced
        probe.statistics(False, None, gradient)
    probe.stop()
    rows = contributions(model, inputs, targets, 1 / 6)
    assert_norms(statistics, rows)
    for name, row in rows.items():
        torch.testing.assert_close(statistics.products[name], (row * row.sum(0)).flatten(1).sum(1))
        torch.testing.assert_close(statistics.along["update"][name], (row * update[name]).flatten(1).sum(1))
    statistics.unscale(torch.tensor(2.0, dtype=torch.float64))
    for name, row in rows.items():
        torch.testing.assert_close(statistics.along["update"][name], (row / 2 * update[name]).flatten(1).sum(1))


def test_a_second_backward_that_was_not_expected_is_repeated_and_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = net(), [data(4, 0), data(3, 1)]
    probe = in_the_backward(model, monkeypatch)
    spent = []
    for _ in range(2):
        model.zero_grad()
        probe.start(one_backward=True)
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets) / 2
            probe.backward_begins()
            loss.backward()
            probe.backward_ends()
        spent.append(any(call.spent for call in probe._calls.values()))
        gradient = {name: p.grad for name, p in model.named_parameters()}
        statistics = probe.statistics(True, gradient)
        probe.stop()
        assert not statistics.not_covered
        parts = [contributions(model, x, y, 0.5 / len(x)) for x, y in batches]
        for name, total in gradient.items():
            rows = torch.cat([part[name] for part in parts])
            torch.testing.assert_close(statistics.products[name], (rows * total).flatten(1).sum(1))
    assert spent == [True, False]


def test_a_gradient_that_changes_while_the_backward_goes_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (inputs, targets) = net(), data(4)
    probe = in_the_backward(model, monkeypatch)

    def disturb(_: Tensor) -> None:
        model[2].weight.grad.mul_(2)

    handle = model[0].weight.register_post_accumulate_grad_hook(disturb)
    model.zero_grad()
    probe.start(one_backward=True)
    loss = F.cross_entropy(model(inputs), targets)
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    statistics = probe.statistics(True, gradient)
    probe.stop()
    handle.remove()
    assert "2.weight" in statistics.not_covered
    assert "0.weight" in statistics.squared_norms


def test_the_time_of_the_hooks_is_counted() -> None:
    model, (inputs, targets) = net(), data(4)
    probe = PerSampleProbe(model, parameters_of(model))
    probe.start()
    assert probe.seconds == 0.0
    loss = F.cross_entropy(model(inputs), targets)
    in_forward = probe.seconds
    assert in_forward > 0.0
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    assert probe.seconds > in_forward
    probe.stop()
    assert probe.seconds == 0.0


def test_calls_of_functions_in_python_and_views_are_watched() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, delta: Tensor) -> Tensor:
            return 2 * delta

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(x @ self.weight)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.block(x).chunk(2, 1)
            return self.head(first * second)

    model, (inputs, targets) = Two(), data(4)
    statistics, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets))
    assert_norms(statistics, contributions(model, inputs, targets, 1 / 4))


def test_a_single_large_parameter() -> None:
    model, inputs = nn.Linear(400, 400, bias=False), torch.randn(3, 400)
    statistics, gradient = watched(model, lambda: model(inputs).square().sum())
    assert not statistics.not_covered
    torch.testing.assert_close(statistics.products["weight"].sum(), gradient["weight"].square().sum())


def test_a_layer_that_is_replaced_between_two_steps_is_watched() -> None:
    model, (inputs, targets) = net(), data(4)
    probe = PerSampleProbe(model, parameters_of(model))
    before, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets), probe=probe)
    other = nn.Linear(5, 8).double()
    other.weight, other.bias = model[0].weight, model[0].bias
    model[0], model[1] = other, nn.Sequential(model[1])
    after, _ = watched(model, lambda: F.cross_entropy(model(inputs), targets), probe=probe)
    assert not before.not_covered
    assert not after.not_covered
    for name, norms in before.squared_norms.items():
        torch.testing.assert_close(after.squared_norms[name], norms)


class Operations(TorchDispatchMode):
    """Counts operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_small_layer_takes_few_operations() -> None:
    """In small nets their number is what the statistics cost, whatever they calculate."""
    counts = []
    for layers in (2, 6):
        model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(layers)])
        parameters, inputs = parameters_of(model), torch.randn(4, 5)
        probe = PerSampleProbe(model, parameters)
        for _ in range(2):  # the first step asks the graph whose rows are whose
            probe.start(products=False, squares=False)
            loss = model(inputs).square().sum()
            probe.backward_begins()
            loss.backward()
            probe.backward_ends()
            gradient = {name: parameter.grad for name, parameter in parameters.items()}
            with Operations() as operations:
                statistics = probe.statistics(False, None, gradient)
            assert not statistics.not_covered
            probe.stop()
            model.zero_grad()
        counts.append(operations.count)
    each = (counts[1] - counts[0]) / 4
    assert each <= 13
    assert counts[0] - 2 * each <= 10


@pytest.mark.parametrize("released", [True, False])
def test_a_bias_that_is_taken_away_again_is_not_taken_for_a_mistake(released: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is nothing but rounding errors, to which nothing adds up; some samples say how large these may be."""
    monkeypatch.setattr(early, "KEPT", 0 if released else 10**9)
    monkeypatch.setattr(calls_module, "ELEMENTS", 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    images = torch.randn(16, 2, 8, 8)
    statistics, gradient = watched(model, lambda: model(images).square().mean(), products=False, early=True)
    assert not statistics.not_covered
    assert float(gradient["0.bias"].abs().max()) < 1e-6 * float(gradient["0.weight"].abs().max())
    monkeypatch.setattr(calls_module.Call, "magnitude", lambda call: 0.0)
    statistics, _ = watched(model, lambda: model(images).square().mean(), products=False, early=True)
    assert list(statistics.not_covered) == ["0.bias"]  # this is what decides
