"""The zoo: small synthetic architectures, each with the data and the loss it is trained with.

Every architecture is here for something that can go wrong when a training step is observed: samples that are not on
the first axis, weights used twice, parameters outside of any module's call, samples that interact, losses that are no
plain mean. The fields of :class:`Architecture` name these points, so that tests select by them::

    for architecture in ZOO.values():
        model = architecture.build()
        batch = architecture.batch(8, torch.Generator().manual_seed(0))
        architecture.loss(model, batch).backward()

All have fewer than 20,000 parameters and take a few milliseconds for forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Batch(NamedTuple):
    """What one step is trained on."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the batch with its floating point tensors in ``dtype``."""
        inputs = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in self.inputs)
        return Batch(inputs, self.targets.to(dtype) if self.targets.is_floating_point() else self.targets)


BatchMaker = Callable[[int, torch.Generator], Batch]
Loss = Callable[[nn.Module, Batch], Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over samples, and over positions where there are any: logits are (N, ..., classes)."""
    logits = model(*batch.inputs)
    return F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten())


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error over samples and elements."""
    return F.mse_loss(model(*batch.inputs), batch.targets)


def equal_weights(batch: Batch, size: int) -> Tensor:
    """Weights of the samples in a mean loss."""
    return torch.full((size,), 1 / size, dtype=torch.float64)


@dataclass(frozen=True)
class Architecture:
    """One entry of the zoo.

    Attributes:
        name: Its key in :data:`ZOO`.
        factory: Makes the module from the global random number generator; use :meth:`build`.
        make_batch: Draws a batch; use :meth:`batch`.
        loss: The scalar loss the user calls ``backward`` on.
        input_axes: The axis of each input that carries the samples; None: the input is the same for all samples.
        target_axis: The axis of the targets that carries the samples.
        sample_weights: Weights w_n with which the losses of the single samples add up to the loss of the batch.
        slice_sample: Cuts out one sample where slicing axes does not do it.
        batch_norm: Normalises over the batch in train mode; samples are independent in eval mode only.
        dropout: Draws from the global random number generator in train mode.
        interacts: Samples influence each other in eval mode too: there is no gradient of a single sample.
        time_first: Some axis before the samples' one, in the input or within the model.
        flattens: Samples share an axis with something else (positions, experts) within the model.
        shared: A parameter is used more than once in a forward pass, by one module called again or by several modules.
        bare: A parameter is used outside of the forward of a module without submodules.
        frozen: Some parameters do not require gradients.
        unused: Some trainable parameters do not take part in the loss.
        checkpointed: Recomputes activations in the backward pass ("reentrant" breaks ``torch.autograd.grad``).
        no_double_backward: The operation that cannot be differentiated twice in train mode on the CPU, so that there are no
            Hessian-vector products; empty: there are. (``encoder_dropout`` loses them in eval mode.)
        differentiates: Calls ``torch.autograd.grad`` in its own loss.
    """

    name: str
    factory: Callable[[], nn.Module]
    make_batch: BatchMaker
    loss: Loss = cross_entropy
    input_axes: tuple[int | None, ...] = (0,)
    target_axis: int = 0
    sample_weights: Callable[[Batch, int], Tensor] = equal_weights
    slice_sample: Callable[[Batch, int], Batch] | None = None
    batch_norm: bool = False
    dropout: bool = False
    interacts: bool = False
    time_first: bool = False
    flattens: bool = False
    shared: bool = False
    bare: bool = False
    frozen: bool = False
    unused: bool = False
    checkpointed: str = ""
    no_double_backward: str = ""
    differentiates: bool = False

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return a new model in train mode; the same seed gives the same weights, in both precisions."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.factory().to(dtype)

    def batch(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Batch:
        """Return a batch of ``n`` samples."""
        return self.make_batch(n, generator).to(dtype)

    def size(self, batch: Batch) -> int:
        """Return the number of samples in a batch."""
        return batch.targets.shape[self.target_axis]

    def sample(self, batch: Batch, i: int) -> Batch:
        """Return the batch that holds only sample ``i``."""
        if self.interacts:
            raise ValueError(f"The samples of {self.name} interact: one of them alone has another loss.")
        if self.slice_sample is not None:
            return self.slice_sample(batch, i)
        inputs = tuple(x if axis is None else x.narrow(axis, i, 1) for x, axis in zip(batch.inputs, self.input_axes, strict=True))
        return Batch(inputs, batch.targets.narrow(self.target_axis, i, 1))

    def samples(self, batch: Batch) -> Iterator[Batch]:
        """Yield the one-sample batches."""
        return (self.sample(batch, i) for i in range(self.size(batch)))

    def weights(self, batch: Batch) -> Tensor:
        """Return the (N,) float64 weights with which the single losses add up to ``loss(model, batch)``."""
        return self.sample_weights(batch, self.size(batch))


ZOO: dict[str, Architecture] = {}


def _add(name: str, factory: Callable[[], nn.Module], make_batch: BatchMaker, loss: Loss = cross_entropy, **points: Any) -> None:
    assert name not in ZOO, name
    ZOO[name] = Architecture(name, factory, make_batch, loss, **points)


# ---------------------------------------------------------------------------------------------------------------- data


def vectors(features: int, classes: int) -> BatchMaker:
    """Vectors with a class each."""
    return images(features, classes=classes)


def pairs(features: int, outputs: int, inputs: int = 1) -> BatchMaker:
    """Vectors (``inputs`` of them a sample) with a target vector each."""
    return lambda n, generator: Batch(
        tuple(torch.randn(n, features, generator=generator) for _ in range(inputs)), torch.randn(n, outputs, generator=generator)
    )


def images(*shape: int, classes: int = 4) -> BatchMaker:
    """Arrays of any shape with a class each."""
    return lambda n, generator: Batch(
        (torch.randn(n, *shape, generator=generator),), torch.randint(classes, (n,), generator=generator)
    )


def reconstruction(*shape: int) -> BatchMaker:
    """Arrays that are their own targets."""

    def make(n: int, generator: torch.Generator) -> Batch:
        x = torch.randn(n, *shape, generator=generator)
        return Batch((x,), x)

    return make


def sequences(length: int, features: int, classes: int = 4, time_first: bool = False) -> BatchMaker:
    """Sequences of vectors with a class each."""

    def make(n: int, generator: torch.Generator) -> Batch:
        x = torch.randn(n, length, features, generator=generator)
        targets = torch.randint(classes, (n,), generator=generator)
        return Batch((x.transpose(0, 1).contiguous() if time_first else x,), targets)

    return make


def tokens(length: int, vocabulary: int, classes: int = 4) -> BatchMaker:
    """Token sequences with a class each; few enough tokens that some repeat, and token 0 is padding."""
    return lambda n, generator: Batch(
        (torch.randint(vocabulary, (n, length), generator=generator),), torch.randint(classes, (n,), generator=generator)
    )


def next_tokens(length: int, vocabulary: int) -> BatchMaker:
    """Token sequences whose targets are themselves, shifted by one."""

    def make(n: int, generator: torch.Generator) -> Batch:
        text = torch.randint(vocabulary, (n, length + 1), generator=generator)
        return Batch((text[:, :-1],), text[:, 1:])

    return make


# --------------------------------------------------------------------------------------------------- fully connected


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


def _mlp_batch_norm_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))


def _mlp_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 4)
    )


def _deep_linear() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(6)), nn.Linear(8, 3))


class ResidualMLP(nn.Module):
    """Pre-norm residual blocks with learned activations: LayerNorm and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.PReLU(), nn.Linear(20, 12)) for _ in range(3)
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Bilinear(nn.Module):
    """Two inputs meet in ``nn.Bilinear``, a layer with a rule of its own nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 4)
        self.meet = nn.Bilinear(5, 4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.meet(torch.tanh(self.left(left)), torch.tanh(self.right(right)))


class TwoHeads(nn.Module):
    """One trunk, a class and a value: the loss is a weighted sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 16), nn.Tanh())
        self.classes, self.value = nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.classes(features), self.value(features).squeeze(-1)


def _two_heads_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits, value = model(*batch.inputs)
    return F.cross_entropy(logits, batch.targets) + 0.3 * F.mse_loss(value, batch.inputs[0].sum(-1))


def _sum_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(*batch.inputs), batch.targets, reduction="sum")


_CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 4.0])


def _weighted_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(*batch.inputs)
    return F.cross_entropy(logits, batch.targets, weight=_CLASS_WEIGHTS.to(logits.dtype))


def _class_weights(batch: Batch, size: int) -> Tensor:
    weights = _CLASS_WEIGHTS[batch.targets].double()
    return weights / weights.sum()


_add("linear_regression", lambda: nn.Linear(7, 3), pairs(7, 3), squared_error)
_add("mlp", _mlp, images(1, 6, 6))
_add("mlp_dropout", _mlp_dropout, vectors(12, 4), dropout=True)
_add("mlp_batch_norm_dropout", _mlp_batch_norm_dropout, vectors(12, 4), batch_norm=True, dropout=True)
_add("deep_linear", _deep_linear, pairs(8, 3), squared_error)
_add("residual_mlp", ResidualMLP, vectors(12, 4))
_add("bilinear", Bilinear, pairs(6, 2, inputs=2), squared_error, input_axes=(0, 0))
_add("two_heads", TwoHeads, vectors(10, 4), _two_heads_loss)
_add(
    "sum_loss",
    lambda: nn.Sequential(nn.Linear(10, 12), nn.Sigmoid(), nn.Linear(12, 4)),
    vectors(10, 4),
    _sum_loss,
    sample_weights=lambda batch, size: torch.ones(size, dtype=torch.float64),
)
_add(
    "class_weighted",
    lambda: nn.Sequential(nn.Linear(10, 12), nn.GELU(), nn.Linear(12, 4)),
    vectors(10, 4),
    _weighted_loss,
    sample_weights=_class_weights,
)


# ------------------------------------------------------------------------------------------------------- convolutions


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _conv_geometry() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", dilation=2),
        nn.Tanh(),
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, padding_mode="circular", groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, stride=(2, 1), padding=(1, 0), bias=False),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def _conv_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, stride=2),
        nn.ReLU(),
        nn.Conv1d(6, 6, 3, dilation=2, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def _conv_3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4)
    )


class ResNet(nn.Module):
    """Skips, in-place ReLU, and any normalisation."""

    def __init__(self, normalisation: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), normalisation(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, bias=False),
                normalisation(8),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, padding=1, bias=False),
                normalisation(8),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(block(x) + x, inplace=True)
        return self.head(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Depthwise-separable convolution with a channel gate, as in the mobile nets."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.normalise = nn.BatchNorm2d(8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.SiLU(inplace=True), nn.Conv2d(2, 8, 1), nn.Sigmoid()
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.normalise(self.depthwise(F.silu(self.expand(x)))))
        return self.head((x * self.gate(x)).mean((2, 3)))


class UNet(nn.Module):
    """Down and up again with a skip by concatenation: segmentation, one class a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enter(x))
        x = F.relu(self.up(F.relu(self.middle(F.relu(self.down(skip))))))
        return self.leave(torch.cat((skip, x), 1)).movedim(1, -1)


def _segmentation(n: int, generator: torch.Generator) -> Batch:
    return Batch((torch.randn(n, 1, 8, 8, generator=generator),), torch.randint(3, (n, 8, 8), generator=generator))


def _autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 4, stride=2, padding=1),
        nn.ELU(),
        nn.Conv2d(6, 4, 4, stride=2, padding=1),
        nn.InstanceNorm2d(4, affine=True),
        nn.ELU(),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ELU(),
        nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1),
    )


_add("conv", _conv, images(1, 8, 8))
_add("conv_geometry", _conv_geometry, images(2, 8, 8))
_add("conv_1d", _conv_1d, images(2, 20))
_add("conv_3d", _conv_3d, images(1, 4, 4, 4))
_add("resnet_batch_norm", lambda: ResNet(nn.BatchNorm2d), images(3, 6, 6), batch_norm=True)
_add("resnet_group_norm", lambda: ResNet(lambda channels: nn.GroupNorm(2, channels)), images(3, 6, 6))
_add("squeeze_excite", SqueezeExcite, images(3, 6, 6), batch_norm=True)
_add("unet", UNet, _segmentation)
_add("autoencoder", _autoencoder, reconstruction(1, 8, 8), squared_error)


# ----------------------------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Multi-head self-attention from linear layers; spelt out, or through the fused kernel."""

    def __init__(
        self, dimension: int, heads: int = 2, *, causal: bool = False, fused: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.fused, self.rotary = heads, causal, fused, rotary
        self.project_in = nn.Linear(dimension, 3 * dimension)
        self.project_out = nn.Linear(dimension, dimension)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project_in(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            if self.causal:
                scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
            mixed = scores.softmax(-1) @ value
        return self.project_out(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of (..., T, even dimension)."""
    positions = torch.arange(x.shape[-2], dtype=x.dtype)
    frequencies = 100.0 ** (-torch.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1])
    angles = positions[:, None] * frequencies
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()), -1).flatten(-2)


class SwiGLU(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dimension, hidden, bias=False), nn.Linear(dimension, hidden, bias=False)
        self.down = nn.Linear(hidden, dimension, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, dimension: int, attention: Attention, feed_forward: nn.Module, normalisation: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.normalise_1, self.attention = normalisation(dimension), attention
        self.normalise_2, self.feed_forward = normalisation(dimension), feed_forward

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.normalise_1(x))
        return x + self.feed_forward(self.normalise_2(x))


def _feed_forward(dimension: int, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(dimension, 2 * dimension), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dimension, dimension))


class ViT(nn.Module):
    """Patches by a strided convolution, a class token and a bare position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 12) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 5, 12) * 0.02)
        self.blocks = nn.Sequential(*(Block(12, Attention(12), _feed_forward(12), nn.LayerNorm) for _ in range(2)))
        self.normalise, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(x), -1, -1), x), 1) + self.positions
        return self.head(self.normalise(self.blocks(x))[:, 0])


class Mixer(nn.Module):
    """Linear layers over positions and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise_1, self.normalise_2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.positions, self.channels = _feed_forward(6), _feed_forward(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions(self.normalise_1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.normalise_2(x))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """torch's own encoder layers, either axis order, with a padding mask passed by keyword; classifies the mean."""

    def __init__(self, batch_first: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(11, 12, padding_idx=0)
        self.positions = nn.Embedding(6, 12)  # called without a batch axis
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(12, 2, 20, dropout, batch_first=batch_first) for _ in range(2))
        self.head = nn.Linear(12, 4)

    def forward(self, text: Tensor) -> Tensor:
        padding = text == 0
        padding[:, 0] = False  # a row of nothing but padding has no attention weights
        x = self.embedding(text) + self.positions(torch.arange(text.shape[1]))
        x = x if self.batch_first else x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.head(x.mean(1 if self.batch_first else 0))


class CrossAttention(nn.Module):
    """``nn.MultiheadAttention`` with its own key and value sizes and added bias vectors, asked for its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 8) * 0.5)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, add_bias_kv=True, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(query=self.queries.expand(len(x), -1, -1), key=x, value=x, need_weights=True)
        return self.head(mixed.flatten(1))


class GPT(nn.Module):
    """Causal decoder with bare positions; the output layer is the embedding again."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 12)
        self.positions = nn.Parameter(torch.randn(8, 12) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(12, Attention(12, causal=True, fused=True), _feed_forward(12, dropout), nn.LayerNorm) for _ in range(2))
        )
        self.normalise = nn.LayerNorm(12)
        self.head = nn.Linear(12, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, text: Tensor) -> Tensor:
        x = self.dropout(self.embedding(text) + self.positions[: text.shape[1]])
        return self.head(self.normalise(self.blocks(x)))


class ModernDecoder(nn.Module):
    """RMSNorm, SwiGLU and rotary positions, no weight shared."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 12)
        self.blocks = nn.Sequential(
            *(Block(12, Attention(12, causal=True, rotary=True), SwiGLU(12, 16), nn.RMSNorm) for _ in range(2))
        )
        self.normalise, self.head = nn.RMSNorm(12), nn.Linear(12, 13, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.normalise(self.blocks(self.embedding(text))))


class OwnLoss(nn.Module):
    """A decoder that computes its own loss from ``labels``, ignoring those that are -100."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = ModernDecoder()

    def forward(self, text: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.decoder(text)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100), "logits": logits}


def _masked_tokens(n: int, generator: torch.Generator) -> Batch:
    batch = next_tokens(7, 13)(n, generator)
    ignored = torch.rand(batch.targets.shape, generator=generator) < 0.4
    ignored[:, 0] = False  # every sample has at least one label
    return Batch(batch.inputs, batch.targets.masked_fill(ignored, -100))


def _label_weights(batch: Batch, size: int) -> Tensor:
    labels = (batch.targets != -100).sum(1).double()
    return labels / labels.sum()


class MixtureOfExperts(nn.Module):
    """Every position goes to the one expert its router likes best; the last expert is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(4))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(0, 1)
        shares, chosen = self.router(positions)[:, :3].softmax(-1).max(-1)
        outputs = []
        rows = []
        for index, expert in enumerate(self.experts):
            row = (chosen == index).nonzero().squeeze(-1)
            if row.numel():
                rows.append(row)
                outputs.append(expert(positions[row]) * shares[row, None])
        mixed = torch.zeros_like(positions).index_copy(0, torch.cat(rows), torch.cat(outputs))
        return self.head((positions + mixed).view_as(x).mean(1))


_add("vit", ViT, images(1, 8, 8), bare=True)
_add("mixer", Mixer, sequences(6, 8))
_add("encoder_batch_first", lambda: Encoder(batch_first=True), tokens(6, 11), no_double_backward="fused attention")
_add(
    "encoder_time_first", lambda: Encoder(batch_first=False), tokens(6, 11), time_first=True, no_double_backward="fused attention"
)
_add("encoder_dropout", lambda: Encoder(batch_first=True, dropout=0.2), tokens(6, 11), dropout=True)
_add("cross_attention", CrossAttention, sequences(5, 6), bare=True)
_add("gpt_tied", GPT, next_tokens(8, 13), shared=True, bare=True, no_double_backward="fused attention")
_add(
    "gpt_tied_dropout",
    lambda: GPT(0.2),
    next_tokens(8, 13),
    shared=True,
    bare=True,
    no_double_backward="fused attention",
    dropout=True,
)
_add("modern_decoder", ModernDecoder, next_tokens(7, 13))
_add(
    "own_loss_ignored_labels",
    OwnLoss,
    _masked_tokens,
    lambda model, batch: model(*batch.inputs, labels=batch.targets)["loss"],
    sample_weights=_label_weights,
)
_add("mixture_of_experts", MixtureOfExperts, sequences(5, 8), flattens=True, unused=True)


# ----------------------------------------------------------------------------------------------------------- recurrent


class Recurrent(nn.Module):
    """Any of torch's recurrent layers; classifies the last position."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool = True, bidirectional: bool = False, layers: int = 1) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.recurrent = kind(5, 8, num_layers=layers, batch_first=batch_first, bidirectional=bidirectional)
        self.head = nn.Linear(16 if bidirectional else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.recurrent(x)
        return self.head(outputs[:, -1] if self.batch_first else outputs[-1])


class CellLoop(nn.Module):
    """A cell called once a position, the loop being in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for position in x.unbind(1):
            state = self.cell(position, state)
        return self.head(state)


class Seq2Seq(nn.Module):
    """GRU encoder, GRU decoder with dot-product attention over the encoder's states, one embedding for both."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder, self.decoder = nn.GRU(6, 8, batch_first=True), nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.embedding(source))
        decoded, _ = self.decoder(self.embedding(target), state)
        context = (decoded @ memory.transpose(1, 2)).softmax(-1) @ memory
        return self.head(torch.cat((decoded, context), -1))


def _translation(n: int, generator: torch.Generator) -> Batch:
    source = torch.randint(11, (n, 6), generator=generator)
    target = torch.randint(11, (n, 5), generator=generator)
    return Batch((source, target[:, :-1]), target[:, 1:])


class StateSpace(nn.Module):
    """Diagonal linear recurrence with input-dependent step size, all in bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.project_in, self.step_size = nn.Linear(5, 8), nn.Linear(5, 8)
        self.decay = nn.Parameter(torch.linspace(-1.0, 1.0, 8))
        self.skip = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        inputs, sizes = self.project_in(x), F.softplus(self.step_size(x))
        keep = torch.exp(-sizes * self.decay.exp())
        state = torch.zeros_like(inputs[:, 0])
        for position in range(x.shape[1]):
            state = keep[:, position] * state + sizes[:, position] * inputs[:, position]
        return self.head(state + self.skip * inputs[:, -1])


_add("rnn", lambda: Recurrent(nn.RNN), sequences(6, 5))
_add("lstm", lambda: Recurrent(nn.LSTM, layers=2), sequences(6, 5))
_add("lstm_bidirectional", lambda: Recurrent(nn.LSTM, bidirectional=True), sequences(6, 5))
_add(
    "gru_time_first",
    lambda: Recurrent(nn.GRU, batch_first=False),
    sequences(6, 5, time_first=True),
    input_axes=(1,),
    time_first=True,
)
_add("cell_loop", CellLoop, sequences(6, 5), shared=True)
_add("seq2seq", Seq2Seq, _translation, input_axes=(0, 0), shared=True)
_add("state_space", StateSpace, sequences(6, 5), bare=True)


# --------------------------------------------------------------------------------------------------- embeddings, pairs


class TextConv(nn.Module):
    """Embedding with padding, convolutions of several widths, the greatest activation of each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6, padding_idx=0)
        self.filters = nn.ModuleList(nn.Conv1d(6, 4, width) for width in (2, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text).transpose(1, 2)
        return self.head(torch.cat([F.relu(each(x)).amax(-1) for each in self.filters], -1))


class Recommender(nn.Module):
    """Bags of items and a user, scored by a small net. Bags are rows, or one flat list with offsets."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.items, self.users = nn.EmbeddingBag(10, 5, mode=mode), nn.Embedding(7, 5)
        self.score = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, users: Tensor, items: Tensor, offsets: Tensor | None = None) -> Tensor:
        return self.score(torch.cat((self.users(users), self.items(items, offsets)), -1)).squeeze(-1)


def _purchases(n: int, generator: torch.Generator) -> Batch:
    users, items = torch.randint(7, (n,), generator=generator), torch.randint(10, (n, 4), generator=generator)
    return Batch((users, items), torch.randint(2, (n,), generator=generator).float())


def _purchases_with_offsets(n: int, generator: torch.Generator) -> Batch:
    lengths = torch.randint(1, 5, (n,), generator=generator)
    users, items = torch.randint(7, (n,), generator=generator), torch.randint(10, (int(lengths.sum()),), generator=generator)
    return Batch((users, items, lengths.cumsum(0) - lengths), torch.randint(2, (n,), generator=generator).float())


def _one_bag(batch: Batch, i: int) -> Batch:
    users, items, offsets = batch.inputs
    end = offsets[i + 1] if i + 1 < len(offsets) else len(items)
    return Batch(
        (users[i : i + 1], items[int(offsets[i]) : int(end)], torch.zeros(1, dtype=torch.long)), batch.targets[i : i + 1]
    )


def _binary(model: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(*batch.inputs), batch.targets)


class Siamese(nn.Module):
    """One encoder called for both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.encoder(left) - self.encoder(right)).pow(2).sum(-1, keepdim=True)


class Contrastive(Siamese):
    """The siamese encoder with InfoNCE over the batch: each sample is the others' counterexample."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.normalize(self.encoder(left), dim=-1) @ F.normalize(self.encoder(right), dim=-1).T / 0.5


def _diagonal_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(*batch.inputs)
    return F.cross_entropy(logits, torch.arange(len(logits)))


class TwoTowers(nn.Module):
    """An encoder for each side, as in image-text models; the loss is contrastive."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.normalize(self.left(left), dim=-1) @ F.normalize(self.right(right), dim=-1).T / self.temperature


class VAE(nn.Module):
    """Two losses; the latent noise is drawn in the forward pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(10, 8), nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def _evidence_bound(model: nn.Module, batch: Batch) -> Tensor:
    reconstructed, mean, log_variance = model(*batch.inputs)
    divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(-1).mean()
    return F.mse_loss(reconstructed, batch.targets, reduction="none").sum(-1).mean() + 0.1 * divergence


_add("text_conv", TextConv, tokens(7, 9))
_add("recommender", lambda: Recommender("mean"), _purchases, _binary, input_axes=(0, 0), no_double_backward="embedding bag")
_add(
    "recommender_offsets",
    lambda: Recommender("sum"),
    _purchases_with_offsets,
    _binary,
    slice_sample=_one_bag,
    flattens=True,
    no_double_backward="embedding bag",
)
_add("siamese", Siamese, pairs(8, 1, inputs=2), squared_error, input_axes=(0, 0), shared=True)
_add("contrastive", Contrastive, pairs(8, 1, inputs=2), _diagonal_cross_entropy, input_axes=(0, 0), shared=True, interacts=True)
_add("two_towers", TwoTowers, pairs(8, 1, inputs=2), _diagonal_cross_entropy, input_axes=(0, 0), bare=True, interacts=True)
_add("vae", VAE, reconstruction(10), _evidence_bound, dropout=True)


# -------------------------------------------------------------------------------------------------------------- graphs


class GraphLayers(nn.Module):
    """Neighbourhood means and linear layers. Many small graphs, or one graph whose nodes are the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        mixing = adjacency / adjacency.sum(-1, keepdim=True)
        return self.second(mixing @ F.relu(self.first(mixing @ nodes)))


def _graphs(*leading: int) -> BatchMaker:
    def make(n: int, generator: torch.Generator) -> Batch:
        axes = (n, *leading)
        size = axes[-1]
        edges = (torch.rand(*axes, size, generator=generator) < 0.4).float()
        adjacency = torch.maximum(edges, torch.eye(size))
        return Batch((torch.randn(*axes, 6, generator=generator), adjacency), torch.randint(4, axes, generator=generator))

    return make


_add("graph_batch", GraphLayers, _graphs(5), input_axes=(0, 0))
_add("graph_of_samples", GraphLayers, _graphs(), input_axes=(0, 0), interacts=True)


# ------------------------------------------------------------------------------------------- parameters in odd places


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank correction in bare parameters."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.randn(outputs, rank) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def _weight_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 6, 3)), nn.ReLU(), nn.Flatten(), parametrizations.weight_norm(nn.Linear(48, 4))
    )


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight transposed, through ``F.linear`` and not through a module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(9, 5)
        self.offset = nn.Parameter(torch.zeros(9))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.encoder(x)), self.encoder.weight.T, self.offset)


class Recursive(nn.Module):
    """One block applied four times, as in universal transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x + self.block(x)
        return self.head(x)


class Flattening(nn.Module):
    """Samples and positions share the first axis within the model, as in many sequence models."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.positions(x.reshape(-1, 5)).view(len(x), -1, 8).amax(1))


class FrozenAndUnused(nn.Module):
    """A frozen trunk under a trained one, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 10), nn.ReLU()).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4))
        self.forgotten = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class Checkpointed(nn.Module):
    """Activations of the blocks are thrown away and recomputed in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Linear(8, 12)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)) for _ in range(2))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class HyperNetwork(nn.Module):
    """A net that makes the weights of another, for each sample its own."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.bias = nn.Linear(6, 18), nn.Parameter(torch.zeros(3))

    def forward(self, condition: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("noi,ni->no", self.maker(condition).view(-1, 3, 6), x) + self.bias


class Scaled(nn.Module):
    """Bare parameters of the root module: a temperature, and a weight used through ``einsum``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 9) / 3)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,ni->no", self.weight, x) / self.temperature


class Solution(nn.Module):
    """u(x) = 1 + x net(x), so that u(0) = 1 holds by construction."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 1 + x * self.net(x)


def _equation(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared residual of u' = -u: a physics-informed loss."""
    x = batch.inputs[0].detach().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (slope + u).pow(2).mean()


class Siren(nn.Module):
    """Sine activations: an image as a function of the coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(2, 16), nn.Linear(16, 16)))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(3 * layer(x))
        return self.head(x)


_add("lora", lambda: nn.Sequential(LoRALinear(8, 12), nn.ReLU(), LoRALinear(12, 4)), vectors(8, 4), frozen=True, bare=True)
_add("weight_norm", _weight_norm, images(2, 10), bare=True)
_add("tied_autoencoder", TiedAutoencoder, reconstruction(9), squared_error, shared=True, bare=True)
_add("recursive", Recursive, vectors(8, 4), shared=True)
_add("flattening", Flattening, sequences(6, 5), flattens=True)
_add("frozen_and_unused", FrozenAndUnused, vectors(8, 4), frozen=True, unused=True)
_add("checkpointed", lambda: Checkpointed(reentrant=False), vectors(8, 4), checkpointed="non-reentrant")
_add(
    "checkpointed_reentrant",
    lambda: Checkpointed(reentrant=True),
    vectors(8, 4),
    checkpointed="reentrant",
    no_double_backward="re-entrant checkpointing",
)
_add("hypernetwork", HyperNetwork, pairs(6, 3, inputs=2), squared_error, input_axes=(0, 0), bare=True)
_add("bare_parameters", Scaled, vectors(9, 4), bare=True)
_add("physics_informed", Solution, pairs(1, 1), _equation, differentiates=True)
_add("siren", Siren, pairs(2, 3), squared_error)
