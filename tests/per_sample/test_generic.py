"""Modules without a rule, and parameters in odd places, against a loop over single samples."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics, generic
from cockpit_lite.probes.per_sample.rules import NoRule
from tests.per_sample.checker import check, watched


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (nn.PReLU(3), [(3, 4)]),
        (nn.Bilinear(3, 4, 2), [(3,), (4,)]),
        (nn.GRUCell(3, 4), [(3,)]),
        (nn.LSTMCell(3, 4), [(3,)]),
        (nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True), [(5, 8), (6, 8)]),
    ],
)
def test_modules_without_a_rule(module: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    check(module, *(torch.randn(4, *shape) for shape in shapes))


class ClassToken(nn.Module):
    """Bare parameters beside a trainable child."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 5))
        self.positions = nn.Parameter(torch.randn(1, 4, 5))
        self.layer = nn.Linear(5, 5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.dropout(self.layer(x)).tanh()


def test_bare_parameters() -> None:
    check(ClassToken(), torch.randn(4, 3, 5))


def test_random_numbers_in_the_forward_are_drawn_again_and_not_taken_from_the_user() -> None:
    model, inputs = ClassToken(0.5).double(), torch.randn(4, 3, 5, dtype=torch.float64)
    cotangent = torch.randn(4, 4, 5, dtype=torch.float64)
    torch.manual_seed(3)
    statistics, _ = watched(model, lambda: (model(inputs) * cotangent).sum())
    state = torch.get_rng_state()
    assert not statistics.not_covered
    for n in range(4):
        torch.manual_seed(3)
        model.zero_grad()
        (model(inputs) * cotangent)[n].sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(statistics.squared_norms[name][n], parameter.grad.square().sum())
    assert torch.equal(state, torch.get_rng_state())


def test_what_failed_since_random_numbers_are_drawn_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, tried = ClassToken(0.5).double(), torch.randn(4, 3, 5, dtype=torch.float64), []
    vmap = generic.vmap
    monkeypatch.setattr(generic, "vmap", lambda *args, **kwargs: tried.append(kwargs["randomness"]) or vmap(*args, **kwargs))
    for step in (["error", "different"], ["different"], ["different"]):
        statistics, _ = watched(model, lambda: model(inputs).square().sum())
        assert not statistics.not_covered
        assert tried == step
        tried.clear()
    statistics, _ = watched(model.eval(), lambda: model(inputs).square().sum())  # nothing is drawn, so nothing has to be known
    assert not statistics.not_covered
    assert tried == ["error"]


class Scaled(nn.Module):
    """A bare parameter before an encoder whose layers leave parts of features and of attention out."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.rand(8)), nn.Dropout(0.2)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.out(x * self.scale))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("chunk", [1_000_000, 20])
def test_samples_get_their_own_part_of_what_dropout_drew(batch_first: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, inputs = Scaled(batch_first).double(), torch.randn(*((5, 3) if batch_first else (3, 5)), 8, dtype=torch.float64)

    def step() -> PerSampleStatistics:
        torch.manual_seed(3)
        return watched(model, lambda: model(inputs).square().sum())[0]

    def refuse(*_: object) -> None:
        raise NoRule("this way is closed")

    with monkeypatch.context() as patch:
        patch.setattr(generic, "_masks", refuse)
        slow = step()
    monkeypatch.setattr(generic, "_one_backward_a_sample", refuse)
    monkeypatch.setattr(generic, "CHUNK", chunk)
    quick = step()
    assert not slow.not_covered
    assert not quick.not_covered
    for found, expected in ((quick.squared_norms, slow.squared_norms), (quick.products, slow.products)):
        torch.testing.assert_close(found["scale"], expected["scale"])


def test_random_numbers_that_are_no_masks_are_drawn_again() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.layer = nn.Parameter(torch.randn(5)), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.dropout(x * self.weight + torch.randn_like(x), 0.5))

    model, inputs = Noisy().double(), torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(3)
    statistics, _ = watched(model, lambda: model(inputs).square().sum())
    assert not statistics.not_covered
    for n in range(4):
        torch.manual_seed(3)
        (gradient,) = torch.autograd.grad(model(inputs)[n].square().sum(), model.weight)
        torch.testing.assert_close(statistics.squared_norms["weight"][n], gradient.square().sum())


def test_random_numbers_of_another_library_are_named() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight * random.random()

    model = Noisy()
    random.seed(3)
    statistics, _ = watched(model, lambda: model(torch.randn(4, 5)).square().sum())
    state = random.getstate()
    assert "random numbers" in statistics.not_covered["weight"]
    random.seed(3)
    random.random()
    assert state == random.getstate()


@pytest.mark.parametrize("around", [False, True])
def test_a_batch_normalisation_of_another_class_is_that_of_torch(around: bool) -> None:
    class Activated(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    class Scaled(nn.Module):
        def __init__(self, scale: Tensor) -> None:
            super().__init__()
            self.scale, self.norm = nn.Parameter(scale), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x * self.scale)

    inputs, scale = torch.randn(8, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    model = (Scaled(scale) if around else Activated(5)).double()
    plain = nn.Sequential(nn.BatchNorm1d(5), nn.Identity() if around else nn.Tanh()).double()
    statistics, gradient = watched(model, lambda: model(inputs).sin().sum())
    expected, _ = watched(plain, lambda: plain(inputs * scale if around else inputs).sin().sum())
    assert not statistics.not_covered
    assert all("batch statistics" in note for note in statistics.conditional.values())
    for name in ("weight", "bias"):
        found = statistics.squared_norms[f"norm.{name}" if around else name]
        torch.testing.assert_close(found, expected.squared_norms[f"0.{name}"])
    for name, along in statistics.products.items():
        torch.testing.assert_close(along.sum(), gradient[name].square().sum())
    assert int((model.norm if around else model).num_batches_tracked) == 1


class TiedHead(nn.Module):
    """The embedding is the output layer, through ``F.linear`` or through a module of its own."""

    def __init__(self, through_module: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False) if through_module else None
        if self.head is not None:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layer(self.embedding(tokens)).tanh()
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)


@pytest.mark.parametrize("through_module", [True, False])
def test_tied_head(through_module: bool) -> None:
    check(TiedHead(through_module), torch.randint(7, (4, 5)))


@pytest.mark.parametrize("normalization", [parametrizations.weight_norm, parametrizations.orthogonal, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parametrized_weight(normalization: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = normalization(nn.Linear(5, 5))  # type: ignore[operator]

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    if normalization is torch.nn.utils.weight_norm:  # its weight is no leaf, which deepcopy refuses: one step is enough
        model, inputs = Net().double(), torch.randn(4, 5, dtype=torch.float64)
        statistics, gradient = watched(model, lambda: model(inputs).square().sum())
        assert not statistics.not_covered
        for name, along in statistics.products.items():
            torch.testing.assert_close(along.sum(), gradient[name].square().sum())
        return
    check(Net(), torch.randn(4, 5))


def test_shared_module_called_twice_keeps_the_cross_term() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.conv, self.norm = nn.Linear(6, 6), nn.Conv1d(1, 1, 3, padding=1), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.norm(self.layer(x).tanh() + self.conv(x[:, None])[:, 0].sin())
            return x

    check(Twice(), torch.randn(4, 6))


def test_one_weight_in_different_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.scale = nn.LayerNorm(6)
            self.scale.weight = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.scale(self.first(x)).tanh())

    check(Tied(), torch.randn(4, 6))


def test_outputs_made_from_each_other_are_not_counted_twice() -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state[1] * state[0], self.head(state[0])

    check(Unrolled(), torch.randn(4, 5, 3), pick=lambda output: output[0] + output[1].sin())


def test_a_forward_that_decides_by_value_is_repeated_sample_by_sample() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            rows = [row * self.weight if row.sum() > 0 else row - self.weight for row in x]
            return torch.stack(rows).tanh()

    check(Deciding(), torch.randn(6, 3))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("positions", [1, 3])
def test_a_table_that_all_samples_share_belongs_to_none(size: int, positions: int) -> None:
    class Shifted(nn.Module):  # linear with one output: the gradients of all samples at the table are parallel
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(positions, 4), nn.Linear(positions * 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.table(torch.arange(positions))).flatten(1))

    check(Shifted(), torch.randn(size, positions, 4))


class Related(nn.Module):
    """Attention with a table of relative positions that is looked up once for all samples, and used by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 1)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        places = torch.arange(5)
        bias = self.table(places - places[:, None] + 4)[..., 0]
        for layer in self.layers:
            x = F.dropout(layer((x @ x.mT + bias).softmax(-1) @ x).tanh(), dropout)
        return x


class WithOwnLoss(nn.Module):
    """Returns a loss beside what it is made of, as the models of transformers do, and reads a weight of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head, self.shift = nn.Linear(4, 4), Related(), nn.Linear(4, 3), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body((x + self.shift) @ self.first.weight)
        logits = self.head(hidden.mean(1))
        return {"loss": logits.square().sum(), "logits": logits}


def test_a_table_of_relative_positions() -> None:
    check(Related(), torch.randn(4, 5, 4))


def test_a_model_that_returns_its_own_loss() -> None:
    def own_loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)["loss"]

    model, inputs = WithOwnLoss().double(), torch.randn(4, 5, 4, dtype=torch.float64)
    model.first.bias.requires_grad_(False)
    statistics, gradient = watched(model, lambda: own_loss(model, inputs))
    assert not statistics.not_covered
    for n in range(4):
        found = torch.autograd.grad(own_loss(model, inputs[n : n + 1]), [model.get_parameter(name) for name in gradient])
        for name, row in zip(gradient, found, strict=True):
            torch.testing.assert_close(statistics.squared_norms[name][n], row.square().sum())


def test_calls_around_are_remembered_where_they_were_of_use() -> None:
    model, inputs = WithOwnLoss().double(), torch.randn(4, 5, 4, dtype=torch.float64)
    model.first.bias.requires_grad_(False)
    probe = PerSampleProbe(model, {name: p for name, p in model.named_parameters() if p.requires_grad})
    steps = [watched(model, lambda: model(inputs)["loss"], probe=probe)[0] for _ in range(3)]
    assert probe._learned.modules == {id(model), id(model.body)}
    for statistics in steps:
        assert not statistics.not_covered
        for name, norms in statistics.squared_norms.items():
            torch.testing.assert_close(norms, steps[0].squared_norms[name])


def test_samples_that_are_compared_with_all_others_are_told_apart_before() -> None:
    class Compared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            first, second = self.first(x), self.second(x.sin())
            return first @ second.T, first, second

    model, inputs = Compared().double(), torch.randn(6, 4, dtype=torch.float64)
    statistics, _ = watched(model, lambda: (model(inputs)[1] * model(inputs)[2]).square().sum())
    assert not statistics.not_covered
    for n in range(6):
        _, first, second = model(inputs[n : n + 1])
        gradients = torch.autograd.grad((first * second).square().sum(), list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(statistics.squared_norms[name][n], gradient.square().sum())
