"""First and second derivatives along a direction, against those that autograd takes of the same function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import _VF, Tensor, nn
from torch.autograd import forward_ad

from cockpit_lite.curvature.taylor import NoForwardMode, Taken, TaylorMode, moves_of, with_moves
from cockpit_lite.curvature.taylor.rule import RULES, rule
from cockpit_lite.curvature.taylor.rule import aten as operations

aten = torch.ops.aten


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def check(function: Callable[..., Tensor], *values: Tensor, frozen: tuple[int, ...] = ()) -> None:
    """Compare the moves of ``function(*values)`` with the derivatives of ``function(*(values + t * directions))`` in t.

    The values bend as well: each is moved through ``v + w t + u t^2 / 2`` once, and along straight lines once.
    """
    generator = torch.Generator().manual_seed(1)

    def like(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)

    for bends, is_frugal in ((False, False), (True, False), (True, True)):
        moving = [index not in frozen for index in range(len(values))]
        firsts = [like(value) if moves else None for value, moves in zip(values, moving, strict=True)]
        seconds = [like(value) if moves and bends else None for value, moves in zip(values, moving, strict=True)]
        with TaylorMode(is_frugal) as mode:
            given = [with_moves(value.clone(), *pair) for value, *pair in zip(values, firsts, seconds, strict=True)]
            try:
                found = function(*given)
                mode.check()
            except Taken:
                assert is_frugal
                continue

        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        at_t = []
        for value, first, second in zip(values, firsts, seconds, strict=True):
            at_t.append(value.clone() if first is None else value + t * first + (0 if second is None else t**2 / 2 * second))
        expected = function(*at_t)
        torch.testing.assert_close(found, expected.detach())
        weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        (slope,) = torch.autograd.grad((weights * expected).sum(), t, create_graph=True)
        bend = torch.autograd.grad(slope, t, allow_unused=True)[0] if slope.requires_grad else None
        moves = moves_of(found)
        assert moves is not None
        assert moves.first.shape == found.shape
        torch.testing.assert_close((weights * moves.first).sum(), slope.detach())
        total = torch.zeros((), dtype=torch.float64) if moves.second is None else (weights * moves.second).sum()
        torch.testing.assert_close(total, torch.zeros_like(total) if bend is None else bend)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x.abs() + 0.1),
    "log2": lambda x: torch.log2(x.abs() + 0.1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "atan": torch.atan,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": lambda x: F.softplus(20 * x, beta=2.0),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "relu": F.relu,
    "relu6": lambda x: F.relu6(6 * x),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hardswish": lambda x: F.hardswish(4 * x),
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp(min=0.2),
    "clamp_max": lambda x: x.clamp_max(0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 7.0),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "nan_to_num": lambda x: x.masked_fill(x > 1, math.inf).nan_to_num(0.0, 2.0, 3.0),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "sqrt": lambda x: (x.abs() + 0.1).sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "reciprocal": lambda x: (x.abs() + 0.5).reciprocal(),
    "square": torch.square,
    "cube": lambda x: x**3,
    "root": lambda x: (x.abs() + 0.1) ** 0.3,
    "power 1": lambda x: x**1,
    "negative power": lambda x: (x.abs() + 0.5) ** -1.5,
    "neg": torch.neg,
    "times itself": lambda x: x * x,
    "constant over": lambda x: 2 / (x.abs() + 0.5),
    "constant minus": lambda x: 3 - 2 * x,
    "vmap": lambda x: torch.vmap(lambda row: torch.tanh(row) * row.sum())(x),
    "constant through round": lambda x: x + x.round() + x.sign() * 3,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_one_number(name: str) -> None:
    check(ELEMENTWISE[name], draw(3, 5))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def _batch_norm(training: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    mean, variance = torch.full((3,), 0.3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    return lambda x, weight, bias: F.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training)


def _dropped(values: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return torch.native_dropout(values, 0.3, True)[0] + torch.native_dropout(values, 0.3, False)[0]


_WHERE = draw(4, 5) > 0
_ROWS = torch.tensor([2, 0, 2])

OF_SEVERAL: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "add": (torch.add, [draw(4, 5), draw(5)]),
    "add with a factor": (lambda a, b: torch.add(a, b, alpha=-3), [draw(4, 5), draw(4, 1)]),
    "sub": (torch.sub, [draw(5), draw(4, 5)]),
    "rsub": (lambda a, b: torch.rsub(a, b, alpha=2), [draw(5), draw(4, 5)]),
    "mul": (torch.mul, [draw(4, 5), draw(5)]),
    "mul the other way": (torch.mul, [draw(5), draw(4, 5)]),
    "div": (torch.div, [draw(5), draw(4, 5)]),
    "addcmul": (lambda a, b, c: torch.addcmul(a, b, c, value=3), [draw(4, 5), draw(5), draw(4, 5)]),
    "maximum": (torch.maximum, [draw(4, 5), draw(5)]),
    "minimum": (torch.minimum, [draw(5), draw(4, 5)]),
    "logaddexp": (torch.logaddexp, [draw(4, 5), draw(5)]),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.3), [draw(4, 5), draw(5)]),
    "where": (lambda a, b: torch.where(_WHERE, a, b), [draw(4, 5), draw(5)]),
    "mm": (torch.mm, [draw(4, 5), draw(5, 3)]),
    "mv": (torch.mv, [draw(4, 5), draw(5)]),
    "dot": (lambda a, b: torch.dot(a, b) + torch.vdot(b, a), [draw(5), 1 + draw(5)]),
    "bmm": (torch.bmm, [draw(2, 4, 5), draw(2, 5, 3)]),
    "matmul": (torch.matmul, [draw(2, 4, 5), draw(5, 3)]),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [draw(2, 4, 5), draw(2, 3, 5)]),
    "linear": (F.linear, [draw(4, 5), draw(3, 5), draw(3)]),
    "linear of sequences": (F.linear, [draw(2, 4, 5), draw(3, 5), draw(3)]),
    "addmm": (lambda a, b, c: torch.addmm(a, b, c, beta=2, alpha=3), [draw(4, 3), draw(4, 5), draw(5, 3)]),
    "baddbmm": (lambda a, b, c: torch.baddbmm(a, b, c, beta=2, alpha=3), [draw(2, 4, 3), draw(2, 4, 5), draw(2, 5, 3)]),
    "bilinear": (F.bilinear, [draw(4, 5), draw(4, 3), draw(2, 5, 3), draw(2)]),
    "convolution": (
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2),
        [draw(2, 4, 5, 5), draw(6, 2, 3, 3), draw(6)],
    ),
    "transposed convolution": (lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2), [draw(2, 4, 5), draw(4, 3, 2), draw(3)]),
    "prelu": (F.prelu, [draw(4, 5, 2), draw(5)]),
    "embedding": (lambda w: F.embedding(_ROWS, w), [draw(4, 3)]),
    "embedding bag": (lambda w: F.embedding_bag(_ROWS, w, torch.tensor([0, 2]), mode="mean"), [draw(4, 3)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (2, 5), w, b), [draw(4, 2, 5), draw(2, 5), draw(2, 5)]),
    "rms norm": (lambda x, w: F.rms_norm(x, (5,), w), [draw(4, 5), draw(5)]),
    "group norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [draw(3, 4, 5), draw(4), draw(4)]),
    "instance norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), [draw(3, 4, 5), draw(4), draw(4)]),
    "batch norm": (_batch_norm(True), [draw(4, 3, 2), draw(3), draw(3)]),
    "batch norm by running statistics": (_batch_norm(False), [draw(4, 3, 2), draw(3), draw(3)]),
    "normalize": (lambda x: F.normalize(x, dim=-1), [draw(4, 5)]),
    "norm": (lambda x: torch.norm_except_dim(x, 2, 0), [draw(4, 5)]),
    "var": (lambda x: x.var(-1, correction=0), [draw(4, 5)]),
    "std": (lambda x: x.std(0, keepdim=True), [draw(4, 5)]),
    "softmax": (lambda x: x.softmax(0), [draw(4, 5)]),
    "log_softmax": (lambda x: x.log_softmax(-1), [draw(4, 5)]),
    "logsumexp": (lambda x: x.logsumexp(0), [draw(4, 5)]),
    "attention": (_attention, [draw(2, 2, 4, 3), draw(2, 2, 4, 3) + 1, draw(2, 2, 4, 3) - 1]),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), [draw(2, 3, 6, 6)]),
    "adaptive max pool": (lambda x: F.adaptive_max_pool2d(x, 2), [draw(2, 3, 6, 6)]),
    "average pool": (lambda x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 2), [draw(2, 3, 6, 6)]),
    "max along an axis": (lambda x: x.max(1).values + x.min(1, keepdim=True).values, [draw(4, 5)]),
    "amax": (lambda x: x.amax((0, 2)) - x.amin((0, 2)), [draw(4, 5, 2)]),
    "max of all": (lambda x: x.max() - x.amin(0).sum(), [draw(4, 5)]),
    "topk": (lambda x: x.topk(2, 0).values + x.sort(0, descending=True).values[2:], [draw(4, 5)]),
    "cat": (lambda a, b: torch.cat((a, torch.ones(1, 5, dtype=a.dtype), b)), [draw(4, 5), draw(2, 5)]),
    "stack": (lambda a, b: torch.stack((a, b), 1), [draw(4, 5), draw(4, 5) + 1]),
    "pieces": (lambda x: x.chunk(2)[1] * x.unbind()[0] + x.split([1, 3])[0] + x.tensor_split(4)[2], [draw(4, 5)]),
    "index": (lambda x: x[_ROWS, 1:] + x[:, 0:4][_WHERE[:, 0]][:1] + x.index_select(0, _ROWS)[:, :1], [draw(4, 5)]),
    "gather": (lambda x: x.gather(0, _ROWS[:, None].expand(3, 5)), [draw(4, 5)]),
    "index_copy": (lambda a, b: a.index_copy(0, _ROWS[:2], b), [draw(4, 5), draw(2, 5)]),
    "index_add": (lambda a, b: a.index_add(0, _ROWS, b), [draw(4, 5), draw(3, 5)]),
    "scatter_add": (lambda a, b: a.scatter_add(0, _ROWS[:, None].expand(3, 5), b), [draw(4, 5), draw(3, 5)]),
    "masked_fill": (lambda x: x.masked_fill(_WHERE, -7.0), [draw(4, 5)]),
    "dropout": (_dropped, [draw(4, 5)]),
    "shapes": (lambda x: x.t().reshape(2, 10).unsqueeze(1).repeat(1, 2, 1).movedim(0, 2).flatten().flip(0), [draw(4, 5)]),
    "pad": (lambda x: F.pad(F.pad(x, (1, 2)), (1, 1, 0, 0), mode="reflect"), [draw(2, 4, 5)]),
    "circular pad": (lambda x: F.pad(x, (2, 1), mode="circular"), [draw(2, 4, 5)]),
    "upsample": (lambda x: F.interpolate(F.interpolate(x, scale_factor=2), scale_factor=2, mode="bilinear"), [draw(1, 2, 3, 3)]),
    "unfold": (lambda x: F.unfold(x, 2).sum(1) + F.pixel_shuffle(x, 2).flatten(1)[:, :9], [draw(2, 4, 4, 4)]),
    "fourier": (lambda x: torch.fft.fftn(x).real + torch.fft.irfft(torch.fft.rfft(x) * 1j, n=5), [draw(4, 5)]),
    "strides": (lambda x: x.t().as_strided((3, 2), (1, 5), 2) + (1 * x).as_strided_((3, 2), (2, 1), 1), [draw(4, 5)]),
    "channels last": (
        lambda x: F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last).sin(), 1),
        [draw(2, 3, 4, 4)],
    ),
    "sums": (lambda x: x.sum() + x.mean(0).sum() + x.cumsum(1).mean() + x.tril().trace(), [draw(4, 5)]),
    "nll": (lambda x: F.nll_loss(x, torch.tensor([0, 2, 1, 1])), [draw(4, 5)]),
}


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_functions_of_several_tensors(name: str) -> None:
    function, values = OF_SEVERAL[name]
    check(function, *values)
    for one in range(len(values)) if len(values) > 1 else ():  # only one moves
        check(function, *values, frozen=tuple(index for index in range(len(values)) if index != one))


def _in_place_on_a_view(x: Tensor) -> Tensor:
    made = torch.sin(x)
    made[1:].mul_(x[:1])
    return made * made.t().reshape(4, 5)


def _written_into_zeros(x: Tensor) -> Tensor:
    found = torch.zeros(3, 4, 5, dtype=x.dtype)
    for index in range(3):
        found[index] = x.sin() * index
    found[1, 2:].zero_()
    return found.sum(0)


def _overwritten(x: Tensor) -> Tensor:
    made = torch.sin(x)
    made.copy_(torch.ones_like(made))
    return made.add_(x).transpose_(0, 1).exp_()


def _constant_parts(x: Tensor) -> Tensor:
    with torch.no_grad():
        factor = torch.tanh(x)
        view = x[0]
    return x * factor + x.detach() * x.tanh() + view + x.data.exp()


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: torch.sin(x).relu_(),
    "add": lambda x: torch.sin(x).add_(x).mul_(x).div_(3.0).add_(x, alpha=2),
    "on a view": _in_place_on_a_view,
    "into zeros": _written_into_zeros,
    "overwritten": lambda x: _overwritten(x * 0.1),
    "constant parts": _constant_parts,
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_operations_in_place_and_constants(name: str) -> None:
    check(IN_PLACE[name], draw(4, 5))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers(bidirectional: bool) -> None:
    for kind in (nn.RNN, nn.GRU):
        layer = kind(3, 4, bidirectional=bidirectional).double()
        names, weights = zip(*layer.named_parameters(), strict=True)

        def call(x: Tensor, *values: Tensor, layer: nn.Module = layer, names: tuple[str, ...] = names) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

        check(call, draw(5, 2, 3), *(weight.detach() for weight in weights))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_lstm_with_dropout_between_its_layers(bias: bool, bidirectional: bool) -> None:
    """In single precision, in which the CPU has a kernel for it; against the twin that is used where nothing is dropped."""
    lstm = nn.LSTM(3, 4, 2, bias=bias, dropout=0.5, bidirectional=bidirectional)
    names, weights = zip(*lstm.named_parameters(), strict=True)
    inputs = draw(5, 2, 3).float()

    def outputs(kernel: Callable[..., Any], dtype: torch.dtype) -> list[Tensor]:
        with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]), TaylorMode():
            torch.manual_seed(0)
            patch.setattr(_VF, "lstm", kernel)
            values = {
                name: with_moves(weight.detach().to(dtype), draw(*weight.shape).to(dtype))
                for name, weight in zip(names, weights, strict=True)
            }
            found, states = torch.func.functional_call(lstm.to(dtype), values, (inputs.to(dtype),))
            return [move for value in (found, *states) for move in (moves_of(value) or ())[:2]]  # type: ignore[misc]

    for train in (False, True):
        lstm.train(train)
        # In double precision it is made of single operations.
        expected = outputs(_VF.lstm, torch.float64)
        assert len(expected) == 6
        torch.testing.assert_close(outputs(_VF.lstm, torch.float32), [value.float() for value in expected], rtol=1e-4, atol=1e-5)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(context: object, slope: Tensor) -> Tensor:
        return 2 * slope


def _swallows(x: Tensor) -> Tensor:
    try:
        return torch.special.bessel_j0(x)
    except Exception:
        return x


def _changed_in_secret(x: Tensor) -> Tensor:
    made = torch.tanh(x)
    made.detach().mul_(2)
    return made + 1


def _differentiates(x: Tensor) -> Tensor:
    with torch.enable_grad():
        point = torch.ones(3, dtype=x.dtype, requires_grad=True)
        (slope,) = torch.autograd.grad((point * x).sum(), point, create_graph=True)
    return slope


def _forward_derivative(x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(forward_ad.make_dual(x, torch.ones_like(x)).sin()).tangent


UNKNOWN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no rule": (torch.special.bessel_j0, "it is not known how aten.special_bessel_j0.default moves"),
    "no rule in place": (lambda x: torch.tanh(x).digamma_(), "it is not known how aten.digamma_.default moves"),
    "caught by the model": (_swallows, "it is not known how aten.special_bessel_j0.default moves"),
    "into other memory": (lambda x: torch.mul(x, 2, out=torch.empty_like(x)), "it is not known how aten.mul.out moves"),
    "changed in secret": (_changed_in_secret, "changed in place through another"),
    "without gradients": (lambda x: torch.no_grad()(lambda y: y.mul_(2))(torch.tanh(x)), "in a block without gradients"),
    "derivative": (_differentiates, "differentiates in its forward"),
    "transformed": (_forward_derivative, "differentiates in its forward"),
    "derivative of a function": (lambda x: torch.func.grad(lambda y: y.sin().sum())(x), "differentiates in its forward"),
    "second argument": (lambda x: x ** x.sum(), "aten.pow.Tensor_Tensor"),
    "complex": (lambda x: (x + 1j * x).abs(), "aten.abs.default moves with complex numbers"),
    "norm": (lambda x: torch.linalg.vector_norm(x, 3), "norm of order 3"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_rule_is_never_left_out(name: str) -> None:
    function, reason = UNKNOWN[name]
    with pytest.raises(NoForwardMode, match=reason):
        with TaylorMode() as mode:
            function(with_moves(draw(3), draw(3)))
        mode.check()


def test_a_custom_function_is_a_constant() -> None:
    """Its forward runs without gradients, so that its derivative stays unknown: whoever uses the mode looks for such nodes."""
    with TaylorMode():
        assert moves_of(_Doubled.apply(with_moves(draw(3), draw(3)))) is None


def test_moves_live_as_long_as_their_tensor_also_where_only_the_library_holds_it() -> None:
    value = torch.tanh(with_moves(draw(3), draw(3)))
    holder = [with_moves(draw(3), value)]
    views = holder[0][1:]
    del holder
    moves = moves_of(views)  # the base is held by the view alone
    assert moves is not None and torch.equal(moves.first, value[1:])


def test_memory_is_given_on_where_nobody_needs_it_again() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(2, 3, 8, 8, generator=generator), torch.randn(4, 3, 3, 3, generator=generator))

    def call(weight: Tensor, twice: bool, is_frugal: bool) -> Tensor:
        with TaylorMode(is_frugal):
            sums = F.conv2d(inputs, with_moves(weight.clone(), weight))
            first = moves_of(sums)
            assert first is not None
            found = F.relu(F.batch_norm(sums, None, None, training=True))
            second = moves_of(found)
            assert second is not None
            assert (first.first.data_ptr() == second.first.data_ptr()) == is_frugal
            return found + sums if twice else found

    assert torch.equal(*(moves_of(call(weight, False, is_frugal)).first for is_frugal in (False, True)))  # type: ignore[union-attr]
    call(weight, True, False)
    with pytest.raises(Taken):
        call(weight, True, True)


def test_flags_are_put_back() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), TaylorMode():
        assert not torch.backends.mha.get_fastpath_enabled()
        _ = 1 / 0
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_operations_of_other_versions_have_no_rule() -> None:
    def made(*_: object) -> None:
        raise AssertionError

    before = dict(RULES)
    assert rule(operations.of_another_version.default)(made) is made
    assert before == RULES
    assert operations.mm.default is aten.mm.default


def test_every_rule_is_of_an_operation_that_does_not_write() -> None:
    for operation in RULES:
        written = {argument.name for argument in operation._schema.arguments if argument.is_write}
        assert not written - {"running_mean", "running_var"}, operation
