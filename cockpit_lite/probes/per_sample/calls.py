"""What the probe remembers of one call of one module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample.forms import Form
    from cockpit_lite.probes.per_sample.kernels import Kernel
    from cockpit_lite.probes.per_sample.modules import Owner
    from cockpit_lite.probes.per_sample.owners import Layout
    from cockpit_lite.probes.per_sample.projections import Projection


def _cut(value: Any) -> Any:
    """Detach a tensor: what the probe keeps must not keep the user's graph alive."""
    return value.detach() if isinstance(value, Tensor) else value


_NOTHING: Mapping[str, Any] = MappingProxyType({})


@lru_cache(maxsize=1024)
def _without_memory(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty((), dtype=dtype, device=device).expand(shape)


#: Of a large tensor so many strips of so many elements are looked at to see how large it is (the first is a prime, so that they
#: are not all at the beginning of a sample), and of one that is not in one piece so many rows.
STRIPS, ELEMENTS, ROWS = 31, 32, 4


#: Norms of the output gradients and of the inputs, each with a factor, and the norm of as many ones.
Sizes = tuple[list[tuple[Tensor, float]], list[tuple[Tensor, float]], float]


class Call:
    """One call of a module that owns trainable parameters, or of the model.

    Args:
        module: The module.
        owner: What is known of it from step to step; ``None`` if it uses no trainable parameter by itself.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: The tensors it returned, in the order of ``tree_flatten``.
        forward: Number of the forward (outermost call) it belongs to.
        keep_outputs: Whether to keep what it returned; otherwise only the shapes.

    Attributes:
        args: Detached: what the probe keeps must not keep the user's graph alive.
        kwargs: Detached.
        inputs: The tensors among the arguments.
        shapes: Of what it returned.
        device: Of what it returned.
        autocast: The type that automatic mixed precision calculated in; ``None`` without it.
        layout: Where the samples are in it, once that is known.
        random_state: Of the random number generators before the call, for modules whose rule draws them again.
        projections: What could be read off the graph of an attention.
        kernels: What could be read off the graph of an LSTM.
        statistics: What could be read off the graph of a normalisation: mean, and one over the deviation.
        began: How many calls the step had begun before this one.
        ended: How many it had begun when this one ended.
        deltas: Gradient of the loss with respect to each output; ``None`` where nothing arrived.
        condensed: Name in the module -> what is left once it was measured and the rest let go; empty before.
        spent: Whether the arguments were let go.
        sizes: Norms of the output gradients, of the inputs, and of as many ones, once condensed.
    """

    # what most calls have; they are made by the dozen at every step, so that setting it in each would take its time
    kwargs: Mapping[str, Any] = _NOTHING
    autocast: torch.dtype | None = None
    layout: Layout | None = None
    random_state: tuple[Tensor, ...] | None = None
    projections: Mapping[str, Projection] = _NOTHING
    kernels: Mapping[str, Kernel] = _NOTHING
    statistics: tuple[Tensor, Tensor] | None = None
    began = 0
    ended = 0
    spent = False
    condensed: Mapping[str, Form] = _NOTHING
    sizes: Sizes | None = None
    _outputs: Sequence[Tensor] = ()
    _output_versions: Sequence[int] = ()

    def __init__(
        self,
        module: nn.Module,
        owner: Owner | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
        forward: int,
        keep_outputs: bool = True,
    ) -> None:
        self.module, self.owner, self.forward, self.outputs_forgotten = module, owner, forward, not keep_outputs
        # detached aliases share the version counter with the user's tensors
        if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):  # nearly always
            value = args[0].detach()
            self.args: tuple[Any, ...] = (value,)
            self.inputs, self._versions = [value], [value._version]
        else:
            self.args = tuple([value.detach() if isinstance(value, Tensor) else tree_map(_cut, value) for value in args])
            if kwargs:
                self.kwargs = tree_map(_cut, dict(kwargs))
            self.inputs = tensors_in((self.args, self.kwargs)) if kwargs else tensors_in(self.args)
            self._versions = [value._version for value in self.inputs]
        first = outputs[0]
        self.deltas: list[Tensor | None] = [None]
        self.shapes, self._dtypes, self.device = [first.shape], [first.dtype], first.device
        for other in outputs[1:]:
            self.deltas.append(None)
            self.shapes.append(other.shape)
            self._dtypes.append(other.dtype)
        if keep_outputs:
            self._outputs = [value.detach() for value in outputs]
            self._output_versions = [value._version for value in outputs]
        if torch._C._is_any_autocast_enabled():
            kind = first.device.type
            self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors it returned, detached; once they are forgotten, tensors of the same shapes without memory."""
        if self.outputs_forgotten:
            return [_without_memory(shape, dtype, self.device) for shape, dtype in zip(self.shapes, self._dtypes, strict=True)]
        return list(self._outputs)

    @property
    def overwritten(self) -> bool:
        """Whether an argument was changed in place after the call."""
        return [value._version for value in self.inputs] != self._versions

    @property
    def outputs_overwritten(self) -> bool:
        """Whether an output was changed in place after the call, as activations with ``inplace=True`` do; or was not kept."""
        return self.outputs_forgotten or [value._version for value in self._outputs] != self._output_versions

    def add(self, position: int, delta: Tensor) -> None:
        """Add an output gradient; several losses may be taken back through one call."""
        known = self.deltas[position]
        self.deltas[position] = delta.detach() if known is None else known + delta.detach()

    def forget_outputs(self) -> None:
        """Let the outputs go, which the user's graph may not need: only their shapes are kept."""
        self._outputs, self.outputs_forgotten = (), True

    def condense(self, forms: Mapping[str, Form]) -> None:
        """Keep the forms, condensed or small, and let go of what they were made of."""
        self.condensed, self.sizes = forms, self._sizes()
        self._empty()

    def _empty(self) -> None:
        self.args, self.kwargs, self.inputs, self._versions, self.spent = (), _NOTHING, [], [], True
        self.forget_outputs()
        for kernel in self.kernels.values():
            kernel.let_go()
        self.deltas, self.kernels = [None] * len(self.deltas), _NOTHING

    def let_go(self) -> None:
        """Keep nothing: the user's graph, which lives until their next loss, holds the call by its hooks."""
        self._empty()
        self.condensed, self.sizes = _NOTHING, None
        for projection in self.projections.values():
            projection.let_go()
        self.projections, self.statistics, self.random_state = _NOTHING, None, None

    def magnitude(self) -> float:
        """Return about how large the terms are that the gradients of the parameters are sums of, at most."""
        deltas, inputs, ones = self._sizes() if self.sizes is None else self.sizes
        # a sum of products is at most the product of the norms; a bias is a sum of deltas times one
        norms = [[float(norm) * factor for norm, factor in side] for side in (deltas, inputs)]
        return sum(norms[0]) * max([ones, *norms[1]])

    def _sizes(self) -> Sizes:
        deltas = [delta for delta in self.deltas if delta is not None]
        inputs = [_norm(value) for value in self.inputs if value.is_floating_point()]
        return [_norm(delta) for delta in deltas], inputs, math.sqrt(sum(delta.numel() for delta in deltas))

    def forget_deltas(self) -> None:
        """Forget the gradients that arrived: the user has thrown them away."""
        self.condensed, self.sizes = _NOTHING, None
        self.deltas = [None] * len(self.deltas)
        for projection in self.projections.values():
            projection.delta = None

    @property
    def half_precision(self) -> bool:
        """Whether anything in it was calculated in less than single precision."""
        return self.autocast is not None or torch.float16 in self._dtypes or torch.bfloat16 in self._dtypes

    def bound(self) -> list[Any]:
        """Return the arguments in the order of the signature of ``forward``."""
        if not self.kwargs:
            return list(self.args)
        own = self.module.__dict__.get("forward")
        arguments = _signature(type(self.module).forward) if own is None else inspect.signature(own)
        bound = arguments.bind(*([self.module] if own is None else []), *self.args, **self.kwargs)
        bound.apply_defaults()
        return list(bound.arguments.values())[own is None :]


@lru_cache(maxsize=256)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _norm(values: Tensor) -> tuple[Tensor, float]:
    """Return a factor of the norm and the other one, of a large tensor from some of its elements.

    It has to tell a gradient from rounding errors, and is seldom asked for: so nothing is multiplied yet.
    """
    count, seen = values.numel(), values
    if count > STRIPS * ELEMENTS:
        pieces = values.is_contiguous()
        seen = values.as_strided((STRIPS, ELEMENTS), (count // STRIPS, 1)) if pieces else values[:: max(1, len(values) // ROWS)]
    low = values.dtype in (torch.float16, torch.bfloat16)
    norm = torch.linalg.vector_norm(seen, dtype=torch.float32) if low else torch.linalg.vector_norm(seen)
    return norm, 1.0 if seen is values else math.sqrt(count / seen.numel())


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor among the arguments that has an axis, or None."""
    found = tensors_in((args, dict(kwargs))) if kwargs else tensors_in(args)
    return next((tensor for tensor in found if tensor.dim() > 0), None)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of tuples, lists and dictionaries, and in what Hugging Face models return."""
    if isinstance(value, Tensor):  # nearly always, and tree_flatten takes its time
        return [value]
    if type(value) in (tuple, list) and all(isinstance(leaf, Tensor) for leaf in value):
        return list(value)
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
