"""Every rule against a loop over single samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cockpit_lite.probes.per_sample import forms, probe, survey
from tests.per_sample.checker import check, watched


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (30, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    check(nn.Linear(5, 3, bias=bias), torch.randn(6, *shape))


@pytest.mark.parametrize("size", [(12, 2), (3, 40)])  # Gram matrices, and one matrix a sample
def test_linear_both_ways_to_the_norm(size: tuple[int, int]) -> None:
    positions, features = size
    check(nn.Linear(features, features), torch.randn(4, positions, features))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "groups": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "bias": False},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect", "stride": 2},
        {"padding": "same", "padding_mode": "replicate"},
        {"groups": 4},
    ],
)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolution(options: dict, dimensions: int) -> None:
    if dimensions == 3 and options.get("padding_mode") == "reflect":
        pytest.skip("torch has no reflection padding in three dimensions for this layer on all platforms")
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    kernel = (3, 2, 2)[:dimensions] if options.get("padding") != "same" else 3
    check(kind(4, 8, kernel, **options), torch.randn(3, 4, *(7, 6, 5)[:dimensions]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "output_padding": 2, "bias": False},
        {"dilation": 2, "groups": 2},
    ],
)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolution(options: dict, dimensions: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    check(kind(4, 6, 3, **options), torch.randn(3, 4, *(5, 4, 3)[:dimensions]))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}])
@pytest.mark.parametrize("shape", [(), (6,), (3, 4)])
def test_embedding(options: dict, shape: tuple[int, ...]) -> None:
    check(nn.Embedding(5, 4, **options), torch.randint(5, (4, *shape)))  # few rows: tokens repeat


@pytest.mark.parametrize("options", [{}, {"mode": "sum"}, {"mode": "mean", "padding_idx": 1}, {"mode": "max"}])
def test_embedding_bag(options: dict) -> None:
    check(nn.EmbeddingBag(5, 4, **options), torch.randint(5, (4, 6)))


def test_embedding_bag_with_weights() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 4, mode="sum")

        def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
            return self.bag(indices, per_sample_weights=weights)

    check(Weighted(), torch.randint(5, (4, 6)), torch.rand(4, 6))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("normalized", [(5,), (3, 5)])
def test_norms_over_features(kind: type[nn.Module], normalized: tuple[int, ...]) -> None:
    module = kind(normalized)
    nn.init.normal_(module.weight)
    check(module, torch.randn(4, 2, 3, 5))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.GroupNorm(2, 4), (4, 3, 3)),
        (nn.GroupNorm(1, 4), (4,)),
        (nn.InstanceNorm1d(4, affine=True), (4, 6)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 3)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(), (4, 3, 3)),
        (nn.InstanceNorm3d(4, affine=True), (4, 2, 2, 2)),
        (nn.BatchNorm1d(4).eval(), (4,)),
        (nn.BatchNorm1d(4).eval(), (4, 6)),
        (nn.BatchNorm2d(4).eval(), (4, 3, 3)),
        (nn.BatchNorm2d(4).eval(), (4, 5, 4)),
        (nn.BatchNorm3d(4).eval(), (4, 2, 2, 2)),
    ],
)
def test_norms_over_positions(module: nn.Module, shape: tuple[int, ...]) -> None:
    nn.init.normal_(module.weight)
    check(module, torch.randn(5, *shape))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent(kind: type[nn.Module], options: dict, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "generic_forms", None)  # the rule itself
    axis = 0 if batch_first else 1
    inputs = torch.randn(4, 7, 3) if batch_first else torch.randn(7, 4, 3)
    check(kind(3, 5, batch_first=batch_first, **options), inputs, axes=[axis], axis=axis)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_final_state(kind: type[nn.Module], bidirectional: bool) -> None:
    def final(output: tuple) -> Tensor:
        state = output[1]
        return state if isinstance(state, Tensor) else state[0] + state[1].tanh()

    module = kind(3, 5, batch_first=True, num_layers=2, bidirectional=bidirectional)
    check(module, torch.randn(4, 7, 3), axis=1, pick=final)


def test_recurrent_relu() -> None:
    check(nn.RNN(3, 5, nonlinearity="relu", batch_first=True), torch.randn(4, 7, 3))


def test_recurrent_initial_state() -> None:
    check(nn.GRU(3, 5), torch.randn(7, 4, 3), torch.randn(1, 4, 5), axes=[1, 1], axis=1)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_recurrent_projections() -> None:
    check(nn.LSTM(3, 5, proj_size=2, num_layers=2, bidirectional=True, batch_first=True), torch.randn(4, 7, 3))


class Packed(nn.Module):
    """Sequences of different lengths, packed; classifies every position, or the final state."""

    def __init__(self, kind: type[nn.RNNBase], final: bool, in_order: bool) -> None:
        super().__init__()
        self.layer, self.head, self.final, self.in_order = kind(3, 5, batch_first=True), nn.Linear(5, 2), final, in_order

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.in_order)
        output, state = self.layer(packed)
        if self.final:
            return self.head((state if isinstance(state, Tensor) else state[0])[-1])
        return self.head(pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("lengths", [(7, 6, 5, 2), (7, 3, 5, 5)])
def test_packed_sequences(kind: type[nn.RNNBase], final: bool, lengths: tuple[int, ...]) -> None:
    in_order = sorted(lengths, reverse=True) == list(lengths)
    check(Packed(kind, final, in_order), torch.randn(4, 7, 3), torch.tensor(lengths))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_between_recurrent_layers(kind: type[nn.RNNBase], batch_first: bool) -> None:
    module = kind(3, 5, num_layers=2, dropout=0.4, batch_first=batch_first).double()
    axis = 0 if batch_first else 1
    inputs = torch.randn(4, 7, 3, dtype=torch.float64).transpose(0, axis)

    def losses() -> Tensor:
        output, state = module(inputs)
        last = state if isinstance(state, Tensor) else state[0]
        return output.sin().sum((1 - axis, 2)) + last.cos().sum((0, 2))

    torch.manual_seed(5)
    statistics, _ = watched(module, lambda: losses().sum())
    assert not statistics.not_covered
    for n in range(4):
        torch.manual_seed(5)
        module.zero_grad()
        losses()[n].backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(statistics.squared_norms[name][n], parameter.grad.square().sum())


class Attention(nn.Module):
    """Self-attention with the mask the test asks for."""

    def __init__(self, mask: str, need_weights: bool, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.mask, self.need_weights = mask, need_weights

    def forward(self, x: Tensor) -> Tensor:
        positions = x.shape[1 if self.attention.batch_first else 0]
        causal = nn.Transformer.generate_square_subsequent_mask(positions, dtype=x.dtype) if self.mask == "causal" else None
        samples = x.shape[0 if self.attention.batch_first else 1]
        padding = (torch.arange(positions) > 2).expand(samples, -1) if self.mask == "padding" else None
        return self.attention(x, x, x, attn_mask=causal, key_padding_mask=padding, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("read", [True, False])
def test_attention(batch_first: bool, mask: str, need_weights: bool, read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not read:  # as if the graph looked otherwise: the attention is repeated
        monkeypatch.setattr(probe, "watch_projections", lambda *_: {})
    axis = 0 if batch_first else 1
    inputs = torch.randn(4, 5, 8) if batch_first else torch.randn(5, 4, 8)
    check(Attention(mask, need_weights, batch_first=batch_first), inputs, axes=[axis], axis=axis)


@pytest.mark.parametrize(
    "options", [{"kdim": 6, "vdim": 6}, {"bias": False}, {"add_zero_attn": True}, {"kdim": 6, "vdim": 6, "add_bias_kv": True}]
)
def test_attention_across(options: dict) -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    width = options.get("kdim", 8)
    memory = torch.randn(4, 7, width)
    check(module, torch.randn(4, 5, 8), memory, memory.clone())


def test_attention_that_pays_attention_to_its_weights() -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    inputs = torch.randn(4, 5, 8)
    check(module, inputs, inputs.clone(), inputs.clone(), pick=lambda output: output[1].tanh())


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_in_attention(read: bool, need_weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not read:
        monkeypatch.setattr(probe, "watch_projections", lambda *_: {})
    module = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True).double()
    inputs = torch.randn(4, 5, 8, dtype=torch.float64)
    torch.manual_seed(5)
    statistics, gradient = watched(module, lambda: module(inputs, inputs, inputs, need_weights=need_weights)[0].square().sum())
    state = torch.get_rng_state()
    assert not statistics.not_covered
    # given the dropped weights the samples are independent: leave one out and the gradient misses its contribution
    for n in range(4):
        torch.manual_seed(5)
        module.zero_grad()
        keep = torch.arange(4) != n
        module(inputs, inputs, inputs, need_weights=need_weights)[0][keep].square().sum().backward()
        for name, parameter in module.named_parameters():
            contribution = gradient[name] - parameter.grad
            torch.testing.assert_close(statistics.squared_norms[name][n], contribution.square().sum())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_by_chunks_of_samples(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms.form, "CHUNK", 2 * 4 * 9 * 36 + 1)  # two samples fit
    made = []
    make = forms.Chunks.__init__

    def counted(self: forms.Chunks, *args: object) -> None:
        made.append(args[2])
        make(self, *args)

    monkeypatch.setattr(forms.Chunks, "__init__", counted)
    module = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    check(module, torch.randn(5, 4, 6, 6))
    check(nn.Sequential(module, nn.Conv2d(6, 4, 1), module), torch.randn(5, 4, 6, 6))
    assert set(made) >= {2}
