"""What it means when an operation makes bad values: its likely reason, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Beginning of an operation's name -> advice. Forward names are those of torch, "log"; backward those of the graph,
#: "LogBackward0".
_ADVICE: Mapping[str, str] = {
    "log_softmax": "A row of its input is infinite throughout: a mask that leaves nothing, or logits that have overflowed.",
    "softmax": "A row of its input is infinite throughout: a mask that leaves nothing, or logits that have overflowed.",
    "scaled_dot_product": "A row of the mask leaves nothing to attend to, or the products of queries and keys overflow.",
    "log": "Take the logarithm of x.clamp(min=1e-6), or let a fused loss do it: cross_entropy, "
    "binary_cross_entropy_with_logits, log_softmax.",
    "sqrt": "Add an epsilon inside: (x + 1e-8).sqrt(); a negative x before it is rounding, or a mistake.",
    "rsqrt": "Add an epsilon inside: (x + 1e-8).rsqrt().",
    "reciprocal": "Add an epsilon to the denominator.",
    "div": "Add an epsilon to the denominator, or use torch.where with a safe denominator in the places that are not used.",
    "exp": "Take the largest value away before, as logsumexp and softmax do, or clamp the argument.",
    "pow": "Clamp the base: a negative one has no broken power, and zero no negative one.",
    "std": "The standard deviation of a single value does not exist: use unbiased=False, or a larger batch.",
    "var": "The variance of a single value does not exist: use unbiased=False, or a larger batch.",
    "linalg_vector_norm": "The norm has no derivative at zero: add an epsilon inside, (x.square().sum(-1) + 1e-8).sqrt().",
    "norm": "The norm has no derivative at zero: add an epsilon inside, (x.square().sum(-1) + 1e-8).sqrt().",
    "acos": "Clamp the argument to the inside of the range: x.clamp(-1 + 1e-6, 1 - 1e-6).",
    "asin": "Clamp the argument to the inside of the range: x.clamp(-1 + 1e-6, 1 - 1e-6).",
    "nll_loss": "All targets of the batch may be ignored: a mean over nothing is 0/0.",
    "native_batch_norm": "One value a channel has no variance: a larger batch, or GroupNorm.",
}

_OVERFLOW = (
    "The numbers grow beyond the range of their type: lower the learning rate, normalise in front of it, or use a wider type."
)
_PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "mul",
    "add",
    "sum",
    "linear",
    "cumsum",
    "cumprod",
    "square",
    "matmul",
)


def advice(operation: str) -> str:
    """Return what to do about an operation that makes bad values.

    >>> advice("SqrtBackward0").startswith("Add an epsilon inside")
    True
    >>> advice("addmm").startswith("The numbers grow")
    True
    """
    name = plain_name(operation)
    for beginning in sorted(_ADVICE, key=len, reverse=True):
        if name.startswith(beginning):
            return _ADVICE[beginning]
    if name in _PRODUCTS:
        return _OVERFLOW
    return "Look at the ranges of its inputs: an argument on the edge of where the operation is defined is the usual reason."


def plain_name(operation: str) -> str:
    """Return the name of the operation behind a node of the graph.

    >>> [plain_name(name) for name in ("LogSoftmaxBackward0", "_softmax", "DivBackward1", "NativeLayerNormBackward0")]
    ['log_softmax', 'softmax', 'div', 'native_layer_norm']
    """
    name = operation.partition("Backward")[0] if "Backward" in operation else operation
    letters = [f"_{letter.lower()}" if letter.isupper() else letter for letter in name]
    return "".join(letters).lstrip("_")


def ranges(inputs: Sequence[Mapping[str, float]]) -> str:
    """Return the ranges of tensors in words.

    >>> ranges([{"smallest": 0.0, "largest": 1.0, "zeros": 2, "nan": 0, "infinite": 0, "elements": 6}])
    '0 to 1 (2 of 6 are zero)'
    """
    return "; ".join(_range(about) for about in inputs)


def _range(about: Mapping[str, float]) -> str:
    some = [f"{about[key]:,.0f} of {about['elements']:,.0f} are {word}" for key, word in _WORDS.items() if about[key]]
    span = f"{about['smallest']:.4g} to {about['largest']:.4g}" if about["smallest"] == about["smallest"] else "no finite element"
    if about["smallest"] == about["largest"]:
        span = f"{about['smallest']:.4g}"
    return f"{span} ({', '.join(some)})" if some else span


_WORDS = {"zeros": "zero", "nan": "NaN", "infinite": "infinite"}
